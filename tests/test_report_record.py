"""Results to commit: what is recorded is read back as the runs were, more can be added, and nothing is mixed."""

import csv
import json

import pytest
from run_folders import make_run

from atsc_plugin import report
from atsc_plugin.__main__ import main
from atsc_plugin.report import markdown
from atsc_plugin.report.runs import read_runs
from atsc_plugin.report.text import lines as text_lines

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture
def suite(tmp_path):
    """Two arms of five seeds, one run failed, and a teacher that keeps learning."""
    for seed in range(1, 6):
        job = {"suite": "s", "suite_file": "s.yaml", "notes": ["a note"], "against": ["kd"], "trials": 0}
        log = [{"epoch": e, "top1": 10.0 * e, "teacher_agreement": 1 / 3, "bad": float("nan")} for e in (1, 2)]
        make_run(tmp_path / "s", "kd", seed, 50.0 + seed, job={**job, "arm": "kd"})
        cfg = {"ATSC": {"DRIFT": {"WEIGHT": 10.0}, "TEACHER": {"LR_SCALE": 1.0}}}
        make_run(tmp_path / "s", "atsc", seed, 50.0 + 2 * seed, "ATSC", log=log, cfg=cfg, job={**job, "arm": "atsc"})
    (tmp_path / "s/kd/seed_5/result.json").unlink()
    facts = {"suite": "s", "arm": "kd", "status": "failed", "reason": "out of memory"}
    (tmp_path / "s/kd/seed_5/job.json").write_text(json.dumps(facts))
    return tmp_path / "s"


def table_text(place):
    from atsc_plugin.report import layout

    tables, leftovers = report.compared([place])
    return text_lines(layout.sections(tables), leftovers)


def test_the_report_of_a_record_is_that_of_its_run_directories(suite, tmp_path, capsys):
    record = tmp_path / "record"
    assert main(["report", str(suite), "--record", str(record)]) == 0
    assert "recorded: 10 runs, 0 in place of older ones" in capsys.readouterr().out
    assert table_text(record) == table_text(suite)
    assert {"README.md", "runs.csv", "curves.csv", "suite.json"} <= {path.name for path in record.iterdir()}
    before, after = (sorted(read_runs([place])[0], key=lambda run: run.values["run"]) for place in (suite, record))
    for one, other in zip(before, after, strict=True):
        assert one.values == other.values
        assert other.keys.items() <= one.keys.items()
        assert one.keys.keys() - other.keys.keys() <= {"EXPERIMENT.NAME", "EXPERIMENT.SEED"}
        assert [line["epoch"] for line in one.log] == [line["epoch"] for line in other.log]


def test_columns_are_the_fields_and_keys_only_those_that_differ(suite, tmp_path):
    main(["report", str(suite), "--record", str(tmp_path / "record")])
    with open(tmp_path / "record/runs.csv", newline="") as file:
        rows = {line["run"]: line for line in csv.DictReader(file)}
    assert json.loads(rows["atsc/seed_1"]["keys"]) == {
        "ATSC.DRIFT.WEIGHT": 10.0, "ATSC.TEACHER.LR_SCALE": 1.0, "DISTILLER.TYPE": "ATSC",
    }  # fmt: skip
    assert rows["atsc/seed_1"]["top1_last"] == "52.0"
    assert (rows["kd/seed_5"]["status"], rows["kd/seed_5"]["reason"]) == ("failed", "out of memory")
    shared = json.loads((tmp_path / "record/suite.json").read_text())
    assert (shared["notes"], shared["against"], shared["keys"]["SOLVER.LR"]) == (["a note"], ["kd"], 0.05)
    with open(tmp_path / "record/curves.csv", newline="") as file:
        curves = list(csv.DictReader(file))
    assert (len(curves), curves[1]["run"], curves[1]["epoch"]) == (10, "atsc/seed_1", "2")
    assert (curves[1]["teacher_agreement"], curves[1]["bad"]) == ("0.333333", "NaN")


def test_a_note_that_a_suite_got_on_its_way_stays_in_whatever_order_its_runs_are_recorded(suite, tmp_path):
    record = tmp_path / "record"
    make_run(tmp_path / "later", "atsc", 6, 60.0, job={"suite": "s", "arm": "atsc", "notes": ["a note", "a new one"]})
    for place in (suite, tmp_path / "later", suite):
        assert main(["report", str(place), "--record", str(record)]) == 0
    assert json.loads((record / "suite.json").read_text())["notes"] == ["a note", "a new one"]


def test_more_runs_are_added_and_a_run_of_the_same_name_is_replaced(suite, tmp_path, capsys):
    record = str(tmp_path / "record")
    main(["report", str(suite / "kd"), "--record", record])
    make_run(tmp_path / "again", "kd", 1, 99.0, job={"suite": "s", "arm": "kd"})
    capsys.readouterr()
    assert main(["report", str(suite / "atsc"), str(tmp_path / "again"), "--record", record]) == 0
    assert "recorded: 6 runs, 1 in place of older ones; 10 in" in capsys.readouterr().out
    runs = {run.values["run"]: run for run in read_runs([record])[0]}
    assert (len(runs), runs["kd/seed_1"].get("top1_last")) == (10, 99.0)
    kept = (tmp_path / "record/runs.csv").read_text()
    assert main(["report", "--record", record]) == 0  # the page alone
    assert (tmp_path / "record/runs.csv").read_text() == kept


def test_the_page_is_checked_against_its_files(suite, tmp_path, capsys):
    record = tmp_path / "record"
    main(["report", str(suite), "--record", str(record)])
    assert main(["report", "--record", str(record), "--check"]) == 0
    told = json.loads((record / "suite.json").read_text()) | {"about": "What it is.", "primary": None}
    (record / "suite.json").write_text(json.dumps(told))
    assert main(["report", "--record", str(record), "--check"]) == 1
    assert f"run: report --record {record}" in capsys.readouterr().out
    assert main(["report", "--record", str(record)]) == 0
    assert "What it is." in (record / "README.md").read_text()
    assert main(["report", str(suite), "--record", str(record)]) == 0  # all runs anew: what was written by hand stays
    assert "What it is." in (record / "README.md").read_text()


def test_a_page_written_by_hand_keeps_its_words_and_gets_the_tables_between_its_marks(suite, tmp_path, capsys):
    record = tmp_path / "record"
    record.mkdir()
    page = record / "README.md"
    page.write_text("The plan.\n")
    assert main(["report", str(suite), "--record", str(record)]) == 2
    assert markdown.BEGIN in capsys.readouterr().err
    assert page.read_text() == "The plan.\n"
    page.write_text(f"The plan.\n\n{markdown.BEGIN}\n{markdown.END}\n\nAfterwards.\n")
    for _ in range(2):  # the tables replace those of the time before
        assert main(["report", "--record", str(record)]) == 0
        text = page.read_text()
        assert text.startswith("The plan.\n\n<!--") and text.endswith("-->\n\nAfterwards.\n")
        assert text.count("### Cost") == 1
    assert main(["report", "--record", str(record), "--check"]) == 0
    page.write_text(text.replace("### Cost", "### Price"))
    assert main(["report", "--record", str(record), "--check"]) == 1


def test_the_rows_to_compare_with_that_were_once_named_hold_when_more_is_recorded(tmp_path):
    for seed in (1, 2):
        for arm, method in (("kd", "KD"), ("simkd", "SIMKD")):
            make_run(tmp_path / f"{seed}", arm, seed, 50.0, method, job={"suite": "s", "arm": arm, "against": []})
    record = tmp_path / "record"
    main(["report", str(tmp_path / "1"), "--record", str(record), "--against", "kd"])
    main(["report", str(tmp_path / "2"), "--record", str(record)])
    assert json.loads((record / "suite.json").read_text())["against"] == ["kd"]


def test_runs_and_records_may_be_mixed_and_a_run_counts_once(suite, tmp_path):
    record = tmp_path / "record"
    main(["report", str(suite / "kd"), "--record", str(record)])
    (table,) = report.compared([record, suite])[0]
    assert sorted((row.label, len(row.runs)) for row in table.rows) == [("atsc", 5), ("kd", 4)]


def test_two_suites_or_two_runs_of_one_name_are_refused_and_nothing_is_written(tmp_path, capsys):
    for name in ("one", "other"):
        make_run(tmp_path / name, "kd", 1, 50.0, job={"suite": name, "arm": "kd"})
        make_run(tmp_path / name / "deeper", name, 1, 50.0, job={"suite": name, "arm": "kd"})
    assert main(["report", str(tmp_path), "--record", str(tmp_path / "record")]) == 2
    assert "are both called kd/seed_1; record one suite a folder" in capsys.readouterr().err
    words = [str(tmp_path / name / "deeper") for name in ("one", "other")]
    assert main(["report", *words, "--record", str(tmp_path / "record")]) == 2
    assert "would hold runs of one, other; record one suite a folder" in capsys.readouterr().err
    assert not list((tmp_path / "record").iterdir())


def test_a_recorded_command_does_not_name_the_place_of_the_checkout(tmp_path):
    for seed, script in ((1, "/home/me/it/atsc_plugin/__main__.py"), (2, "/data/tools/train.py")):
        folder = make_run(tmp_path / "s", "kd", seed, 50.0)
        command = f"{script} train --cfg x.yaml LOG.PREFIX /data/tools"
        about = {"command": command, "resumed": [{"from": "after epoch 1", "command": command}]}
        (folder / "about.json").write_text(json.dumps(about))
    main(["report", str(tmp_path / "s"), "--record", str(tmp_path / "record")])
    runs = read_runs([tmp_path / "record"])[0]
    commands = [run.get("command") for run in runs]
    assert [entry["command"] for run in runs for entry in run.get("resumed")] == commands
    assert commands == [
        "atsc_plugin/__main__.py train --cfg x.yaml LOG.PREFIX /data/tools",
        "tools/train.py train --cfg x.yaml LOG.PREFIX /data/tools",
    ]


def test_a_damaged_line_is_told_and_keeps_more_from_being_recorded(suite, tmp_path, capsys):
    record = tmp_path / "record"
    main(["report", str(suite), "--record", str(record)])
    text = (record / "runs.csv").read_text()
    (record / "runs.csv").write_text(text.replace("52.0", "many", 1))
    capsys.readouterr()
    assert main(["report", str(record)]) == 0
    assert f"skipped: {record}: runs.csv line 2: not what a run writes: top1_last is 'many'" in capsys.readouterr().out
    assert main(["report", str(suite), "--record", str(record)]) == 2
    assert "Mend that line" in capsys.readouterr().err
