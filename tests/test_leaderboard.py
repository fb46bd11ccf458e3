"""The leaderboard's runner: what it starts, skips, waits for, tells. A stub stands for train, prepare and adapted."""

import json
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from filelock import FileLock

from atsc_plugin.__main__ import main
from atsc_plugin.commands import leaderboard
from atsc_plugin.engine import run_dir
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.leaderboard import jobs, runner
from atsc_plugin.leaderboard.suite import read_suite

STUB = Path(__file__).with_name("stub_command.py")


@pytest.fixture
def suite(here, monkeypatch):
    """Writes a suite of arms {name: keys}; the words of a call. Pages are only noted."""
    monkeypatch.setattr(jobs, "COMMAND", (sys.executable, str(STUB)))
    monkeypatch.setattr(leaderboard, "_write_page", lambda folder, against: print(f"page of {folder}: {against}"))
    Path("arm.yaml").write_text(yaml.safe_dump({"SOLVER": {"EPOCHS": 2}, "DISTILLER": {"TYPE": "NONE"}}))

    def write(arms, **changes):
        arms = {name: {"cfg": "arm.yaml", **arm} for name, arm in arms.items()}
        Path("suite.yaml").write_text(yaml.safe_dump({"name": "s", "seeds": [1], "arms": arms, **changes}))
        return ["leaderboard", "--suite", "suite.yaml"]

    return write


def does(what, **keys):
    return {"set": {"STUB.DO": what, **{name.replace("_", "."): value for name, value in keys.items()}}}


def learns_from(teacher, **keys):
    return {"set": {"DISTILLER.TYPE": "KD", "DISTILLER.TEACHER": teacher, **keys}}


def events():
    """What ran, in order; without the devices."""
    return [line.rpartition(" on ")[0] for line in Path("events.txt").read_text().splitlines()]


def content(name, file="job.json", seed=1):
    return json.loads(Path(f"output/s/{name}/seed_{seed}/{file}").read_text())


# ---- what runs, and what becomes of it ----


def test_failures_are_listed_while_the_rest_goes_on_and_a_second_call_runs_only_them(suite, capsys):
    words = suite({"bad": does("fail"), "good": {"display": "The good one"}}, seeds=[1, 2], against=["good"])
    assert main([*words, "--jobs", "2"]) == 1
    said = capsys.readouterr()
    assert "4 runs: 0 done, 4 to do, in output/s" in said.out
    assert (
        "failed: bad, seed 2: status 1: error: it cannot be - for this reason; see output/s/bad/seed_2.log" in said.err
    )
    assert "page of output/s: ['good']" in said.out
    assert (content("bad")["status"], content("bad")["at_once"], content("good")["status"]) == ("failed", 2, "done")
    assert (content("good")["display"], content("bad")["display"]) == ("The good one", "bad")
    Path("events.txt").unlink()
    assert main(words) == 1
    assert "4 runs: 2 done, 2 to do" in capsys.readouterr().out
    assert events() == ["bad 1", "bad 2"]
    assert main([*words, "--arms", "bad"]) == 1
    assert "page of output/s: ['good']" in capsys.readouterr().out  # it shows all that is there


def test_the_page_compares_with_the_second_arm_of_the_primary_comparison_too(suite, capsys):
    words = suite({name: {} for name in ("first", "second", "third")}, against=["third"], primary=["first", "second"])
    assert main(words) == 0
    assert "page of output/s: ['third', 'second']" in capsys.readouterr().out


def test_a_run_that_the_guard_stopped_has_ended_and_is_not_resumed(suite, capsys):
    words = suite({"lost": does("stop")})
    assert main(words) == 1
    assert "failed: lost, seed 1: stopped in epoch 2: the teacher collapsed" in capsys.readouterr().err
    assert main(words) == 0
    assert "1 runs: 0 done, 1 stopped by the guard, 0 to do" in capsys.readouterr().out
    assert events() == ["lost 1"]


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("out_of_memory", "out of memory: status 1: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 "
         "GiB. Do: lower SOLVER.BATCH_SIZE, use SOLVER.ACCUMULATE or SOLVER.AMP, or fewer --jobs"),
        ("killed", "ended by signal 9 (the machine's memory may be full: lower SOLVER.BATCH_SIZE"),
    ],
)  # fmt: skip
def test_a_run_that_ran_out_of_memory_says_what_to_do(suite, capsys, what, reason):
    assert main(suite({"large": does(what)})) == 1
    assert f"failed: large, seed 1: {reason}" in capsys.readouterr().err
    assert content("large")["reason"].startswith(reason)


def test_advice_that_the_command_gave_itself_is_not_given_twice(here):
    Path("log").write_text("error: memory ran out (CUDA). Lower SOLVER.BATCH_SIZE.\n")
    job = jobs.Job("key", "title", (), Path("log"))
    assert runner.reason_of(job, 2) == "out of memory: status 2: error: memory ran out (CUDA). Lower SOLVER.BATCH_SIZE"


def test_a_second_failure_is_told_with_its_own_words(here):
    Path("log").write_text("error: the first\n")
    begun = Path("log").stat().st_size
    Path("log").write_text("error: the first\nTraceback\nKeyError: 'second'\x1b[31m\n")
    assert runner.last_words(Path("log"), begun) == "KeyError: 'second'\\x1b[31m"
    assert runner.last_words(Path("log")) == "error: the first Traceback KeyError: 'second'\\x1b[31m"


def test_an_interrupt_ends_the_runs_and_the_same_command_resumes(suite, capsys):
    """The stub sends SIGTERM to the runner, then sleeps: only the runner can end it."""
    words = suite({"first": does("interrupt"), "second": {}})
    assert main(words) == 2
    assert "Interrupted; the same command goes on where it stopped." in capsys.readouterr().err
    assert (content("first")["status"], content("first")["reason"]) == ("interrupted", "ended by signal 15")
    assert events() == ["first 1"]
    assert main(words) == 0
    assert Path("output/s/first/seed_1.log").read_text() == "starting\nresuming\n"
    assert events() == ["first 1", "first 1", "second 1"]


def test_a_place_that_cannot_be_written_fails_its_run_alone(suite, capsys):
    words = suite({"blocked": {}, "good": {}})
    Path("output/s/blocked").mkdir(parents=True)
    Path("output/s/blocked/seed_1").touch()
    assert main(words) == 1
    assert "failed: blocked, seed 1: FileExistsError" in capsys.readouterr().err
    assert content("good")["status"] == "done"


@pytest.mark.parametrize("text", ["[1, 2]", "{", "\x00"])
def test_a_damaged_job_or_stop_file_ends_nothing(suite, text, capsys):
    words = suite({"a": {}})
    Path("output/s/a/seed_1").mkdir(parents=True)
    Path("output/s/a/seed_1/job.json").write_text(text)
    assert main(words) == 0
    assert content("a")["status"] == "done"
    Path("output/s/a/seed_1/result.json").unlink()
    Path("output/s/a/seed_1/stopped.json").write_text(text)
    assert main(words) == 0


def test_the_time_left_follows_from_epochs_that_ended_and_falls_inside_one(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    run = Mock(epochs=4, epochs_done=lambda: run.done, done=1)  # one epoch was there before
    lines = runner.Runner([Mock(run=run)], places=None)
    now[0] = 600
    assert lines._left() == ""  # none has ended in this call
    run.done = 2
    assert lines._left() == "; about 20 min left"  # two epochs of ten minutes
    now[0] = 900
    assert lines._left() == "; about 15 min left"
    now[0] = 3000
    assert lines._left() == "; about 0 min left"


# ---- teachers ----


def test_missing_teachers_are_trained_side_by_side_and_only_their_students_wait(suite, capsys):
    """Three slots: each teacher ends only after the other, and the student without a teacher, have begun."""
    arms = {
        "a": learns_from("big", **{"STUB.TEACHER": "wait_for teacher huge"}),
        "b": learns_from("huge", **{"STUB.TEACHER": "wait_for alone 1"}),
        "again": learns_from("big"),
        "alone": {},
    }
    assert main([*suite(arms), "--jobs", "3"]) == 0
    order = events()
    assert order.count("teacher big") == order.count("teacher huge") == 1
    assert order.index("alone 1") < order.index("end of teacher huge")
    for student, teacher in (("a", "big"), ("again", "big"), ("b", "huge")):
        assert order.index(f"end of teacher {teacher}") < order.index(f"{student} 1")
    assert "teacher huge, seed 1: ok" in capsys.readouterr().out
    assert main([*suite({**arms, "more": learns_from("big")}), "--jobs", "3"]) == 0
    assert events().count("teacher big") == 1  # a finished run had it


def test_a_teacher_that_cannot_be_had_fails_its_students_and_no_others(suite, capsys):
    arms = {"a": learns_from("big", **{"STUB.TEACHER": "fail"}), "b": learns_from("huge")}
    assert main(suite(arms)) == 1
    reason = "needs teacher big, seed 1, which failed: status 1: error: it cannot be - for this reason"
    assert f"failed: a, seed 1: {reason}" in capsys.readouterr().err
    assert (content("a")["status"], content("a")["reason"]) == ("failed", reason)
    assert content("b")["status"] == "done"


def test_a_teacher_with_a_slash_or_a_colon_in_its_name_has_one_log_beside_the_configurations(suite):
    assert main(suite({"a": learns_from("timm/vit"), "b": learns_from("my.nets:Big")})) == 0
    logs = sorted(path.name.rpartition("_")[0] for path in Path("output/s/configs").glob("*.log"))
    assert logs == ["teacher_my.nets_Big_seed_1", "teacher_timm_vit_seed_1"]


def test_a_run_starts_from_the_teacher_that_the_run_of_its_seed_left(suite, capsys):
    arms = {"after": {"adapted_by": "learning"}, "learning": {"set": {"DISTILLER.TYPE": "LEARNS"}}, "other": {}}
    words = suite(arms, seeds=[1, 2])
    assert main([*words, "--jobs", "2"]) == 0
    order = events()
    for seed in (1, 2):
        assert order.index(f"learning {seed}") < order.index(f"after {seed}")
        start = content("after", "result.json", seed)["start"]["DISTILLER.TEACHER_CKPT"]
        assert start == f"output/s/learning/seed_{seed}/teacher_last"
    assert content("after")["adapted_by"] == "learning"
    assert main(words) == 0  # the file that a finished run started from makes no other configuration


def test_a_run_whose_source_failed_is_told_so(suite, capsys):
    arms = {"after": {"adapted_by": "learning"}, "learning": does("fail", DISTILLER_TYPE="LEARNS")}
    assert main(suite(arms)) == 1
    assert "failed: after, seed 1: needs learning, seed 1, which failed: status 1" in capsys.readouterr().err


AFTER_STILL = {"after": {"adapted_by": "still"}, "still": {}}


@pytest.mark.parametrize(
    ("arms", "words", "told"),
    [
        (AFTER_STILL, [], "adapted_by wants an arm whose teacher learns; that of still does not"),
        (AFTER_STILL, ["--arms", "after"], "still/seed_1 leaves; add still to --arms"),
        ({"bad": {"set": {"SOLVER.LRR": 1}}}, [], "The suite was not started. The configuration has a mistake:\n"
         "  - bad.yaml: SOLVER.LRR is no key"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_before_anything_is_trained(suite, capsys, arms, words, told):
    assert main([*suite(arms), *words]) == 2
    assert told in capsys.readouterr().err
    assert not Path("output").exists()


# ---- devices and locks ----


@pytest.mark.parametrize(
    ("visible", "asked", "found"),
    [
        (None, "0,1", ["0", "1"]),
        ("4,5", "0", ["4"]),
        ("4, 5", "1,0", ["5", "4"]),
        ("GPU-8932f937,MIG-GPU-8932f937/1/0", "1", ["MIG-GPU-8932f937/1/0"]),
        ("GPU-8932f937,GPU-1", "GPU-1", ["GPU-1"]),
        ("4,5", "cpu", ["cpu"]),
        (None, "MIG-41b4", ["MIG-41b4"]),
    ],
)
def test_devices_are_numbers_within_the_given_list(monkeypatch, visible, asked, found):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert runner.devices_of(asked) == found


@pytest.mark.parametrize(
    ("visible", "asked", "told"),
    [
        ("4,5", "2", "--devices names 2, but CUDA_VISIBLE_DEVICES is '4,5'; expected 0 to 1, which count within it"),
        ("4,-1,5", "1", "expected 0 to 0"),  # CUDA reads a list up to its first -1
        ("", "0", "expected cpu, as it lists none"),
        ("GPU-1", "GPU-2", "--devices names GPU-2"),
        ("4,5", "gpu", "--devices is 'gpu'; expected cpu, or numbers"),
        ("4,5", "", "--devices is ''"),
        ("4,5", "-1", "--devices is '-1'"),
    ],
)
def test_a_device_outside_the_given_list_is_refused_by_name(monkeypatch, visible, asked, told):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(PluginError, match=told):
        runner.devices_of(asked)


def test_every_run_sees_its_own_device_and_no_other(suite, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    arms = {"a": does("wait_for b 1"), "b": does("wait_for a 1")}
    assert main([*suite(arms), "--devices", "0,1"]) == 0
    assert sorted(Path("events.txt").read_text().splitlines()) == ["a 1 on 4", "b 1 on 5"]
    assert content("a", "result.json")["start"]["EXPERIMENT.DEVICE"] == "cuda"
    assert (content("a")["device"], content("a")["at_once"]) == ("4", 2)


def attempt_of(words):
    runs = jobs.expand(read_suite(words[-1]), "output")
    jobs.write_configs(runs)
    (job,) = jobs.jobs_of(runs, jobs.check(runs))
    return runner.Attempt(job)


@pytest.mark.parametrize("holder", ["another leaderboard", "a train that outlived one"])
def test_a_run_that_another_process_is_at_is_waited_for(suite, holder):
    attempt = attempt_of(suite({"a": {}}))
    folder = attempt.job.run.folder
    folder.mkdir(parents=True)
    lock = FileLock(folder.with_name("seed_1.lock")) if holder == "another leaderboard" else run_dir.held(folder)
    with lock:
        assert not attempt.start()
        (folder / "result.json").write_text("{}")
    assert attempt.start()
    assert attempt.done() and attempt.result() is None
    assert not Path("events.txt").exists()  # the other one has done it


# ---- other configurations, plan, command line ----


@pytest.mark.parametrize(("file", "kind"), [("result.json", "finished"), ("stopped.json", "stopped")])
def test_an_ended_run_of_another_configuration_is_refused(suite, file, kind):
    """The stored run says LR .1 and nothing of epochs, whose default is 240; LOG.PREFIX makes no other one."""
    words = suite({"a": {}})
    folder = Path("output/s/a/seed_1")
    folder.mkdir(parents=True)
    (folder / file).write_text("{}")
    (folder / "cfg.yaml").write_text(yaml.safe_dump({"SOLVER": {"LR": 0.1}, "LOG": {"PREFIX": "elsewhere"}}))
    with pytest.raises(ConfigError, match=f"a/seed_1 is a {kind} run of another configuration: SOLVER.EPOCHS was 240, "
                                          "asked 2; SOLVER.LR was 0.1, asked 0.05\n"):  # fmt: skip
        jobs.check(jobs.expand(read_suite(words[-1]), "output"))
    (folder / "cfg.yaml").write_text("[]")
    with pytest.raises(PluginError, match="holds a list"):
        jobs.check(jobs.expand(read_suite(words[-1]), "output"))


def test_a_plan_names_published_figures_and_expected_hours_and_starts_nothing(suite, capsys):
    """A finished run of 2 epochs took 3600 s: half an hour an epoch, two runs of two epochs to do."""
    keys = {
        "DATASET.TYPE": "cifar100",
        "DISTILLER.TYPE": "KD",
        "DISTILLER.TEACHER": "resnet56",
        "DISTILLER.STUDENT": "resnet20",
    }
    words = suite({"kd": {}}, seeds=[1, 2, 3], common=keys)
    assert main([*words, "--seeds", "1"]) == 0
    Path("events.txt").unlink()
    capsys.readouterr()
    assert main([*words, "--plan", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "3 runs: 1 done, 2 to do" in said
    assert said.count("to do    output/s/kd/seed_") == 2
    assert "expected hours: 2.0 h of training, 1.0 h with 2 at a time, as recorded here on a toy" in said
    assert "published" not in said  # two epochs are not the published 240
    common = {**keys, "SOLVER.EPOCHS": 240}
    assert main([*suite({"kd": {}}, common=common), "--plan", "--output", "new"]) == 0
    said = capsys.readouterr().out
    assert "kd: 70.66 (" in said
    assert main([*suite({"kd": {}}, common={**common, "SOLVER.LR": 0.1}), "--plan", "--output", "other"]) == 0
    assert "published" not in capsys.readouterr().out  # the published rate is 0.05
    assert "expected hours: unknown for 1 of 1 runs, whose images cannot be counted or timed here" in said
    assert not Path("events.txt").exists() and not Path("new").exists()


def test_hours_are_estimated_where_no_run_is_recorded(suite, capsys, monkeypatch):
    """a: a run of 2 epochs took an hour, one is to do. b: 2 runs of 2 epochs of 900 s. c: its images are unknown."""
    monkeypatch.setattr(runner, "cores", lambda: 6)
    words = suite({"a": {}, "b": {"set": {"STUB.EPOCH": 900.0}}, "c": {}}, seeds=[1, 2])
    assert main([*words, "--plan", "--jobs", "2", "--arms", "b"]) == 0
    assert (
        "expected hours: 1.0 h of training, 0.5 h with 2 at a time, estimated for 3 threads\n"
        in capsys.readouterr().out
    )
    assert main([*words, "--seeds", "1", "--arms", "a"]) == 0
    capsys.readouterr()
    assert main([*words, "--plan"]) == 0
    said = "expected hours: 2.0 h of training, 1.0 h as recorded here on a toy, 1.0 h estimated for 6 threads; "
    assert said + "unknown for 2 of 5 runs, whose images cannot be counted or timed here\n" in capsys.readouterr().out


def test_a_dry_run_lists_and_starts_nothing(suite, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "COMMAND", ("no such command",))
    assert main([*suite({"a": {}, "b": {}}), "--dry-run", "--seeds", "3"]) == 0
    assert capsys.readouterr().out.count("  to do    output/s/") == 6
    assert not Path("output").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--devices", "gpu"], "--devices is 'gpu'"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--seeds", "1000000000"], "suite.yaml makes 1,000,000,000 runs; expected at most 20,000"),
        (["--arms", "none"], "has no arm none; expected of good"),
        (["--pairs", "none"], "has no pair none"),
        (["--launcher", "submitit", "--devices", "0"], "--devices is for this machine"),
        (["--seeds", "1", "SOLVER.EPOCHS"], "has no value"),
        (["--seeds", "1", "EXPERIMENT.SEED", "3"], "use --seeds"),
        (["--seeds", "1", "quick", "3"], "'quick' is no key"),
    ],
)
def test_words_that_cannot_be_are_told(suite, capsys, words, told):
    assert main([*suite({"good": {}}), *words]) == 2
    assert told in capsys.readouterr().err


def test_submitit_runs_the_same_jobs(suite, capsys):
    pytest.importorskip("submitit")
    words = [*suite({"a": learns_from("big"), "b": {}}), "--launcher", "submitit", "--cluster", "local"]
    assert main([*words, "--slurm", "timeout_min=5"]) == 0
    assert "a, seed 1: ok" in capsys.readouterr().out
    assert content("a")["status"] == "done"
    assert events().index("end of teacher big") < events().index("a 1")
