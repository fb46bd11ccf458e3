"""The tables of run directories: what shares a row, what is compared with what, what is listed and skipped."""

import csv
import json
import math
import re
from pathlib import Path

import pytest
from run_folders import RESULT, make_run, row, tables_of

from atsc_plugin import report
from atsc_plugin.__main__ import main
from atsc_plugin.reporting import cells, kept, published, tables
from atsc_plugin.reporting.runs import Run, read_run

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def suite(tmp_path):
    """Vanilla, KD and SimKD with five seeds: SimKD minus KD is 1, 2, 3, 4, 5."""
    for seed in range(1, 6):
        make_run(tmp_path, "vanilla", seed, 10.0 + seed, "NONE")
        make_run(tmp_path, "kd", seed, 20.0 + 10 * seed, best=60.0)
        make_run(tmp_path, "simkd", seed, 20.0 + 11 * seed, "SIMKD", best=61.0 + seed % 2, log=[{"epoch": 1}])
    return tmp_path


def test_rows_are_compared_by_seed_last_with_last_and_best_with_best(suite):
    (table,) = tables_of(suite)
    compared = row(table, "SIMKD").differences["KD"]
    assert (compared.last.mean, compared.last.n, compared.verdict) == (3.0, 5, "higher (Welch disagrees)")
    assert compared.best.mean == pytest.approx(1.6)  # 2, 1, 2, 1, 2
    assert compared.p_holm == compared.last.p  # one pair of networks: nothing to correct for
    assert set(row(table, "KD").differences) == {"vanilla", "SimKD"}
    assert row(table, "vanilla").differences["KD"].last.mean == pytest.approx(13 - 50)


def test_holm_runs_over_the_pairs_of_networks(suite):
    for seed in range(1, 6):
        make_run(suite, "kd4", seed, 50.0, student="resnet14")
        make_run(suite, "simkd4", seed, 50.0 + seed, "SIMKD", student="resnet14")
    first, second = (row(table, "SIMKD").differences["KD"] for table in tables_of(suite))
    assert first.last.p == second.last.p  # the same differences
    assert first.p_holm == second.p_holm == pytest.approx(2 * first.last.p)
    assert first.family == 2


def test_a_failed_run_is_named_and_takes_the_verdict_away(suite):
    folder = suite / "simkd" / "seed_5"
    (folder / "result.json").unlink()
    (folder / "job.json").write_text(json.dumps({"status": "failed", "reason": "loss_feat is nan since step 18"}))
    for seed in (6,):
        make_run(suite, "simkd", seed, 86.0, "SIMKD")
        make_run(suite, "kd", seed, 80.0)
    (table,) = tables_of(suite)
    assert cells.count(row(table, "SIMKD")) == "5 of 6"
    assert row(table, "SIMKD").differences["KD"].verdict == "no verdict: 1 run missing"
    assert any("seed 5 failed: loss_feat is nan" in told for told in cells.troubles(table))


def test_a_collapsed_run_counts_and_is_named(suite):
    alive = {"teacher_top1": 80.0, "start_top1": 90.0, "teacher_agreement": 0.9, "feature_scale": 0.6}
    log = [{"epoch": 1, "top1": 9.0, **alive}, {"epoch": 2, "top1": 1.0, **alive, "feature_scale": 0.4}]
    make_run(suite, "atsc", 1, 1.0, "ATSC", log=log)
    make_run(suite, "atsc", 2, 71.0, "ATSC")
    (table,) = tables_of(suite)
    assert row(table, "ATSC").spread("top1_last").mean == 36.0
    assert "collapsed: ATSC seed 1 in epoch 2 (counted: 1.00)" in cells.troubles(table)


@pytest.mark.parametrize(("agreement", "epoch"), [(0.6, None), (0.4, 1), (math.nan, 1)])
def test_one_lost_teacher_of_several_makes_a_collapse(tmp_path, agreement, epoch):
    names = {"teacher_top1": 80.0, "start_top1": 90.0, "teacher_agreement": 0.9, "feature_scale": 0.9}
    line = {f"t{number}_{name}": value for number in (1, 2) for name, value in names.items()}
    folder = make_run(tmp_path, "atsc", 1, 1.0, "ATSC", log=[{"epoch": 1, **line, "t2_teacher_agreement": agreement}])
    assert read_run(folder).collapsed == epoch


def test_a_stopped_run_is_missing_with_its_reason(suite):
    folder = make_run(suite, "atsc", 1, None, "ATSC")
    (folder / "stopped.json").write_text(json.dumps({"epoch": 3, "reason": "the teacher has collapsed"}))
    (table,) = tables_of(suite)
    assert any("stopped in epoch 3: the teacher has collapsed" in told for told in cells.troubles(table))


def test_different_images_are_never_in_one_table(suite):
    make_run(suite, "kd_more", 1, 99.0, data="digits100-9000")
    make_run(suite, "kd_large", 1, 99.0, image_size=64)
    tables = tables_of(suite)
    assert len(tables) == 3
    assert [len(table.runs) for table in tables] == [15, 1, 1]
    headings = cells.headings(tables)
    assert len(set(headings)) == 3 or "digits100-9000" in " ".join(headings)


def test_a_row_may_be_named_to_compare_with(suite, capsys):
    assert main(["report", str(suite), "--against", "vanilla"]) == 0
    assert "minus KD" not in capsys.readouterr().out
    tables = report.gather([suite], ["KD"])[0]
    assert set(row(tables[0], "SIMKD").differences) == {"KD"}
    assert main(["report", str(suite), "--against", "kdd"]) == 2
    assert "--against kdd: no such row; expected of KD, SIMKD, vanilla" in capsys.readouterr().err


def test_teachers_are_crossed_with_seeds_or_the_table_says_given_this_teacher(suite, tmp_path_factory):
    assert "Given this teacher" in " ".join(cells.notes(tables_of(suite)[0]))
    root = tmp_path_factory.mktemp("crossed")
    for teacher in (1, 2):
        for seed in (1, 2, 3):
            cfg = {"TEACHER": {"SEED": teacher, "EPOCHS": 10}}
            make_run(root / f"t{teacher}", "kd", seed, 50.0, cfg=cfg)
            make_run(root / f"t{teacher}", "simkd", seed, 50.0 + seed + 10 * teacher, "SIMKD", cfg=cfg)
    (table,) = tables_of(root)
    compared = row(table, "SIMKD").differences["KD"]
    half = 4.302652729911275 / 3**0.5  # t(.975, 2), spread 1
    assert (compared.last.n, compared.last.mean) == (3, 17.0)  # 11, 12, 13 and 21, 22, 23: the seeds have 16, 17, 18
    assert (compared.last.low, compared.last.high) == pytest.approx((17 - half, 17 + half))
    assert compared.verdict == "no verdict: 3 seeds < 5"
    assert "2 teachers crossed" in cells.teachers_note(table)
    told = "Top-1 behind each teacher (seed 1 / seed 2): KD 50.00 / 50.00, SIMKD 62.00 / 72.00."
    assert told in cells.notes(table)


def test_half_written_and_foreign_folders_are_listed_and_skipped(suite, capsys):
    for name, files in {
        "torn": {"cfg.yaml": "A: 1", "result.json": '{"method": "KD", "top1'},
        "foreign": {"cfg.yaml": "A: 1", "result.json": json.dumps({"accuracy": 1.0})},
        "nan": {"cfg.yaml": "A: 1", "result.json": json.dumps({**RESULT, "top1_last": float("nan")})},
        "headless": {"result.json": json.dumps(RESULT)},
        "no_yaml": {"cfg.yaml": "A: [", "result.json": json.dumps(RESULT)},
    }.items():
        (suite / name).mkdir()
        for file, content in files.items():
            (suite / name / file).write_text(content)
    make_run(suite, "half", 1, None)
    assert main(["report", str(suite)]) == 0
    said = capsys.readouterr().out
    for name in ("torn", "foreign", "nan", "headless", "no_yaml"):
        assert f"skipped: {suite / name}: " in said
    assert f"unfinished: {suite / 'half' / 'seed_1'}" in said
    assert "method, " not in said
    assert said.count("SIMKD") >= 1


def test_published_rows_are_those_of_their_file_and_keep_the_families_apart():
    """73.33 is KD of CRD's teachers; 74.42 and SimKD's 78.08 are the SimKD repository's own, a family of their own."""
    rows = published.rows()
    assert len(rows) == 412
    assert {row["family"] for row in rows} == {"mdistiller", "simkd", "sskd", "quoted", "own"}
    assert all(10 < float(row["top1"]) < 90 and row["source"] for row in rows)
    pair = ("cifar100", "resnet32x4", "resnet8x4")
    assert published.figure(*pair, "KD").top1 == 73.33
    assert published.figure(*pair, "DKD").top1 == 76.32
    assert published.figure(*pair, "SIMKD") is None
    assert published.figure(*pair, "KD", "simkd").top1 == 74.42
    assert published.figure(*pair, "SIMKD", "simkd").top1 == 78.08
    assert published.figure("digits100", "resnet20", "resnet8", "KD") is None


CIFAR = {"dataset": "cifar100", "data": "cifar100-50000", "teacher": "resnet32x4", "student": "resnet8x4"}


@pytest.mark.parametrize(
    ("tops", "changes", "figure", "said"),
    [
        ((73.2, 73.5, 73.1), {"epochs": 240}, 73.33, "yes"),
        ((74.2, 74.3, 74.1), {"epochs": 240}, 73.33, "no"),
        ((73.2, 73.5), {"epochs": 240}, 73.33, "not said: n = 2 < 3"),
        ((73.2, 73.5, 73.1), {"epochs": 20}, 73.33, "not tried: 20 of 240 epochs"),
        ((73.2, 73.5, 73.1), {"epochs": 240, "image_size": 64}, None, ""),
        ((73.2, 73.5, 73.1), {"epochs": 240, "teacher": "resnet56"}, None, ""),
        ((73.2, 73.5, 73.1), {"epochs": 240, "dataset": "npz"}, None, ""),
    ],
)
def test_a_published_figure_stands_beside_the_same_images_pair_and_length_only(tmp_path, tops, changes, figure, said):
    for seed, top1 in enumerate(tops, 1):
        make_run(tmp_path, "kd", seed, top1, **{**CIFAR, **changes})
    (table,) = tables_of(tmp_path)
    (only,) = table.rows
    assert (only.published.top1 if only.published else None) == figure
    assert published.reproduced(table, only) == said


def test_a_variant_of_a_method_has_no_published_figure_and_simkds_is_named_below(tmp_path):
    make_run(tmp_path, "kd,KD.TEMPERATURE=1", 1, 73.0, **CIFAR)
    make_run(tmp_path, "simkd", 1, 78.0, "SIMKD", **CIFAR)
    (table,) = tables_of(tmp_path)
    assert [row.published for row in table.rows] == [None, None]
    assert any("not comparable: SIMKD 78.08" in note for note in cells.notes(table))


def test_markdown_and_csv_carry_figures_provenance_and_a_command(suite, tmp_path, capsys):
    out = tmp_path / "page"
    assert main(["report", str(suite), "--out", str(out)]) == 0
    text = (out / "leaderboard.md").read_text()
    for part in ("| SIMKD | 5 | 53.00 ± 17.39 |", "+3.00 \\[+1.04, +4.96\\]", "commit abc1234", "seeds 1, 2, 3, 4, 5",
                 "(../simkd/seed_1/log.jsonl)", "again: `python tools/train.py --cfg"):  # fmt: skip
        assert part in text, part
    with open(out / "leaderboard.csv", newline="") as file:
        rows = {line["label"]: line for line in csv.DictReader(file)}
    assert float(rows["SIMKD"]["minus_kd_last"]) == 3.0
    assert rows["SIMKD"]["top1_last_by_seed"].startswith("1:31.0000 2:42.0000")
    assert rows["KD"]["params_extra"] == "20"
    assert rows["KD"]["from_torch"] == "2.9"


def test_names_cannot_break_markdown_or_become_formulas(tmp_path):
    make_run(tmp_path, "=1+1|`x`<b>", 1, 50.0)
    make_run(tmp_path, "=2+2", 1, 50.0)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    text = (tmp_path / "page" / "leaderboard.md").read_text()
    assert "<b>" not in re.sub("`.*?`", "", text)  # a command in backticks shows what it holds
    assert "\\|" in text
    assert "'=2+2" in (tmp_path / "page" / "leaderboard.csv").read_text()


def test_runs_are_collected_for_a_repository_and_reported_from_there(suite, tmp_path):
    (suite / "kd" / "seed_1" / "latest").write_text("large")
    for seed, script in ((1, "/home/me/it/atsc_plugin/__main__.py"), (2, "/data/tools/train.py")):
        command = f"{script} train --cfg x.yaml LOG.PREFIX /data/tools"
        (suite / "kd" / f"seed_{seed}" / "about.json").write_text(json.dumps({"command": command}))
    assert main(["report", str(suite), "--collect", str(tmp_path / "kept")]) == 0
    assert len(list((tmp_path / "kept").rglob("result.json"))) == 15
    assert not list((tmp_path / "kept").rglob("latest"))
    for seed, script in ((1, "atsc_plugin/__main__.py"), (2, "tools/train.py")):  # without the place of the checkout
        about = json.loads((tmp_path / f"kept/kd/seed_{seed}/about.json").read_text())
        assert about["command"] == f"{script} train --cfg x.yaml LOG.PREFIX /data/tools"
    assert len(tables_of(tmp_path / "kept")[0].runs) == 15


def test_two_runs_that_would_be_kept_in_one_place_are_refused_and_nothing_is_kept(tmp_path, capsys):
    for suite in ("one", "other"):
        make_run(tmp_path / suite, "kd", 1, 50.0, job={"suite": suite, "arm": "kd"})
    assert main(["report", str(tmp_path), "--collect", str(tmp_path / "kept")]) == 2
    assert "would both be kept in" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_the_only_simkd_of_the_tables_length_is_the_reference_though_the_suite_sets_its_keys(tmp_path):
    """An arm of equal cost stands beside it, a third as long again: 2 epochs of a whole are 0.83 of another."""
    changed = {"suite": "s", "pair": "p", "set": {"SIMKD.PROJECTOR.FACTOR": 4}}
    make_run(tmp_path, "kd", 1, 50.0, job={"suite": "s", "pair": "p", "arm": "kd"})
    make_run(tmp_path, "simkd", 1, 60.0, "SIMKD", job={**changed, "arm": "simkd"})
    make_run(tmp_path, "long", 1, 70.0, "SIMKD", epochs=2, job={**changed, "arm": "long", "stretch": 2.4})
    (table,) = tables_of(tmp_path)
    assert table.references == ["KD", "SimKD"]
    assert row(table, "kd").differences["SimKD"].last.mean == -10.0
    assert "long (x2.4 epochs) (0.83 epochs)" in {one.label for one in table.rows}


def test_one_teacher_is_known_in_a_run_of_several_by_its_file(tmp_path):
    files = {"TYPE": "KD", "TEACHER_CKPT": "", "TEACHER_CKPTS": ["a/first.pth", "a/second.pth"]}
    folder = make_run(tmp_path, "several", 1, 50.0, cfg={"DISTILLER": files})
    assert read_run(folder).teacher_id == "file first.pth"


def test_a_page_gets_the_table_between_its_marks_and_is_checked(suite, capsys):
    page = suite / "README.md"
    page.write_text("no marks")
    assert main(["report", str(suite), "--readme", str(page)]) == 2
    assert kept.BEGIN in capsys.readouterr().err
    page.write_text(f"before\n{kept.BEGIN}\nold\n{kept.END}\nafter\n")
    words = ["report", str(suite), "--readme", str(page)]
    assert main([*words, "--against", "KD", "--check"]) == 1
    assert f"run: report {suite} --against KD --readme {page}" in capsys.readouterr().out
    assert "old" in page.read_text()
    assert main(words) == 0
    assert "| SIMKD | 5 | 53.00 ± 17.39 |" in page.read_text()
    assert page.read_text().endswith("after\n")
    assert main([*words, "--check"]) == 0


@pytest.mark.skipif(not (ROOT / "docs/results/quick").is_dir(), reason="no committed results")
def test_readmes_table_is_that_of_the_committed_results():
    if kept.BEGIN in (ROOT / "README.md").read_text():
        results = [str(ROOT / "docs/results" / name) for name in ("cifar10_small", "quick")]
        words = ["--against", "kd", "simkd", "simkd_feat_10", "--readme", str(ROOT / "README.md"), "--check"]
        assert main(["report", *results, *words]) == 0


def test_teachers_after_the_run_are_averaged_one_by_one_over_the_seeds(tmp_path):
    for seed, after in ((1, [90.0, 80.0]), (2, [92.0, 84.0])):
        lists = {"teacher": ["resnet20"] * 2, "teacher_top1_before": [93.0, 88.0], "teacher_top1_after": after}
        make_run(tmp_path, "two", seed, 70.0, "ATSC_MULTI", **lists)
    (table,) = tables_of(tmp_path)
    assert cells.teacher(table.rows[0]) == "93.00 / 88.00 → 91.00 / 82.00"


def test_an_unfinished_run_is_headed_by_the_teachers_it_lists():
    keys = {
        "DISTILLER.TYPE": "ATSC_MULTI",
        "DISTILLER.TEACHER": "ResNet50",
        "DISTILLER.TEACHERS": ["resnet20", "vgg13"],
    }
    assert tables.teachers_of(Run(Path("unfinished"), keys)) == ["resnet20", "vgg13"]
    assert tables.teachers_of(Run(Path("unfinished"), {**keys, "DISTILLER.TEACHERS": []})) == ["ResNet50"]
