"""The runner of suites: what it expands to, what it skips, that failures are listed and the rest goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from run_folders import make_run

from atsc_plugin.__main__ import main
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.suites import jobs, launch
from atsc_plugin.suites.suite_file import read_suite

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"DATASET.DIGITS100.TRAIN_IMAGES": 100, "DATASET.DIGITS100.VAL_IMAGES": 100,
         "DATASET.DIGITS100.TEST_IMAGES": 100, "SOLVER.EPOCHS": 1, "TEACHER.EPOCHS": 1}  # fmt: skip
VANILLA, KD, RELEASED = (str(ROOT / f"configs/quickstart/{name}.yaml") for name in ("vanilla", "kd", "atsc_published"))


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        content = {"name": "s", "seeds": [1, 2], "common": SMALL, "arms": {"good": {"cfg": VANILLA}}}
        Path("suite.yaml").write_text(yaml.safe_dump({**content, **changes}))
        return "suite.yaml"

    return write


def test_from_nothing_to_the_page_failures_listed_and_a_second_call_trains_nothing(suite, capsys):
    bad = {"cfg": VANILLA, "set": {"SOLVER.LR": 1.0e30}}
    path = suite(seeds=[1], arms={"good": {"cfg": VANILLA}, "kd": {"cfg": KD}, "bad": bad})
    assert main(["leaderboard", "--suite", path, "--devices", "cpu", "--jobs", "2"]) == 1
    said = capsys.readouterr()
    assert "3 runs: 0 done, 3 to do" in said.out
    assert "teacher resnet20: ready" in said.out
    assert "failed: bad, seed 1: status 2: error: Training stopped in epoch 1" in said.err
    job = json.loads(Path("output/s/bad/seed_1/job.json").read_text())
    assert (job["status"], job["at_once"], job["device"]) == ("failed", 2, "cpu")
    assert Path("output/s/page/leaderboard.md").is_file()
    assert "bad: no result for seed 1. Seed 1 failed: status 2" in said.out
    assert "training one for 1 epochs" in Path("output/s/configs/teacher_of_kd.log").read_text()
    assert "no teacher" not in Path("output/s/kd/seed_1.log").read_text()
    before = Path("output/s/kd/seed_1/result.json").stat().st_mtime_ns
    assert main(["leaderboard", "--suite", path, "--arms", "good", "kd"]) == 0
    assert "2 runs: 2 done, 0 to do" in capsys.readouterr().out
    assert Path("output/s/kd/seed_1/result.json").stat().st_mtime_ns == before


def test_a_killed_runner_goes_on_where_it_stopped(suite, capsys):
    """SIGTERM after the first epoch: the run is ended, says so, and the next call continues it from `latest`."""
    slow = {**SMALL, "SOLVER.EPOCHS": 12, "DATASET.DIGITS100.TRAIN_IMAGES": 300}
    path = suite(seeds=[1], common=slow)
    words = [sys.executable, str(ROOT / "tools/leaderboard.py"), "--suite", path, "--devices", "cpu"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = Path("output/s/good/seed_1/log.jsonl")
    while process.poll() is None and not log.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert "the same command goes on" in err
    assert "Traceback" not in err
    done = len(log.read_text().splitlines())
    assert 1 <= done < 12
    assert json.loads((log.parent / "job.json").read_text())["status"] == "interrupted"
    assert main(["leaderboard", "--suite", path, "--devices", "cpu"]) == 0
    assert "resuming" in Path("output/s/good/seed_1.log").read_text()
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == list(range(1, 13))


def test_a_run_that_its_guard_stopped_has_ended_and_is_not_gone_on_with(suite, capsys, teacher_file):
    """Going on would train a collapsed teacher one more epoch at every call, and end with a result."""
    settings = {"ATSC.GUARD": "stop", "ATSC.DRIFT.WEIGHT": 0.0, "DISTILLER.TEACHER_CKPT": str(teacher_file)}
    settings |= {"DATASET.DIGITS100.TRAIN_IMAGES": 200, "SOLVER.EPOCHS": 3}
    path = suite(seeds=[1], arms={"good": {"cfg": VANILLA}, "lost": {"cfg": RELEASED, "set": settings}})
    assert main(["leaderboard", "--suite", path, "--devices", "cpu"]) == 1
    assert "failed: lost, seed 1: stopped in epoch" in capsys.readouterr().err
    log = Path("output/s/lost/seed_1/log.jsonl").read_bytes()
    assert main(["leaderboard", "--suite", path, "--devices", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "2 runs: 1 done, 1 stopped by the guard, 0 to do" in said
    assert "lost: no result for seed 1. Seed 1 stopped in epoch" in said
    assert Path("output/s/lost/seed_1/log.jsonl").read_bytes() == log
    changed = suite(seeds=[1], arms={"lost": {"cfg": RELEASED, "set": {**settings, "ATSC.DRIFT.WEIGHT": 1.0}}})
    assert main(["leaderboard", "--suite", changed, "--dry-run"]) == 2
    assert "is a stopped run of another configuration: ATSC.DRIFT.WEIGHT was 0.0, asked 1.0" in capsys.readouterr().err


def test_a_key_that_left_the_suite_makes_another_configuration(suite, capsys):
    """The run has LAST_EPOCH 1 and SELECT_ON test, the arm no word of them any more: the defaults are 0 and auto."""
    atsc = str(ROOT / "configs/quickstart/atsc.yaml")
    keys = {"ATSC.TEACHER.LAST_EPOCH": 1, "EXPERIMENT.SELECT_ON": "test"}
    finished_run(suite(seeds=[1], arms={"arm": {"cfg": atsc, "set": keys}}))
    (job,) = jobs.expand(read_suite(suite(seeds=[1], arms={"arm": {"cfg": atsc}})), "output", seeds=[1])
    with pytest.raises(ConfigError, match="LAST_EPOCH was 1, asked 0; EXPERIMENT.SELECT_ON was test, asked auto"):
        jobs.refuse_other_configurations([job])


def finished_run(path):
    """The files of a suite's only job, as if it had run; the suite itself accepts them."""
    (job,) = jobs.expand(read_suite(path), "output", seeds=[1])
    jobs.write_configs([job])
    job.folder.mkdir(parents=True)
    (job.folder / "cfg.yaml").write_text(yaml.safe_dump(job.tree))
    (job.folder / "result.json").write_text("{}")
    jobs.refuse_other_configurations([job])


def test_a_key_of_the_host_that_left_the_suite_is_noticed_unless_it_had_its_default(suite):
    """mdistiller's own defaults: KD.TEMPERATURE 4, SOLVER.MOMENTUM .9."""
    tree = {"EXPERIMENT": {"TAG": "kd"}, "DISTILLER": {"TYPE": "KD"}, "SOLVER": {"EPOCHS": 1}}
    Path("kd.yaml").write_text(yaml.safe_dump(tree))
    arm = {"cfg": str(Path("kd.yaml").resolve())}
    finished_run(suite(seeds=[1], arms={"arm": {**arm, "set": {"KD.TEMPERATURE": 2, "SOLVER.MOMENTUM": 0.9}}}))
    (job,) = jobs.expand(read_suite(suite(seeds=[1], arms={"arm": arm})), "output", seeds=[1])
    with pytest.raises(ConfigError, match="another configuration: KD.TEMPERATURE was 2, asked 4\n") as refused:
        jobs.refuse_other_configurations([job])
    assert "MOMENTUM" not in str(refused.value)


def test_an_arm_of_equal_cost_without_stages_of_its_own_stretches_the_hosts(suite):
    Path("bare.yaml").write_text(yaml.safe_dump({"EXPERIMENT": {"TAG": "bare"}, "DISTILLER": {"TYPE": "NONE"}}))
    path = suite(arms={"long": {"cfg": str(Path("bare.yaml").resolve()), "stretch": 2}}, common={})
    (job,) = jobs.expand(read_suite(path), "o", seeds=[1])
    assert (job.tree["SOLVER"]["EPOCHS"], job.tree["SOLVER"]["LR_DECAY_STAGES"]) == (480, [300, 360, 420])


def test_the_page_after_a_call_for_some_arms_keeps_the_suites_references(suite):
    path = suite(seeds=[1], arms={"good": {"cfg": VANILLA}, "kd": {"cfg": KD}}, against=["good"])
    for job, method in zip(jobs.expand(read_suite(path), "output", seeds=[1]), ("NONE", "KD"), strict=True):
        make_run(Path("output/s"), job.arm, 1, 50.0, method, cfg=job.tree, job=job.facts, dataset="digits100")
    assert main(["leaderboard", "--suite", path, "--arms", "kd"]) == 0
    assert "minus good" in Path("output/s/page/leaderboard.md").read_text()


def test_a_trial_lies_in_a_folder_of_its_own_and_stretch_holds_for_it_too(suite):
    arms = {"good": {"cfg": VANILLA}, "long": {"cfg": VANILLA, "stretch": 2}}
    content = read_suite(suite(arms=arms, common={**SMALL, "SOLVER.EPOCHS": 6}))
    overrides = jobs.parse_overrides(["SOLVER.EPOCHS", "3", "DATASET.ROOT", "/there"])
    good, long = jobs.expand(content, "o", seeds=[1], overrides=overrides)
    assert good.folder == Path("o/s,SOLVER.EPOCHS=3/good/seed_1")  # a place such as DATASET.ROOT changes no result
    assert good.tree["EXPERIMENT"]["PROJECT"] == "s,SOLVER.EPOCHS=3"
    assert (good.epochs, long.epochs) == (3, 6)
    assert (good.tree["SOLVER"]["LR_DECAY_STAGES"], long.tree["SOLVER"]["LR_DECAY_STAGES"]) == ([4, 5], [8, 10])
    assert jobs.expand(content, "o", seeds=[1])[0].folder == Path("o/s/good/seed_1")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["SOLVER.EPOCHS"], "has no value"),
        (["EXPERIMENT.SEED", "3"], "use --seeds"),
        (["quick", "3"], "'quick' is no key"),
    ],
)
def test_overrides_that_are_none_are_told(words, told):
    with pytest.raises(PluginError, match=told):
        jobs.parse_overrides(words)


def test_a_finished_run_of_another_configuration_is_refused(suite, capsys):
    path = suite(seeds=[1])
    folder = Path("output/s/good/seed_1")
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    (folder / "cfg.yaml").write_text(yaml.safe_dump({"SOLVER": {"EPOCHS": 6}, "LOG": {"PREFIX": "elsewhere"}}))
    assert main(["leaderboard", "--suite", path, "--dry-run"]) == 2
    assert "SOLVER.EPOCHS was 6, asked 1" in capsys.readouterr().err


def test_pairs_expand_one_whole_before_the_next(suite, tmp_path):
    for pair in ("a_b", "c_d"):
        tree = yaml.safe_load(Path(VANILLA).read_text())
        Path(f"{pair}.yaml").write_text(yaml.safe_dump(tree))
    arms = {"x": {"cfg": "{pair}.yaml"}, "y": {"cfg": "{pair}.yaml", "pairs": ["a_b"], "set": {"SOLVER.LR": 1}}}
    content = read_suite(suite(arms=arms, pairs={"a_b": {"SOLVER.LR": 0.5}, "c_d": None}, teacher_seeds=[3, 4]))
    found = jobs.expand(content, "o", seeds=[1])
    assert [job.name for job in found] == ["a_b,x,teacher3", "a_b,y,teacher3", "a_b,x,teacher4", "a_b,y,teacher4",
                                           "c_d,x,teacher3", "c_d,x,teacher4"]  # fmt: skip
    assert [job.tree["SOLVER"]["LR"] for job in found[:2]] == [0.5, 1.0]  # the arm's own key wins, as a decimal
    assert [job.tree["TEACHER"]["SEED"] for job in found] == [3, 3, 4, 4, 3, 4]


def test_a_dry_run_lists_and_starts_nothing(suite, capsys, tmp_path):
    assert main(["leaderboard", "--suite", suite(), "--dry-run", "--seeds", "3"]) == 0
    assert capsys.readouterr().out.count("to do  ") == 3
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": []}, "is no suite"),
        ({"notes": "a sentence"}, "notes: got 'a sentence', expected a list of sentences"),
        ({"against": ["bad"]}, r"against: got \['bad'\], expected a list of arms, of good"),
        ({"arms": {"a": {"cfg": "none.yaml"}}}, "there is no config none.yaml"),
        ({"arms": {"a": {"config": "x"}}}, "arm a is"),
        ({"arms": {"a/b": {"cfg": VANILLA}}}, "arm 'a/b': expected letters"),
        ({"arms": {"a": {"cfg": VANILLA, "pairs": ["q"]}}, "pairs": ["p"]}, "unknown pair q"),
        ({"arms": {"a": {"cfg": "{pair}.yaml"}}}, "the suite has no pairs"),
        ({"arms": {"a": {"cfg": VANILLA, "stretch": 0}}}, "stretch: got 0"),
        ({"arms": {"a": {"cfg": VANILLA, "trials": 3}, "b": {"cfg": VANILLA}}}, "tuning trials differ"),
        ({"seeds": [1, 1]}, "names one twice"),
        ({"seed": [1]}, "unknown key seed; did you mean seeds"),
        ({"images": 9}, "images: got 9, expected a few words"),
        ({"common": {"SOLVER": 1}}, "expected KEYS"),
    ],
)
def test_a_suite_that_cannot_run_is_told(suite, changes, told):
    with pytest.raises(PluginError, match=told):
        read_suite(suite(**changes))


def test_an_unknown_method_or_key_is_told_before_anything_is_trained(suite, capsys):
    arms = {"a": {"cfg": VANILLA}, "b": {"cfg": KD, "set": {"DISTILLER.TYPE": "ATSCC", "SOLVER.LRR": 1}}}
    assert main(["leaderboard", "--suite", suite(arms=arms)]) == 2
    said = capsys.readouterr().err
    assert "did you mean ATSC?" in said
    assert "SOLVER.LRR is no key" in said
    assert not list(Path("output").rglob("seed_*"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--devices", "gpu"], "--devices is 'gpu'"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--arms", "none"], "has no arm none; expected of good"),
        (["--pairs", "none"], "has no pair none"),
        (["--launcher", "submitit", "--devices", "0"], "--devices is for this machine"),
    ],
)
def test_words_that_cannot_be_are_told(suite, capsys, words, told):
    assert main(["leaderboard", "--suite", suite(), *words]) == 2
    assert told in capsys.readouterr().err


def test_every_run_sees_its_own_device_and_no_other():
    assert launch.environment("1", 2)["CUDA_VISIBLE_DEVICES"] == "1"
    assert launch.environment("cpu", 2)["CUDA_VISIBLE_DEVICES"] == ""
    assert launch.environment("1", 2)["OMP_NUM_THREADS"] == "2"
    assert launch.environment(None, None).get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


def test_submitit_runs_the_same_jobs(suite, capsys):
    pytest.importorskip("submitit")
    path = suite(seeds=[1])
    words = ["--launcher", "submitit", "--cluster", "local", "--slurm", "timeout_min=5"]
    assert main(["leaderboard", "--suite", path, *words]) == 0
    assert "good, seed 1: ok" in capsys.readouterr().out
    assert json.loads(Path("output/s/good/seed_1/job.json").read_text())["status"] == "done"


@pytest.mark.parametrize("path", sorted((ROOT / "configs/leaderboard").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_suite_expands_to_configs_that_load(path, tmp_path, monkeypatch):
    import atsc_plugin
    from atsc_plugin.config import load_cfg

    monkeypatch.chdir(ROOT)
    atsc_plugin.register()
    found = jobs.expand(read_suite(path), tmp_path, seeds=[1])
    jobs.write_configs(found)
    for job in found:
        assert job.name == load_cfg(job.config).EXPERIMENT.NAME


BASELINES = {"PROJECTED_VANILLA", "PROJECTED_KD", "SIMKD"}


@pytest.mark.parametrize(
    "name", ["quick", "cifar100_main", "cifar100_multi", "tin100", "imagenet", "tiny_imagenet", "ablation"]
)
def test_suites_with_projectors_have_the_baselines_of_equal_architecture_and_cost(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = read_suite(f"configs/leaderboard/{name}.yaml")
    for pair in suite.pairs:
        found = jobs.expand(suite, "o", seeds=[1], pairs=[pair])
        assert {job.tree["DISTILLER"]["TYPE"] for job in found} >= BASELINES
        base = next(job for job in found if job.tree["DISTILLER"]["TYPE"] == "SIMKD" and job.facts["stretch"] == 1)
        long = next(job for job in found if job.arm.startswith("simkd_equal_cost"))
        assert long.epochs == (2.4 if name == "imagenet" else 2) * base.epochs
        tuned = {job.arm for job in found if job.facts["trials"]}
        assert tuned == ({"atsc"} if name in ("quick", "ablation") else set())  # both on the toy


def test_the_main_suite_has_eleven_pairs_and_every_student_a_vanilla_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = read_suite("configs/leaderboard/cifar100_main.yaml")
    found = jobs.expand(suite, "o", seeds=[1])
    assert len(suite.pairs) == 11
    students = {job.tree["DISTILLER"]["STUDENT"] for job in found}
    plain = [job.tree["DISTILLER"]["STUDENT"] for job in found if job.arm == "vanilla"]
    assert sorted(plain) == sorted(students)  # each once
