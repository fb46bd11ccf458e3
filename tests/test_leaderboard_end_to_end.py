"""One suite for real: check, teacher, a run whose teacher learns, a run from the teacher it left, the page."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from forks import python_run

from atsc_plugin.__main__ import main
from atsc_plugin.leaderboard import jobs, runner

QUICK = Path(__file__).resolve().parents[1] / "configs" / "quickstart"
SMALL = {"DATASET.DIGITS100.TRAIN_IMAGES": 100, "DATASET.DIGITS100.VAL_IMAGES": 100, "DISTILLER.TEACHER": "resnet8",
         "DATASET.DIGITS100.TEST_IMAGES": 100, "SOLVER.EPOCHS": 1, "TEACHER.EPOCHS": 1}  # fmt: skip


class Forked:
    """subprocess.Popen and subprocess.run of a command of ours, each in a process of its own."""

    pid = 0

    def __init__(self, argv, stdout=None, env=None, **_):
        done = python_run(argv, env=env)
        self.returncode, self.stdout, self.stderr = done.returncode, done.stdout.encode(), done.stderr.encode()
        if stdout is not None:
            stdout.write(self.stdout + self.stderr)

    def poll(self):
        return self.returncode


@pytest.fixture
def forked(monkeypatch):
    ours = SimpleNamespace(run=Forked, Popen=Forked, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(jobs, "subprocess", ours)
    monkeypatch.setattr(runner, "subprocess", ours)


def test_from_nothing_to_the_page_and_a_second_call_trains_nothing(here, capsys, forked):
    arms = {
        "after": {"cfg": str(QUICK / "simkd.yaml"), "adapted_by": "atsc"},
        "atsc": {"cfg": str(QUICK / "atsc.yaml"), "set": {"ATSC.DRIFT.WEIGHT": 1.0}, "display": "ATSC, drift 1"},
    }
    Path("s.yaml").write_text(yaml.safe_dump({"name": "s", "seeds": [1], "common": SMALL, "arms": arms}))
    words = ["leaderboard", "--suite", "s.yaml", "--devices", "cpu", "--jobs", "2"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 runs: 0 done, 2 to do" in said
    assert "teacher resnet8, seed 1: ok" in said
    (log,) = Path("output/s/configs").glob("teacher_resnet8_seed_1_*.log")
    assert "training one for 1 epochs" in log.read_text()
    assert "no teacher" not in Path("output/s/atsc/seed_1.log").read_text()  # its student found it
    left, after = (json.loads(Path(f"output/s/{arm}/seed_1/result.json").read_text()) for arm in ("atsc", "after"))
    assert after["teacher_top1_before"] == left["teacher_top1_after"]
    config = yaml.safe_load(Path("output/s/after/seed_1/cfg.yaml").read_text())
    assert config["DISTILLER"]["TEACHER_CKPT"] == "output/s/atsc/seed_1/teacher_last"
    assert json.loads(Path("output/s/atsc/seed_1/job.json").read_text())["display"] == "ATSC, drift 1"
    assert (here / "output/s/page/leaderboard.html").is_file()
    before = Path("output/s/after/seed_1/result.json").stat().st_mtime_ns
    assert main(words) == 0
    assert "2 runs: 2 done, 0 to do" in capsys.readouterr().out
    assert Path("output/s/after/seed_1/result.json").stat().st_mtime_ns == before
    arms["atsc"]["set"] = {"SOLVER.MOMENTUM": 0.8}
    Path("s.yaml").write_text(yaml.safe_dump({"name": "s", "seeds": [1], "common": SMALL, "arms": arms}))
    assert main(words) == 2
    assert "ATSC.DRIFT.WEIGHT was 1.0, asked 10.0; SOLVER.MOMENTUM was 0.9, asked 0.8" in capsys.readouterr().err
