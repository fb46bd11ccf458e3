"""The runner of suites: what it expands to, what it skips, that failures are listed and the rest goes on."""

import json
from pathlib import Path

import pytest
import yaml

from atsc_plugin import leaderboard
from atsc_plugin.__main__ import main
from atsc_plugin.errors import PluginError

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"DATASET.DIGITS100.TRAIN_IMAGES": 100, "DATASET.DIGITS100.VAL_IMAGES": 100,
         "DATASET.DIGITS100.TEST_IMAGES": 100, "SOLVER.EPOCHS": 1}  # fmt: skip


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        vanilla = str(ROOT / "configs/quickstart/vanilla.yaml")
        content = {
            "name": "s",
            "seeds": [1, 2],
            "common": SMALL,
            "arms": {"good": {"cfg": vanilla}, "bad": {"cfg": vanilla, "set": {"SOLVER.LR": -1}}},
        }
        Path("suite.yaml").write_text(yaml.safe_dump({**content, **changes}))
        return "suite.yaml"

    return write


def test_a_failing_arm_is_listed_the_rest_runs_and_a_second_call_skips_what_is_done(suite, capsys):
    assert main(["leaderboard", "--suite", suite()]) == 1
    said = capsys.readouterr()
    assert "4 runs: 0 done, 4 to do" in said.out
    assert "failed (status 2): bad, seed 1" in said.err
    assert "SOLVER.LR" in Path("output/s/bad/seed_1.log").read_text()
    assert json.loads(Path("output/s/good/seed_2/result.json").read_text())["seed"] == 2
    assert "2     " in said.out  # two seeds in one row of the table
    assert main(["leaderboard", "--suite", suite(), "--arms", "good"]) == 0
    assert "2 runs: 2 done, 0 to do" in capsys.readouterr().out


def test_jobs_come_seed_by_seed_with_the_arms_own_keys_in_their_config(suite, tmp_path):
    content = leaderboard.read_suite(suite())
    jobs = leaderboard.expand(content, [1, 2], ["good", "bad"], tmp_path / "o", write=True)
    assert [(job.arm, job.seed) for job in jobs] == [("good", 1), ("bad", 1), ("good", 2), ("bad", 2)]
    written = yaml.safe_load(jobs[1].config.read_text())
    assert written["SOLVER"]["LR"] == -1
    assert written["SOLVER"]["EPOCHS"] == 1
    assert written["EXPERIMENT"]["PROJECT"] == "s"
    assert jobs[3].folder == tmp_path / "o" / "bad" / "seed_2"


def test_a_dry_run_lists_and_starts_nothing(suite, capsys, tmp_path):
    assert main(["leaderboard", "--suite", suite(), "--dry-run", "--seeds", "3"]) == 0
    assert capsys.readouterr().out.count("to do  ") == 6
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": []}, "is no suite"),
        ({"arms": {"a": {"cfg": "none.yaml"}}}, "arm a is"),
        ({"arms": {"a": {"config": "x"}}}, "arm a is"),
    ],
)
def test_a_suite_that_cannot_run_is_told(suite, changes, told):
    with pytest.raises(PluginError, match=told):
        leaderboard.read_suite(suite(**changes))


@pytest.mark.parametrize("path", sorted((ROOT / "configs/leaderboard").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_suite_expands_to_configs_that_load(path, tmp_path, monkeypatch):
    import atsc_plugin
    from atsc_plugin.config import load_cfg

    monkeypatch.chdir(ROOT)
    atsc_plugin.register()
    suite = leaderboard.read_suite(path)
    for job in leaderboard.expand(suite, [1], list(suite["arms"]), tmp_path, write=True):
        assert job.arm == load_cfg(job.config).EXPERIMENT.NAME
