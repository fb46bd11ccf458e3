"""Which runs share a table and which a row of it, and what a row is compared with."""

from run_folders import make_run, row, tables_of

from atsc_plugin import report
from atsc_plugin.reporting import cells


def test_other_test_images_and_another_choice_of_epoch_make_tables_of_their_own(tmp_path):
    make_run(tmp_path, "a", 1, 50.0, test_data="digits100-test-100")
    make_run(tmp_path, "b", 1, 60.0, test_data="digits100-test-200")
    make_run(tmp_path, "c", 1, 70.0, test_data="digits100-test-100", selected_on="test")
    assert [[run.name for run in table.runs] for table in tables_of(tmp_path)] == [["a"], ["b"], ["c"]]


def test_an_older_run_that_recorded_no_test_images_stays_beside_those_that_did(tmp_path):
    make_run(tmp_path, "a", 1, 50.0)
    make_run(tmp_path, "b", 1, 60.0, test_data="digits100-test-100")
    (table,) = tables_of(tmp_path)
    assert [run.name for run in table.runs] == ["a", "b"]


def test_other_augmentation_is_a_row_of_its_own(tmp_path):
    for seed, flip in ((1, "auto"), (2, "none")):
        make_run(tmp_path, f"{flip}/kd", seed, 50.0, cfg={"DATASET": {"TYPE": "digits100", "FLIP": flip}})
    (table,) = tables_of(tmp_path)
    assert [row.label for row in table.rows] == ["kd [DATASET.FLIP=auto]", "kd [DATASET.FLIP=none]"]


def test_an_arm_of_another_length_stands_beside_the_others_of_its_suite(tmp_path):
    """As ImageNet's: 100 epochs for all, 120 for ATSC. A trial of the suite is a comparison of its own."""
    job = {"suite": "s", "pair": "a_b"}
    for arm, method, epochs in (("kd", "KD", 100), ("simkd", "SIMKD", 100), ("atsc", "ATSC", 120)):
        make_run(tmp_path / "s", arm, 1, 60.0, method, epochs=epochs, job={**job, "arm": arm})
    make_run(tmp_path / "t", "kd", 1, 9.0, epochs=1, job={**job, "arm": "kd", "overrides": ["SOLVER.EPOCHS", "1"]})
    whole, trial = tables_of(tmp_path)
    assert [row.label for row in whole.rows] == ["kd", "simkd", "atsc (120 epochs)"]
    assert (whole.epochs, trial.epochs, set(row(whole, "atsc (120 epochs)").differences)) == (100, 1, {"KD", "SimKD"})


def test_an_arms_name_is_enough_where_the_row_is_called_more_than_that(tmp_path):
    make_run(tmp_path, "long", 1, 60.0, "SIMKD", epochs=12, job={"suite": "s", "arm": "long", "stretch": 2})
    make_run(tmp_path, "other", 1, 50.0, "SIMKD", job={"suite": "s", "arm": "other"})
    (table,) = report.gather([tmp_path], ["long"])[0]
    assert [line.label for line in table.rows] == ["long (x2 epochs)", "other"]
    assert row(table, "other").differences["long"].last.mean == -10.0


def test_where_the_images_lie_makes_no_trial(tmp_path):
    for seed, words in ((1, ["DATASET.ROOT", "here.npz"]), (2, ["DATASET.ROOT", "there.npz"])):
        make_run(tmp_path, "kd", seed, 60.0, job={"suite": "s", "arm": "kd", "overrides": words})
    (table,) = tables_of(tmp_path)
    assert (cells.overrides(table), len(table.runs)) == ("", 2)


def test_times_are_medians_so_that_one_busy_hour_does_not_speak_for_all(tmp_path):
    for seed, seconds in enumerate((60.0, 61.0, 900.0), 1):
        make_run(tmp_path, "kd", seed, 50.0, seconds=seconds)
    (table,) = tables_of(tmp_path)
    assert (cells.seconds_per_epoch(table.rows[0]), table.rows[0].median("seconds")) == (61 / 6, 61.0)


def test_a_suite_names_a_users_own_images_but_never_renames_a_known_data_set(tmp_path):
    words = {"suite": "s", "images": "my photographs"}
    make_run(tmp_path / "own", "kd", 1, 70.0, dataset="npz", data="npz-9-ab", job=words)
    make_run(tmp_path / "known", "kd", 1, 70.0, job=words)
    own, known = (cells.headings(tables_of(tmp_path / name))[0] for name in ("own", "known"))
    assert own.startswith("my photographs: resnet20 -> resnet8, 6 epochs")
    assert known.startswith("digits100: ")


def test_one_name_over_two_configurations_is_split_and_not_averaged(tmp_path):
    make_run(tmp_path, "a/kd", 1, 50.0)
    make_run(tmp_path, "b/kd", 2, 60.0, cfg={"SOLVER": {"EPOCHS": 6, "LR": 0.1}})
    (table,) = tables_of(tmp_path)
    assert [(row.label, len(row.runs)) for row in table.rows] == [("kd [SOLVER.LR=0.05]", 1), ("kd [SOLVER.LR=0.1]", 1)]


def test_a_student_without_teacher_stands_in_the_table_of_every_teacher(tmp_path):
    make_run(tmp_path, "vanilla", 1, 40.0, "NONE")
    make_run(tmp_path, "kd_a", 1, 50.0)
    make_run(tmp_path, "kd_b", 1, 55.0, teacher="resnet56")
    tables = tables_of(tmp_path)
    assert [[row.label for row in table.rows] for table in tables] == [["vanilla", "KD"], ["vanilla", "KD"]]
    assert [row(table, "KD").differences["vanilla"].last.mean for table in tables] == [10.0, 15.0]
