"""Arms that start from the teacher that another arm's run left."""

import json
from pathlib import Path

import pytest
import yaml
from test_leaderboard import ROOT, SMALL

from atsc_plugin.__main__ import main
from atsc_plugin.report import compared
from atsc_plugin.report.layout import again

SIMKD, ATSC = (str(ROOT / f"configs/quickstart/{name}.yaml") for name in ("simkd", "atsc"))
MOVED = {"ATSC.DRIFT.WEIGHT": 1.0}
ARMS = {"after": {"cfg": SIMKD, "adapted_by": "atsc"}, "atsc": {"cfg": ATSC, "set": MOVED}, "simkd": {"cfg": SIMKD}}


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(arms=ARMS):
        common = {**SMALL, "DISTILLER.TEACHER": "resnet8"}
        content = {"name": "s", "seeds": [1], "teacher_seeds": [1, 2], "common": common, "arms": arms}
        Path("suite.yaml").write_text(yaml.safe_dump(content))
        return ["leaderboard", "--suite", "suite.yaml", "--devices", "cpu"]

    return write


def result(name):
    return json.loads(Path(f"output/s/{name}/seed_1/result.json").read_text())


def test_a_run_starts_from_the_teacher_that_the_other_run_of_its_seed_and_teacher_left(suite, capsys):
    assert main([*suite(), "--jobs", "2"]) == 0
    starts = [result(f"after,teacher{seed}")["teacher_top1_before"] for seed in (1, 2)]
    assert starts == [result(f"atsc,teacher{seed}")["teacher_top1_after"] for seed in (1, 2)]
    config = yaml.safe_load(Path("output/s/after,teacher2/seed_1/cfg.yaml").read_text())
    assert config["DISTILLER"]["TEACHER_CKPT"] == "output/s/atsc,teacher2/seed_1/teacher_last"
    (table,) = compared(["output/s"])[0]
    after = next(row for row in table.rows if row.label == "after")
    assert {run.teacher_id for run in after.runs} == {"seed 1", "seed 2"}  # paired with the other rows' teachers
    assert again(after.first) == "atsc-plugin leaderboard --suite suite.yaml --arms atsc after --output again"


def test_without_the_run_that_leaves_the_teacher_nothing_starts(suite, capsys):
    assert main([*suite(), "--arms", "after"]) == 2
    assert "output/s/atsc,teacher1/seed_1 leaves; add atsc to --arms" in capsys.readouterr().err
    assert not Path("output").exists()


@pytest.mark.parametrize(
    ("source", "told"),
    [("atscc", "unknown arm atscc; did you mean atsc?"), ("after", "unknown arm after"), ([1], "unknown arm [1]"),
     ("simkd", "adapted_by wants an arm of ATSC, and simkd is of SIMKD")],
)  # fmt: skip
def test_an_arm_that_leaves_no_teacher_is_told(suite, capsys, source, told):
    assert main([*suite({**ARMS, "after": {"cfg": SIMKD, "adapted_by": source}}), "--dry-run"]) == 2
    assert told in capsys.readouterr().err


def test_an_arm_needs_the_other_on_every_pair_of_its_own(suite, capsys, tmp_path):
    words = suite()
    content = yaml.safe_load(Path("suite.yaml").read_text())
    arms = {"after": ARMS["after"], "atsc": {**ARMS["atsc"], "pairs": ["a_b"]}}
    Path("suite.yaml").write_text(yaml.safe_dump({**content, "pairs": ["a_b", "c_d"], "arms": arms}))
    assert main([*words, "--dry-run"]) == 2
    assert "arm after: atsc has no run on c_d" in capsys.readouterr().err


def test_a_teacher_that_never_came_is_a_failure_with_its_reason(suite, capsys):
    """The source diverges; the run behind it is not started and the rest goes on."""
    arms = {**ARMS, "atsc": {"cfg": ATSC, "set": {"SOLVER.LR": 1.0e30, "ATSC.DRIFT.WEIGHT": 0.0}}}
    assert main(suite(arms)) == 1
    err = capsys.readouterr().err
    assert "failed: after,teacher1, seed 1: status 2: error: output/s/atsc,teacher1/seed_1 is no finished run" in err
    assert result("simkd,teacher2")["method"] == "SIMKD"
