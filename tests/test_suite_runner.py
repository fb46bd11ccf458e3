"""The order in which a suite's runs start, with jobs that only wait for each other."""

import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from atsc_plugin.suites import launch, runner


def job(folder, source=None):
    counts = {"epochs": 1, "epochs_done": lambda: 0}
    return SimpleNamespace(folder=folder, source=source, title=folder, teacher=None, done=False, **counts)


def test_no_slot_waits_for_a_source_while_another_run_could_start(monkeypatch):
    """Two slots: the source ends only after `other` has begun, which stands behind the run that needs the source."""
    begun, other_begun = [], threading.Event()

    def run_job(job, processes, **_):
        begun.append(job.folder)
        if job.folder == "other":
            other_begun.set()
        if job.folder == "source":
            assert other_begun.wait(timeout=20), "the second slot stood idle"

    monkeypatch.setattr(launch, "run_job", run_job)
    jobs = [job("source"), job("needs_source", source="source"), job("other")]
    assert runner.Runner(jobs, at_once=2).run(jobs) == []
    assert sorted(begun) == ["needs_source", "other", "source"]
    assert begun.index("needs_source") == 2


def test_an_interrupt_while_this_thread_waits_ends_the_process_it_waits_for(tmp_path, monkeypatch):
    """So a teacher's training, which runs in the main thread, does not live on behind Ctrl-C."""
    processes, wait = launch.Processes(), subprocess.Popen.wait
    started = []

    def interrupted(process, timeout=None):
        started.append(process)
        if len(started) == 1:
            raise KeyboardInterrupt
        return wait(process, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        processes.run([sys.executable, "-c", "import time; time.sleep(60)"], log=tmp_path / "log")
    assert started[0].poll() == -signal.SIGTERM
    assert processes.running == set()


def test_a_second_failure_is_told_with_its_own_words(tmp_path):
    log = tmp_path / "log"
    log.write_text("error: the first\n")
    begun = log.stat().st_size
    log.write_text("error: the first\nTraceback\nKeyError: 'second'\n")
    assert launch.last_words(log, begun) == "KeyError: 'second'"
