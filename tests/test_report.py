"""The report's command: what it prints and writes, and what becomes of folders that are no runs."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import RESULT, make_run, tables_of

from atsc_plugin import report
from atsc_plugin.__main__ import main
from atsc_plugin.report import layout, markdown, text
from atsc_plugin.report.runs import Run, cell, parsed, read_run

ROOT = Path(__file__).resolve().parents[1]
ALIVE = {"teacher_top1": 89.0, "start_top1": 90.0, "teacher_agreement": 0.9, "feature_scale": 1.0,
         "feature_motion": 0.1, "drift_kernels": 0.02, "drift_vectors": 0.01, "kappa": 2.0}  # fmt: skip


@pytest.fixture
def suite(tmp_path):
    """Vanilla, KD and SimKD with five seeds: SimKD minus KD is 1, 2, 3, 4, 5."""
    for seed in range(1, 6):
        make_run(tmp_path, "vanilla", seed, 10.0 + seed, "NONE")
        make_run(tmp_path, "kd", seed, 20.0 + 10 * seed, best=60.0)
        make_run(tmp_path, "simkd", seed, 20.0 + 11 * seed, "SIMKD", log=[{"epoch": 1, "top1": 1.0}])
    return tmp_path


def markdown_of(root):
    tables, leftovers = report.compared([root])
    return "\n".join(markdown.lines(layout.sections(tables), leftovers, []))


def test_it_loads_no_torch():
    code = "import sys; from atsc_plugin.commands import report; from atsc_plugin.report import record, page, text; " \
           "print('torch' in sys.modules)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_the_terminal_has_accuracies_differences_and_verdicts(suite, capsys):
    assert main(["report", str(suite)]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"SIMKD +5 +53\.00 \+- 17\.39 +53\.00 \+- 17\.39 +88\.50 +120 +60", said
    )  # mean of 31, 42, 53, 64, 75
    assert re.search(r"SIMKD .*\+3\.00 \[\+1\.04, \+4\.96\] higher \(Welch disagrees\)", said)
    assert said.count("Test: last epoch") == 1


@pytest.mark.parametrize("width", [80, 200])
def test_the_terminals_width_holds_every_line_of_a_wide_table(width):
    """Six references and names of 34 letters: the table is cut between columns, each piece with the rows' names."""
    tables, _ = report.compared([ROOT / "docs/results/cifar10_small"])
    lines = text.lines(layout.sections(tables), [], width)
    assert max(map(len, lines)) <= width
    pieces = sum(set(line) == {"-"} for line in lines)
    assert pieces == {80: 9, 200: 3}[width]
    assert sum(line.startswith("projected KD ") for line in lines) == pieces


def test_one_seed_a_row_is_said(tmp_path, capsys):
    make_run(tmp_path, "vanilla", 1, 10.0, "NONE")
    make_run(tmp_path, "kd", 1, 30.0)
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"KD +\+20\.00", said)
    assert "One seed a row" in said


def test_a_log_line_of_an_epoch_that_no_run_has_is_left_out(tmp_path):
    log = [{"epoch": 1, "top1": 2.0}, {"epoch": 10**16, "top1": 3.0}, {"epoch": True, "top1": 4.0}]
    assert read_run(make_run(tmp_path, "kd", 1, 50.0, log=log)).log == [{"epoch": 1, "top1": 2.0}]


def test_rows_are_named_by_the_methods_own_name_where_the_result_has_one(tmp_path):
    make_run(tmp_path, "a", 1, 50.0, "OURS", method_name="Ours (fused)")
    make_run(tmp_path, "b", 1, 50.0, "KD")
    make_run(tmp_path, "c", 1, 50.0, "NONE")
    assert {row.label for row in tables_of(tmp_path)[0].rows} == {"Ours (fused)", "KD", "vanilla"}


def test_write_returns_the_pages_and_json_prints_the_flat_table(suite, tmp_path, capsys):
    written = report.write([suite], tmp_path / "page")
    assert all(path.is_file() for path in written)
    assert [path.name for path in written][:3] == ["leaderboard.html", "leaderboard.md", "leaderboard.csv"]
    assert main(["report", str(suite), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 15
    assert {row["run"] for row in rows} >= {"kd/seed_1", "simkd/seed_5"}


def test_a_record_without_curves_has_no_picture_and_names_neither(suite, tmp_path):
    record = tmp_path / "record"
    assert main(["report", str(suite / "kd"), "--record", str(record)]) == 0
    assert {path.name for path in record.iterdir()} == {"README.md", "runs.csv", "suite.json"}
    page = (record / "README.md").read_text()
    assert "from `runs.csv` and `suite.json`" in page and "curves.csv" not in page and "figures.png" not in page


def test_markdown_and_csv_carry_figures_sources_and_a_command(suite, tmp_path, without_plots):
    report.write([suite], tmp_path / "page")
    text = (tmp_path / "page" / "leaderboard.md").read_text()
    for part in ("| SIMKD | 5 | 53.00 ± 17.39 |", "+3.00 \\[+1.04, +4.96\\]", "abc1234", "| 1, 2, 3, 4, 5 |",
                 "`atsc-plugin train --cfg"):  # fmt: skip
        assert part in text, part
    with open(tmp_path / "page" / "leaderboard.csv", newline="") as file:
        rows = {line["method"]: line for line in csv.DictReader(file)}
    assert float(rows["SIMKD"]["minus KD [95 %]"]) == 3.0
    assert float(rows["SIMKD"]["minus KD [95 %] low"]) == pytest.approx(1.0367, abs=1e-4)
    assert rows["SIMKD"]["top-1 last by seed"].startswith("seed 1: 31.0; seed 2: 42.0")
    assert (rows["KD"]["extra"], rows["KD"]["torch"]) == ("20", '"2.9"')


def test_calibration_is_shown_where_it_was_measured(suite, tmp_path, without_plots):
    assert "| ECE |" not in markdown_of(suite)
    for seed in (1, 2):
        make_run(tmp_path / "new", "kd", seed, 50.0, ece=0.05 * seed, nll=1.5)
    text = markdown_of(tmp_path / "new")
    assert "| ECE | NLL |" in text
    assert "0.0750 ± 0.0354 | 1.5000 ± 0.0000" in text  # .05 and .10
    main(["report", str(tmp_path / "new"), "--record", str(tmp_path / "record")])
    assert "0.0750 ± 0.0354 | 1.5000 ± 0.0000" in markdown_of(tmp_path / "record")  # by way of runs.csv


def test_teachers_that_keep_learning_have_a_table_of_their_last_epoch(tmp_path):
    """Mean over the runs, several teachers side by side; a method whose teacher only teaches has no line."""
    make_run(tmp_path, "kd", 1, 70.0, log=[{"epoch": 1, "top1": 2.0}])
    for seed, motion in ((1, 0.1), (2, 0.2)):
        log = [{"epoch": 1, **ALIVE, "feature_motion": 0.9}, {"epoch": 2, **ALIVE, "feature_motion": motion}]
        make_run(tmp_path, "atsc", seed, 70.0, "ATSC", log=log)
    line = {f"t{k}_{name}": value + (0.3 if k == 2 else 0) for k in (1, 2) for name, value in ALIVE.items()}
    make_run(tmp_path, "two", 1, 70.0, "ATSC_MULTI", log=[{"epoch": 1, **line}])
    text = markdown_of(tmp_path)
    body = text.partition("### Teachers during training")[2].partition("###")[0]
    assert "| ATSC | 2 | 0.900 | 1.000 | 0.150 | 2.00% | 1.00% | 2.00 | 0 |" in body
    assert "| ATSC\\_MULTI | 1 | 0.900 / 1.200 | 1.000 / 1.300 | 0.100 / 0.400 |" in body
    assert "| KD |" not in body


def test_names_cannot_break_markdown_or_become_formulas(tmp_path, without_plots):
    make_run(tmp_path, "=1+1|`x`<b>", 1, 50.0)
    make_run(tmp_path, "=2+2", 1, 50.0)
    report.write([tmp_path], tmp_path / "page")
    text = (tmp_path / "page" / "leaderboard.md").read_text()
    assert "<b>" not in re.sub("`.*?`", "", text)  # a command in backticks shows what it holds
    assert "\\|" in text
    for line in csv.DictReader((tmp_path / "page" / "leaderboard.csv").open(newline="")):
        assert line["method"].startswith('"=')


def test_a_page_gets_the_table_between_its_marks_and_is_checked(suite, capsys):
    page = suite / "README.md"
    page.write_text("no marks")
    assert main(["report", str(suite), "--readme", str(page)]) == 2
    assert markdown.BEGIN in capsys.readouterr().err
    page.write_text(f"before\n{markdown.BEGIN}\nold\n{markdown.END}\nafter\n")
    words = ["report", str(suite), "--readme", str(page)]
    assert main([*words, "--against", "KD", "--check"]) == 1
    assert f"run: report {suite} --against KD --readme {page}" in capsys.readouterr().out
    assert "old" in page.read_text()
    assert main(words) == 0
    assert "| SIMKD | 5 | 53.00 ± 17.39 |" in page.read_text()
    assert page.read_text().endswith("after\n")
    assert main([*words, "--check"]) == 0


def test_readmes_table_is_that_of_the_recorded_results(monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["--against", "simkd", "simkd_equal_cost", "--readme", "README.md", "--check"]
    assert main(["report", "docs/results/finished_teacher", *words]) == 0


@pytest.mark.parametrize("name", sorted(path.parent.name for path in ROOT.glob("docs/results/*/runs.csv")))
def test_every_recorded_page_is_that_of_its_files(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["report", "--record", f"docs/results/{name}", "--check"]) == 0, capsys.readouterr().out[-300:]


# Folders that are no runs, and files by someone who means harm


HOSTILE = {
    "torn": {"cfg.yaml": "A: 1", "result.json": '{"method": "KD", "top1'},
    "foreign": {"cfg.yaml": "A: 1", "result.json": json.dumps({"accuracy": 1.0})},
    "nan": {"cfg.yaml": "A: 1", "result.json": json.dumps({**RESULT, "top1_last": float("nan")})},
    "huge": {"cfg.yaml": "A: 1", "result.json": json.dumps({**RESULT, "seconds": 10**400})},
    "zero": {"cfg.yaml": "A: 1", "result.json": json.dumps({**RESULT, "epochs": 0})},
    "headless": {"result.json": json.dumps(RESULT)},
    "no_yaml": {"cfg.yaml": "A: [", "result.json": json.dumps(RESULT)},
    "a_list": {"cfg.yaml": "A: 1", "result.json": "[1, 2]"},
    "a_number": {"cfg.yaml": "A: 1", "result.json": "3"},
    "deep": {"cfg.yaml": "A: 1", "result.json": "[" * 200_000},
    "deep_value": {"cfg.yaml": "A: 1", "result.json": '{"x": ' * 900 + "1" + "}" * 900},
    "job_list": {"cfg.yaml": "A: 1", "job.json": "[]", "result.json": json.dumps(RESULT)},
    "job_types": {"cfg.yaml": "A: 1", "job.json": '{"stretch": "x", "set": 3}', "result.json": json.dumps(RESULT)},
    "teacher": {"cfg.yaml": "A: 1", "result.json": json.dumps({**RESULT, "teacher": [["a"]]})},
    "seed": {"cfg.yaml": "A: 1", "result.json": json.dumps({**RESULT, "seed": [1]})},
    "bytes": {"cfg.yaml": "A: 1", "result.json": b"\xff\xfe"},
    "yaml_list": {"cfg.yaml": "- 1", "result.json": json.dumps(RESULT)},
    "yaml_self": {"cfg.yaml": "a: &a {b: *a}", "result.json": json.dumps(RESULT)},
    "yaml_bomb": {
        "cfg.yaml": "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 20)),
        "result.json": json.dumps(RESULT),
    },
    "yaml_merge": {
        "cfg.yaml": "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}\n" for k in range(1, 40)),
        "result.json": json.dumps(RESULT),
    },
    "yaml_deep": {"cfg.yaml": "a: " + "[" * 50_000, "result.json": json.dumps(RESULT)},
    "yaml_large": {"cfg.yaml": "a: 1\n" * 100_000, "result.json": json.dumps(RESULT)},
    "csv_bytes": {"runs.csv": b"run,status\n\xff,finished\n"},
    "csv_rows": {"runs.csv": "run,status,keys\na/seed_1,finished,[]\n"},
    "csv_cell": {"runs.csv": "run,status\n" + "x" * 200_000 + ",finished\n"},
    "suite_list": {"runs.csv": "run,status\n", "suite.json": "[]"},
}


def test_what_is_no_run_is_listed_with_its_reason_and_skipped(suite, capsys):
    for name, files in HOSTILE.items():
        (suite / name).mkdir()
        for file, content in files.items():
            (suite / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    make_run(suite, "half", 1, None)
    os.mkfifo(suite / "kd" / "result.json")  # nobody writes to it: opening it would wait for ever
    assert main(["report", str(suite)]) == 0
    said = capsys.readouterr().out
    for name in HOSTILE:
        assert f"skipped: {suite / name}: " in said, name
    assert f"unfinished: {suite / 'half' / 'seed_1'}" in said
    assert "Traceback" not in said


def test_a_folder_of_nothing_but_those_is_an_error_that_names_a_few(tmp_path, capsys):
    for number in range(30):
        (tmp_path / f"x{number}").mkdir()
        (tmp_path / f"x{number}" / "result.json").write_text("3")
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "No finished run under" in said
    assert "... and 20 more" in said
    assert main(["report", str(tmp_path / "absent")]) == 2
    assert main(["report"]) == 2


def test_escape_codes_and_broken_bytes_in_names_do_not_reach_the_terminal(tmp_path, capsys):
    make_run(tmp_path, "evil\x1b[31m\u202e", 1, 50.0, job={"suite": "s\x07", "arm": "a\x1b]0;x\x07"})
    os.mkdir(os.fsencode(tmp_path) + b"/\xff\xfe")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")) / "result.json").write_text("3")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    said = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in said)
    assert "a\\x1b]0;x\\x07" in said


@pytest.mark.parametrize("value", ["331e8", "73e4408", "7", "true", "NaN", "", "=1+1", "-x", 'a "b", c', "[1]", 1.5, 3,
                                   None, ["a", "b"], {"A.B": 1.0}, "∅ naïve"])  # fmt: skip
def test_a_cell_is_read_back_as_it_was(value):
    assert parsed(cell(value)) == value
    assert not cell(value).startswith(("=", "+", "@"))


def test_one_teacher_is_known_in_a_run_of_several_by_its_file(tmp_path):
    files = {"TYPE": "KD", "TEACHER_CKPT": "", "TEACHER_CKPTS": ["a/first.pth", "a/second.pth"]}
    folder = make_run(tmp_path, "several", 1, 50.0, cfg={"DISTILLER": files})
    assert read_run(folder).teacher_id == "file a/first.pth"


def test_teachers_whose_files_have_one_name_in_two_folders_are_two(tmp_path):
    for folder in ("a", "b"):
        files = {"TYPE": "KD", "TEACHER_CKPT": f"/somewhere/{folder}/seed_1/latest"}
        make_run(tmp_path / folder, "kd", 1, 50.0, cfg={"DISTILLER": files})
    (table,) = tables_of(tmp_path)
    assert [len(row.runs) for row in table.rows] == [2]


def test_the_precision_of_older_runs_is_what_their_device_made_of_auto():
    def of(device, **values):
        keys = {"SOLVER.AMP": values.pop("amp", "auto")}
        return Run({"status": "finished", "device": device, **values}, keys, [], {}, Path()).precision

    assert (of("cpu (1 threads)"), of("NVIDIA H200")) == ("fp32", "unknown")
    assert (of("NVIDIA H200", precision="bf16"), of("NVIDIA H200", amp="none")) == ("bf16", "fp32")
