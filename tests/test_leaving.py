"""Signals and the lock of a run directory: a run leaves well, and nobody else comes in."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from forks import python_run
from runs import Before, assert_the_same_run, config, latest_of, trainer_of

from atsc_plugin.engine import run_dir, signals
from atsc_plugin.engine.signals import StopAsked, StopSignals, resuming_argv
from atsc_plugin.errors import Interrupted, PluginError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def made(tmp_path):
    """made(name): the trainer of a run, the same every time."""
    return lambda name: trainer_of(config(tmp_path), tmp_path / name)


# ---- signals ----


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)], ids=str
)
def test_a_signal_finishes_the_step_and_the_run_goes_on_from_there(made, whole, capsys, number, status):
    before, left = signal.getsignal(number), made("left")
    left.step = Before(left.step, lambda step: os.kill(os.getpid(), number) if step == 5 else None)
    with pytest.raises(Interrupted) as end:
        left.train()
    assert end.value.code == status
    assert signal.getsignal(number) == before
    state = latest_of(left.folder)
    assert (state["epoch"], state["inside"]["meters"]["steps"]) == (1, 2)  # three steps an epoch: the fifth is done
    said = capsys.readouterr().err
    assert "after step 2 of epoch 2" in said
    assert "--resume" in said
    again = made("left")
    again.train(resume=True)
    assert_the_same_run(whole, again)


def test_a_signal_in_the_evaluation_does_not_wait_for_its_end(made, whole):
    left = made("left")
    left.val_loader = Sending(left.val_loader, signal.SIGTERM, at=2)  # the teacher is measured in the first pass
    with pytest.raises(Interrupted):
        left.train()
    state = latest_of(left.folder)
    assert (state["epoch"], state["inside"]["meters"]["steps"]) == (0, 3)  # the epoch's steps are made, its end is not
    again = made("left")
    again.train(resume=True)
    assert_the_same_run(whole, again)


class Sending:
    """A loader that sends a signal before the second batch of its pass `at`."""

    def __init__(self, loader, number, at):
        self.loader, self.number, self.at, self.passes = loader, number, at, 0

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        self.passes += 1
        for place, batch in enumerate(self.loader):
            if (self.passes, place) == (self.at, 1):
                os.kill(os.getpid(), self.number)
            yield batch


def test_a_second_signal_ends_at_once():
    code = (
        "import os, signal, time\n"
        "from atsc_plugin.engine.signals import StopSignals\n"
        "with StopSignals() as signals:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.01); print(signals.asked, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(60); print('late')\n"
    )
    done = python_run([sys.executable, "-c", code], cwd=ROOT)
    assert (done.returncode, done.stdout) == (130, "15\n")


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            signals.check()
            os.kill(os.getpid(), signal.SIGUSR1)
            with pytest.raises(StopAsked):
                signals.check()
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_command_that_goes_on_is_the_one_that_began_with_resume_in_place_of_overwrite():
    began = ["/x/atsc_plugin/__main__.py", "train", "--cfg", "a b.yaml", "--overwrite", "SOLVER.LR", "0.1"]
    goes_on = ["python", "-m", "atsc_plugin", "train", "--resume", "--cfg", "a b.yaml", "SOLVER.LR", "0.1"]
    assert resuming_argv(began) == goes_on
    assert resuming_argv(["tools/train.py", "--resume", "--cfg", "a"])[1:] == [
        "tools/train.py", "--resume", "--cfg", "a"
    ]  # fmt: skip
    assert resuming_argv(["tools/teachers.py", "--cfg", "a"])[1:] == ["tools/teachers.py", "--cfg", "a"]
    assert resuming_argv(["/x/atsc_plugin/__main__.py", "prepare", "--cfg", "a"])[2:] == [
        "atsc_plugin", "prepare", "--cfg", "a"
    ]  # fmt: skip
    allowed = ["/x/atsc_plugin/__main__.py", "--allow", "nets", "train", "--cfg", "a"]
    assert resuming_argv(allowed)[3:] == ["--allow", "nets", "train", "--resume", "--cfg", "a"]


def test_a_hosts_script_goes_on_under_launch(monkeypatch):
    monkeypatch.setattr(signals, "LAUNCHED", ["launch", "--leave", "SIMKD"])
    words = ["launch", "--leave", "SIMKD", "/host/train.py", "--resume", "--cfg", "a"]
    assert resuming_argv(["/host/train.py", "--cfg", "a"]) == ["python", "-m", "atsc_plugin", *words]
    ranks = ["torchrun", "--standalone", "--nproc_per_node=2"]
    assert resuming_argv(["/host/train.py", "--cfg", "a"], ranks) == [*ranks, "-m", "atsc_plugin", *words]


# ---- one process a directory ----


def test_a_second_process_is_refused_with_the_first_ones_number_and_host(tmp_path):
    code = (
        "import sys, time\nfrom atsc_plugin.engine import run_dir\n"
        "with run_dir.held(sys.argv[1]):\n    print('held', flush=True); time.sleep(60)\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(PluginError, match=f"in use by process {first.pid} on "), run_dir.held(tmp_path):
            pass
        with pytest.raises(PluginError, match="in use by"):
            run_dir.clear(tmp_path)
    finally:
        first.kill()
        first.wait()
    with run_dir.held(tmp_path):  # SIGKILL took the lock with its holder
        pass


def test_a_forked_worker_does_not_keep_the_lock_of_a_parent_that_is_gone(tmp_path):
    code = (
        "import os, sys, time\nfrom atsc_plugin.engine import run_dir\n"
        "with run_dir.held(sys.argv[1]):\n"
        "    child = os.fork()\n"
        "    if child == 0: print(os.getpid(), flush=True); time.sleep(60)\n"  # printed once it has let go
        "    os._exit(0)\n"
    )
    done = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    child = int(done.stdout.readline())
    try:
        done.wait()
        with run_dir.held(tmp_path):
            os.kill(child, 0)  # it lives, and we hold the lock
    finally:
        os.kill(child, signal.SIGKILL)


def test_clearing_a_directory_leaves_the_lock_alone_and_follows_no_link(tmp_path):
    elsewhere, run = tmp_path / "elsewhere", tmp_path / "run"
    (run / "train.events").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (run / "link").symlink_to(elsewhere)
    (run / "latest").write_text("x")
    run_dir.clear(run)
    assert [path.name for path in run.iterdir()] == ["run.lock"]
    assert (elsewhere / "precious").is_file()
