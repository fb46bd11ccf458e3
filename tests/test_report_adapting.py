"""The table of what the teachers did, from hand-made logs."""

import csv

import pytest
from run_folders import make_run, row, tables_of

from atsc_plugin.__main__ import main
from atsc_plugin.reporting import adapting

ALIVE = {"teacher_top1": 89.0, "start_top1": 90.0, "teacher_agreement": 0.9, "feature_scale": 1.0,
         "feature_motion": 0.1, "drift_kernels": 0.02, "drift_vectors": 0.01, "kappa": 2.0}  # fmt: skip


def several(line):
    """The figures as several teachers log them: of the second, the motion is .3 more."""
    second = {f"t2_{name}": value for name, value in line.items()} | {"t2_feature_motion": line["feature_motion"] + 0.3}
    return {f"t1_{name}": value for name, value in line.items()} | second


def test_figures_are_those_of_the_last_epoch_averaged_over_the_runs(tmp_path):
    for seed, motion in ((1, 0.1), (2, 0.2)):
        first = {"epoch": 1, "top1": 1.0, **ALIVE, "feature_motion": 0.9}
        last = {"epoch": 2, "top1": 2.0, **ALIVE, "feature_motion": motion}
        make_run(tmp_path, "atsc", seed, 70.0, "ATSC", log=[first, last])
    (table,) = tables_of(tmp_path)
    figures = adapting.figures(row(table, "ATSC").runs)
    assert figures["motion"] == [pytest.approx((0.1 + 0.2) / 2)]
    assert figures["agreement"] == [pytest.approx(0.9)]


def test_a_lost_teacher_is_counted_and_one_that_only_teaches_has_no_line(tmp_path):
    make_run(tmp_path, "kd", 1, 70.0, log=[{"epoch": 1, "top1": 2.0}])
    make_run(tmp_path, "atsc", 1, 70.0, "ATSC", log=[{"epoch": 1, **ALIVE}])
    make_run(tmp_path, "atsc", 2, 1.0, "ATSC", log=[{"epoch": 1, **ALIVE, "feature_scale": 0.2}])
    (table,) = tables_of(tmp_path)
    columns, rows = adapting.table_of(table)
    (line,) = [dict(zip(columns, [text for text, _ in cells], strict=True)) for cells in rows]
    assert (line["method"], line["n"], line["lost"]) == ("ATSC", "2", "1")
    assert (line["scale"], line["drift of kernels"], line["kappa"]) == ("0.600", "2.00%", "2.00")  # (1 + .2) / 2


def test_several_teachers_have_their_figures_side_by_side(tmp_path):
    make_run(tmp_path, "atsc", 1, 70.0, "ATSC_MULTI", log=[{"epoch": 1, **several(ALIVE)}])
    (table,) = tables_of(tmp_path)
    assert adapting.figures(row(table, "ATSC_MULTI").runs)["motion"] == [pytest.approx(0.1), pytest.approx(0.4)]
    columns, (cells,) = adapting.table_of(table)
    assert cells[columns.index("motion")] == ("0.100 / 0.400", pytest.approx(0.1))


def test_the_page_markdown_and_csv_have_it_only_where_a_teacher_kept_learning(tmp_path):
    for name, method, figures in (("kd", "KD", {}), ("atsc", "ATSC", ALIVE)):
        make_run(tmp_path / name, name, 1, 70.0, method, log=[{"epoch": 1, "top1": 1.0, **figures}])
        assert main(["report", str(tmp_path / name), "--out", str(tmp_path / name / "page")]) == 0
        for page in ("leaderboard.md", "leaderboard.html"):
            has = "What the teachers did" in (tmp_path / name / "page" / page).read_text()
            assert has == bool(figures), page
    with open(tmp_path / "atsc" / "page" / "leaderboard.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["feature_motion"], line["drift_kernels"]) == ("0.1", "0.02")
