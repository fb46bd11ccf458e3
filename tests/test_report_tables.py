"""Which runs share a table and which a row of it, what is told of them, and what stands beside them."""

import json
import math
import re

import pytest
from run_folders import make_run, row, tables_of

from atsc_plugin import host, report
from atsc_plugin.report import layout, published
from atsc_plugin.report.runs import read_run


def labels(table):
    return [one.label for one in table.rows]


def test_different_images_are_never_in_one_table(tmp_path):
    make_run(tmp_path, "a", 1, 50.0)
    make_run(tmp_path, "b", 1, 99.0, data="digits100-9000")
    make_run(tmp_path, "c", 1, 99.0, image_size=64)
    make_run(tmp_path, "d", 1, 70.0, selected_on="test")
    tables = tables_of(tmp_path)
    assert [[run.name for run in table.runs] for table in tables] == [["a"], ["b"], ["c"], ["d"]]
    assert len({section.heading for section in layout.sections(tables)}) == 4


def test_an_older_run_that_recorded_no_test_images_stays_beside_those_that_did(tmp_path):
    make_run(tmp_path, "a", 1, 50.0)
    make_run(tmp_path, "b", 1, 60.0, test_data="digits100-test-100")
    assert [len(table.runs) for table in tables_of(tmp_path)] == [2]
    make_run(tmp_path, "c", 1, 60.0, test_data="digits100-test-200")
    assert [len(table.runs) for table in tables_of(tmp_path)] == [1, 1, 1]


def test_other_keys_are_a_row_of_their_own_named_after_what_differs(tmp_path):
    for seed, rate in ((1, 0.05), (2, 0.1)):
        make_run(tmp_path, f"{seed}/kd", seed, 50.0, cfg={"SOLVER": {"EPOCHS": 6, "LR": rate}})
    assert labels(tables_of(tmp_path)[0]) == ["kd [SOLVER.LR=0.05]", "kd [SOLVER.LR=0.1]"]


@pytest.mark.parametrize("asked", ["auto", "bf16"])
def test_another_number_format_is_a_row_of_its_own_whatever_was_asked_for(tmp_path, asked):
    for seed in (1, 2):
        cfg = {"SOLVER": {"EPOCHS": 6, "LR": 0.05, "AMP": "auto" if seed == 1 else asked}}
        make_run(tmp_path, f"{seed}/kd", seed, 80.0 + 8 * seed, precision="fp32" if seed == 1 else "bf16", cfg=cfg)
    (table,) = tables_of(tmp_path)
    assert [(one.label, len(one.runs)) for one in table.rows] == [
        ("kd [precision=bf16]", 1),
        ("kd [precision=fp32]", 1),
    ]


def test_an_arm_of_another_length_stands_beside_the_others_of_its_suite(tmp_path):
    """As ImageNet's: 100 epochs for all, 120 for ATSC. A trial of the suite is a comparison of its own."""
    job = {"suite": "s", "pair": "a_b"}
    for arm, method, epochs in (("kd", "KD", 100), ("simkd", "SIMKD", 100), ("zatsc", "ATSC", 120)):
        make_run(tmp_path / "s", arm, 1, 60.0, method, epochs=epochs, job={**job, "arm": arm})
    make_run(tmp_path / "t", "kd", 1, 9.0, epochs=1, job={**job, "arm": "kd", "overrides": ["SOLVER.EPOCHS", "1"]})
    whole, trial = tables_of(tmp_path)
    assert labels(whole) == ["kd", "simkd", "zatsc (120 epochs)"]
    assert (whole.epochs, trial.epochs, trial.trial) == (100, 1, "SOLVER.EPOCHS 1")
    assert set(row(whole, "zatsc (120 epochs)").differences) == {"kd", "simkd"}


def test_where_the_images_lie_makes_no_trial(tmp_path):
    for seed, words in ((1, ["DATASET.ROOT", "here.npz"]), (2, ["DATASET.ROOT", "there.npz"])):
        make_run(tmp_path, "kd", seed, 60.0, job={"suite": "s", "arm": "kd", "overrides": words})
    (table,) = tables_of(tmp_path)
    assert (table.trial, len(table.runs)) == ("", 2)


def test_an_arms_name_is_enough_where_the_row_is_called_more_than_that(tmp_path):
    make_run(tmp_path, "long", 1, 60.0, "SIMKD", epochs=12, job={"suite": "s", "arm": "long", "stretch": 2})
    make_run(tmp_path, "other", 1, 50.0, "SIMKD", job={"suite": "s", "arm": "other"})
    (table,) = report.compared([tmp_path], ["LONG"])[0]
    assert labels(table) == ["long (x2 epochs)", "other"]
    assert row(table, "other").differences["long (x2 epochs)"].mean == -10.0


def test_a_student_without_teacher_stands_in_the_table_of_every_teacher(tmp_path):
    make_run(tmp_path, "vanilla", 1, 40.0, "NONE")
    make_run(tmp_path, "kd_a", 1, 50.0)
    make_run(tmp_path, "kd_b", 1, 55.0, teacher="resnet56")
    tables = tables_of(tmp_path)
    assert [labels(table) for table in tables] == [["vanilla", "KD"], ["vanilla", "KD"]]
    assert [row(table, "KD").differences["vanilla"].mean for table in tables] == [10.0, 15.0]


def test_a_missing_seed_of_a_student_without_teacher_is_missing_beside_every_teacher(tmp_path):
    for pair, teacher in (("p", "resnet20"), ("q", "resnet56")):
        for seed in (1, 2):
            make_run(tmp_path, f"{pair},kd", seed, 50.0, teacher=teacher, job={"suite": "s", "arm": "kd", "pair": pair})
    for seed in (1, 2):
        make_run(tmp_path, "p,alone", seed, 40.0, "NONE", job={"suite": "s", "arm": "alone", "pair": "p"})
    (tmp_path / "p,alone/seed_2/result.json").unlink()
    failed = {"suite": "s", "arm": "alone", "pair": "p", "status": "failed", "reason": "no memory"}
    (tmp_path / "p,alone/seed_2/job.json").write_text(json.dumps(failed))
    assert [(len(one.runs), len(one.missing)) for table in tables_of(tmp_path) for one in table.rows] == [
        (1, 1), (2, 0), (1, 1), (2, 0),
    ]  # fmt: skip


def test_a_student_without_teacher_of_a_suite_does_not_stand_in_a_trial_of_it(tmp_path):
    job = {"suite": "s", "pair": None}
    make_run(tmp_path / "s", "alone", 1, 40.0, "NONE", job={**job, "arm": "alone"})
    make_run(tmp_path / "s", "kd", 1, 50.0, job={**job, "arm": "kd"})
    make_run(tmp_path / "t", "kd", 1, 60.0, job={**job, "arm": "kd", "overrides": ["SOLVER.LR", "0.2"]})
    whole, trial = tables_of(tmp_path)
    assert (labels(whole), labels(trial)) == (["alone", "kd"], ["kd"])


def test_a_suite_names_a_users_own_images_but_never_renames_a_known_data_set(tmp_path):
    words = {"suite": "s", "images": "my photographs"}
    make_run(tmp_path / "own", "kd", 1, 70.0, dataset="npz", data="npz-9-ab", job=words)
    make_run(tmp_path / "known", "kd", 1, 70.0, job=words)
    assert [tables_of(tmp_path / name)[0].images for name in ("own", "known")] == ["my photographs", "digits100"]


def test_times_are_medians_so_that_one_busy_hour_does_not_speak_for_all(tmp_path):
    for seed, seconds in enumerate((60.0, 61.0, 900.0), 1):
        make_run(tmp_path, "kd", seed, 50.0, seconds=seconds)
    (line,) = layout.cost(tables_of(tmp_path)[0]).rows
    assert (line["seconds"].value, line["s / epoch"].value) == (61.0, 61.0 / 6)


def test_the_cost_of_an_epoch_is_compared_with_kds_where_kd_is_in_the_table(tmp_path):
    make_run(tmp_path, "kd", 1, 50.0, seconds=60.0)
    make_run(tmp_path, "simkd", 1, 50.0, "SIMKD", seconds=90.0)
    cost = layout.cost(tables_of(tmp_path)[0])
    assert {line["method"].text: line["to KD"].text for line in cost.rows} == {"KD": "1.00", "SIMKD": "1.50"}
    (tmp_path / "kd/seed_1/result.json").unlink()
    cost = layout.cost(tables_of(tmp_path)[0])
    assert "to KD" not in cost.columns and layout.TO_KD not in cost.notes


# Runs without a result, and lost teachers


def test_a_failed_run_is_named_and_takes_the_verdict_away(tmp_path):
    for seed in range(1, 7):
        make_run(tmp_path, "kd", seed, 20.0 + 10 * seed)
        make_run(tmp_path, "simkd", seed, 20.0 + 11 * seed, "SIMKD")
    (tmp_path / "simkd/seed_5/result.json").unlink()
    (tmp_path / "simkd/seed_5/job.json").write_text(json.dumps({"status": "failed", "reason": "loss_feat is nan"}))
    (table,) = tables_of(tmp_path)
    assert row(table, "SIMKD").differences["KD"].verdict == "no verdict: 1 run missing"
    assert layout.results(table).rows[1]["n"].text == "5 of 6"
    assert layout.warnings(table) == ["SIMKD: no result for seed 5. Seed 5 failed: loss_feat is nan"]


def test_a_run_that_failed_before_its_configuration_was_written_takes_the_verdict_away_too(tmp_path):
    for seed in range(1, 7):
        for arm, method in (("kd", "KD"), ("simkd", "SIMKD")):
            make_run(tmp_path, arm, seed, 20.0 + 10 * seed, method, precision="fp32", job={"suite": "s", "arm": arm})
    for name in ("result.json", "cfg.yaml", "about.json"):
        (tmp_path / "simkd/seed_5" / name).unlink()
    failed = {"suite": "s", "arm": "simkd", "status": "failed", "reason": "needs a teacher, which failed"}
    (tmp_path / "simkd/seed_5/job.json").write_text(json.dumps(failed))
    (table,) = tables_of(tmp_path)
    assert [(one.label, len(one.runs), len(one.missing)) for one in table.rows] == [("kd", 6, 0), ("simkd", 5, 1)]
    assert row(table, "simkd").differences["kd"].verdict == "no verdict: 1 run missing"


def test_a_stopped_run_is_missing_with_its_reason(tmp_path):
    make_run(tmp_path, "kd", 1, 50.0)
    folder = make_run(tmp_path, "atsc", 1, None, "ATSC")
    (folder / "stopped.json").write_text(json.dumps({"epoch": 3, "reason": "the teacher has collapsed"}))
    told = "atsc: no result for seed 1. Seed 1 stopped in epoch 3: the teacher has collapsed"
    assert [line.lower() for line in layout.warnings(tables_of(tmp_path)[0])] == [told.lower()]


def test_a_collapsed_run_counts_and_is_named(tmp_path):
    alive = {"teacher_top1": 80.0, "start_top1": 90.0, "teacher_agreement": 0.9, "feature_scale": 0.6}
    log = [{"epoch": 1, "top1": 9.0, **alive}, {"epoch": 2, "top1": 1.0, **alive, "feature_scale": 0.4}]
    make_run(tmp_path, "atsc", 1, 1.0, "ATSC", log=log)
    make_run(tmp_path, "atsc", 2, 71.0, "ATSC")
    (table,) = tables_of(tmp_path)
    assert layout.results(table).rows[0]["top-1 last"].value == 36.0
    assert layout.warnings(table) == ["ATSC: 1 of 2 runs collapsed and are counted: seed 1 in epoch 2 (1.00)."]


def test_a_teacher_that_fell_and_came_back_is_named_and_is_no_collapse(tmp_path):
    alive = {"teacher_top1": 80.0, "start_top1": 90.0, "teacher_agreement": 0.9, "feature_scale": 0.6}
    log = [{"epoch": 1, "top1": 9.0, **alive, "teacher_agreement": 0.49}, {"epoch": 2, "top1": 70.0, **alive}]
    make_run(tmp_path, "atsc", 1, 70.0, "ATSC", log=log)
    (table,) = tables_of(tmp_path)
    fell = "1 of 1 runs had a teacher that fell below half of its start and came back: seed 1 in epoch 1 (70.00)."
    assert layout.warnings(table) == [f"ATSC: {fell}"]
    assert layout.teachers(table).rows[0]["collapsed"].value == 0


@pytest.mark.parametrize(("agreement", "epoch"), [(0.6, None), (0.4, 1), (math.nan, 1)])
def test_one_lost_teacher_of_several_makes_a_collapse(tmp_path, agreement, epoch):
    names = {"teacher_top1": 80.0, "start_top1": 90.0, "teacher_agreement": 0.9, "feature_scale": 0.9}
    line = {f"t{number}_{name}": value for number in (1, 2) for name, value in names.items()}
    folder = make_run(tmp_path, "atsc", 1, 1.0, "ATSC", log=[{"epoch": 1, **line, "t2_teacher_agreement": agreement}])
    assert read_run(folder).collapsed == epoch


# Teachers


def test_teachers_after_the_run_are_averaged_one_by_one_over_the_seeds(tmp_path):
    for seed, after in ((1, [90.0, 80.0]), (2, [92.0, 84.0])):
        lists = {"teacher": ["resnet20"] * 2, "teacher_top1_before": [93.0, 88.0], "teacher_top1_after": after}
        make_run(tmp_path, "two", seed, 70.0, "ATSC_MULTI", **lists)
    (table,) = tables_of(tmp_path)
    (line,) = layout.results(table).rows
    assert line["teacher before → after"].text == "93.00 / 88.00 → 91.00 / 82.00"
    assert table.pair == "resnet20 x 2 -> resnet8"


def test_a_teacher_for_every_seed_is_shown_as_mean_and_range(tmp_path):
    for seed in range(1, 6):
        tops = {"teacher_top1_before": 80.0 + seed, "teacher_top1_after": 80.0 + seed}
        make_run(tmp_path, "kd", seed, 70.0, cfg={"TEACHER": {"SEED": seed, "EPOCHS": 10}}, **tops)
    (table,) = tables_of(tmp_path)
    assert layout.results(table).rows[0]["teacher before → after"].text == "83.00 (81.00 to 85.00)"
    assert "Every student seed has a teacher of its own" in " ".join(layout.notes(table))


def test_one_teacher_is_said_and_several_are_told_apart(tmp_path):
    make_run(tmp_path / "one", "kd", 1, 50.0)
    assert "One teacher: differences" in " ".join(layout.notes(tables_of(tmp_path / "one")[0]))
    for teacher in (1, 2):
        for seed in (1, 2, 3):
            cfg = {"TEACHER": {"SEED": teacher, "EPOCHS": 10}}
            make_run(tmp_path / f"several/t{teacher}", "kd", seed, 50.0 + 10 * teacher, cfg=cfg)
    told = " ".join(layout.notes(tables_of(tmp_path / "several")[0]))
    assert "2 teachers crossed" in told
    assert "Top-1 behind each teacher (seed 1 / seed 2): KD 60.00 / 70.00." in told


# Published figures


def test_published_rows_are_those_of_their_file_and_keep_the_families_apart():
    """73.33 is KD of CRD's teachers; 74.42 and SimKD's 78.08 are the SimKD repository's own, a family of their own."""
    rows = published.figures()
    assert len(rows) >= 412
    assert {one["family"] for one in rows} == {"mdistiller", "simkd", "sskd", "quoted", "own"}
    assert all(10 < float(one["top1"]) < 90 and one["source"] for one in rows)
    pair = ("cifar100", "resnet32x4", "resnet8x4")
    assert [published.figure(*pair, method)["top1"] for method in ("KD", "DKD")] == ["73.33", "76.32"]
    assert published.figure(*pair, "SIMKD") is None
    assert [published.figure(*pair, method, "simkd")["top1"] for method in ("KD", "SIMKD")] == ["74.42", "78.08"]
    assert published.figure("digits100", "resnet20", "resnet8", "KD") is None


CIFAR = {"dataset": "cifar100", "data": "cifar100-50000", "teacher": "resnet32x4", "student": "resnet8x4"}


@pytest.mark.parametrize(
    ("tops", "changes", "figure", "said"),
    [
        # t(.975, 4) = 2.776, std .158: 73.30 +- .196 lies within 73.33 +- .5
        ((73.1, 73.2, 73.3, 73.4, 73.5), {"epochs": 240}, "73.33", "yes"),
        # The same mean with ten times the spread was "yes" within two standard deviations: +- 1.96 shows nothing.
        ((71.3, 72.3, 73.3, 74.3, 75.3), {"epochs": 240}, "73.33", "not shown: [71.34, 75.26]"),
        ((74.2, 74.3, 74.1), {"epochs": 240}, "73.33", "no"),
        ((73.3, 73.3, 73.3), {"epochs": 240}, "73.33", "yes"),
        ((73.2, 73.5), {"epochs": 240}, "73.33", "not said: n = 2 < 3"),
        ((73.2, 73.5, 73.1), {"epochs": 20}, "73.33", "not tried: 20 of 240 epochs"),
        ((73.2, 73.5, 73.1), {"epochs": 240, "image_size": 64}, None, ""),
        ((73.2, 73.5, 73.1), {"epochs": 240, "teacher": "resnet56"}, None, ""),
        ((73.2, 73.5, 73.1), {"epochs": 240, "dataset": "npz"}, None, ""),
        ((73.2, 73.5, 73.1), {"epochs": 240, "job": {"suite": "s", "overrides": ["SOLVER.LR", "0.2"]}}, None, ""),
        ((73.2, 73.5, 73.1), {"epochs": 240, "job": {"suite": "s", "common": {"SOLVER.LR": 0.2}}}, None, ""),
        ((73.3, 73.3, 73.3), {"epochs": 240, "job": {"suite": "s", "common": {"SOLVER.EPOCHS": 240}}}, "73.33", "yes"),
    ],
)
def test_reproduced_is_an_interval_within_half_a_point_of_the_figure(tmp_path, tops, changes, figure, said):
    for seed, top1 in enumerate(tops, 1):
        make_run(tmp_path, "kd", seed, top1, **{**CIFAR, **changes})
    (table,) = tables_of(tmp_path)
    (only,) = table.rows
    assert (only.published["top1"] if only.published else None) == figure
    assert published.reproduced(table, only) == said


def test_a_variant_of_a_method_has_no_published_figure_and_simkds_is_named_below(tmp_path):
    make_run(tmp_path, "kd,KD.TEMPERATURE=1", 1, 73.0, **CIFAR)
    make_run(tmp_path, "simkd", 1, 78.0, "SIMKD", **CIFAR)
    (table,) = tables_of(tmp_path)
    assert [one.published for one in table.rows] == [None, None]
    assert any("not comparable: SIMKD 78.08" in note for note in layout.notes(table))


def test_a_figure_of_a_recipe_of_its_own_is_named_below(tmp_path):
    """71.52 is DML's of SHAKE's poster, where the teacher begins from fresh weights; no other family has the method."""
    make_run(tmp_path, "dml", 1, 71.0, "DML", **{**CIFAR, "teacher": "resnet110", "student": "resnet20"})
    (table,) = tables_of(tmp_path)
    assert table.rows[0].published is None
    assert any("not comparable: DML 71.52 (SHAKE" in note for note in layout.notes(table))


def test_published_teachers_of_which_a_part_learns_are_named_below_with_the_nearest_module(tmp_path):
    make_run(tmp_path, "adaptkd", 1, 71.0, "ADAPTKD", **{**CIFAR, "teacher": "resnet110", "student": "resnet20"})
    (table,) = tables_of(tmp_path)
    assert table.rows[0].published is None
    (note,) = [note for note in layout.notes(table) if "not comparable: ADAPTKD 71.34" in note]
    assert re.findall(r"(7\d\.\d\d) \(.*?MODULE (\w+)\)", note) == [
        ("71.34", "logit_adapter"), ("71.05", "fc"), ("71.76", "all")
    ]  # fmt: skip


def test_every_published_figure_is_of_networks_that_a_host_lists():
    for one in published.figures():
        known = host.models_for(one["dataset"])
        assert one["teacher"] in known and one["student"] in known, one
