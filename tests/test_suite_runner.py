"""The order in which a suite's runs start, with jobs that only wait for each other."""

import threading
from types import SimpleNamespace

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
