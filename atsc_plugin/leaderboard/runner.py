"""Runs jobs side by side in slots, each with a device; a failure is kept and told while the rest goes on.

A run is locked for as long as it is worked on, so that two leaderboards of one suite share its runs. A `train` that
outlived a killed leaderboard holds its run directory, and is waited for.
Ctrl-C and SIGTERM end the commands in an orderly way: the same command line resumes.
"""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from filelock import FileLock, Timeout

from atsc_plugin.engine.run_dir import read_json, refuse_if_held
from atsc_plugin.errors import PluginError
from atsc_plugin.files import write_json
from atsc_plugin.leaderboard.jobs import Job, Run, environment
from atsc_plugin.untrusted import printable

HEARTBEAT = 30.0  # seconds between two lines about what is running
PATIENCE = 15.0  # seconds that a command gets to save its state and leave
OUT_OF_MEMORY = re.compile(r"memory ran out|out of memory|(can't|cannot) allocate memory|alloc_failed", re.IGNORECASE)
REMEDY = "lower SOLVER.BATCH_SIZE, use SOLVER.ACCUMULATE or SOLVER.AMP, or fewer --jobs"


def devices_of(text: str) -> list:
    """--devices as values for CUDA_VISIBLE_DEVICES; numbers count within the list that this process was given."""
    visible, found = os.environ.get("CUDA_VISIBLE_DEVICES"), []
    given = None
    if visible is not None:
        given = list(takewhile(lambda name: name not in ("", "-1"), map(str.strip, visible.split(","))))
    for name in map(str.strip, text.split(",")):
        number = int(name) if name.isascii() and name.isdecimal() and len(name) < 10 else None
        if name == "cpu" or (name.startswith(("GPU-", "MIG-")) and (given is None or name in given)):
            found.append(name)
        elif number is not None and (given is None or number < len(given)):
            found.append(str(number) if given is None else given[number])
        elif number is not None or name.startswith(("GPU-", "MIG-")):
            which = f"0 to {len(given) - 1}, which count within it" if given else "cpu, as it lists none"
            raise PluginError(f"--devices names {name}, but CUDA_VISIBLE_DEVICES is '{visible}'; expected {which}.")
        else:
            raise PluginError(f"--devices is '{text}'; expected cpu, or numbers of GPUs such as 0,1.")
    return found


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def note(run: Run, **changes) -> None:
    """Write a run's job.json: what the suite says of it, and what became of it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json({**run.record, **changes}, run.folder / "job.json")


class Attempt:
    """One job as a subprocess: its lock, its log and how it ended. submitit's jobs have the same three methods."""

    def __init__(self, job: Job, device=None, threads=None, at_once=1, slot=0):
        self.job, self.device, self.threads, self.at_once, self.slot = job, device, threads, at_once, slot
        self.process = self.lock = self.error = None
        self.begun, self.started, self.cancelled = 0, time.time(), False

    def start(self) -> bool:
        """False while another process is at this run."""
        try:
            if self.job.run and not self._locked(self.job.run.folder):
                return False
            self._launch()
        except (OSError, NotImplementedError, PluginError) as error:  # a full disk, a lost folder: the others go on
            self._unlock()
            self.error = f"{type(error).__name__}: {error}"
        return True

    def _launch(self):
        job = self.job
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self.begun = job.log.stat().st_size if job.log.exists() else 0
        if _ended(job):  # another leaderboard has done it meanwhile
            return
        self._note(status="running", reason=None)
        argv = list(job.argv)
        if self.device is not None and job.takes_keys:
            argv += ["EXPERIMENT.DEVICE", "cpu" if self.device == "cpu" else "cuda"]
        with open(job.log, "ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=environment(self.device, self.threads),
            )  # fmt: skip

    def _locked(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            self.lock = None
            return False
        try:
            refuse_if_held(folder)
        except PluginError:
            self._unlock()
            return False
        return True

    def _unlock(self):
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def _note(self, **changes):
        if self.job.run:
            note(self.job.run, device=self.device, at_once=self.at_once, **changes)

    def done(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def result(self) -> str | None:
        """None when all is well, else the reason; the run's job.json says the same."""
        try:
            if self.process is None:
                return self.error
            reason = reason_of(self.job, self.process.returncode, self.begun)
            status = "done" if reason is None else "interrupted" if self.cancelled else "failed"
            self._note(status=status, reason=reason, minutes=round((time.time() - self.started) / 60, 2))
            return reason
        finally:
            self._unlock()

    def cancel(self) -> None:
        self.cancelled = True
        if not self.done():
            self.process.terminate()

    def kill(self) -> None:
        """End the command with all its workers."""
        if not self.done():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _ended(job):
    return (job.makes is not None and job.makes.exists()) or (job.run is not None and job.run.stopped)


def reason_of(job: Job, status: int, begun: int = 0) -> str | None:
    """Why a job failed: what it said last, after the first `begun` bytes of its log. None if it did not fail."""
    if job.makes.exists() if job.makes else status == 0:
        return None
    stopped = read_json(job.run.folder, "stopped.json") if job.run and job.run.stopped else None
    if isinstance(stopped, dict):
        return f"stopped in epoch {stopped.get('epoch')}: {stopped.get('reason')}"
    if status < 0:
        memory = f" (the machine's memory may be full: {REMEDY})" if status == -signal.SIGKILL else ""
        return f"ended by signal {-status}{memory}"
    said = last_words(job.log, begun)
    if OUT_OF_MEMORY.search(said):
        advice = "" if "SOLVER." in said else f". Do: {REMEDY}"
        return f"out of memory: status {status}: {said.rstrip('.')}{advice}"
    return f"status {status}: {said}"


def last_words(log: Path, begun: int = 0) -> str:
    """The last error in a log from byte `begun` on, else its last line."""
    with open(log, "rb") as file:
        file.seek(max(begun, log.stat().st_size - 65536))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    endings = [number for number, line in enumerate(lines) if re.match(r"(rank \d+: )?(error|stopped):", line)]
    text = printable(" ".join(lines[endings[-1] :] if endings else lines[-1:]) or "it said nothing")
    return text if len(text) <= 600 else f"{text[:600]} ..."


class Slots:
    """Places for commands on this machine; with devices, a slot has one of them."""

    pause = 0.1  # seconds between two looks

    def __init__(self, at_once: int, devices=()):
        self.at_once, self.devices, self.attempts = at_once, list(devices), []
        self.threads = max(1, cores() // at_once)

    def start(self, ready: list) -> list:
        """[(job, attempt)] of the jobs that could start now."""
        self.attempts = [attempt for attempt in self.attempts if not attempt.done()]
        free = sorted(set(range(self.at_once)) - {attempt.slot for attempt in self.attempts})
        started = []
        for job in ready:
            if not free:
                break
            device = self.devices[free[0] % len(self.devices)] if self.devices else None
            attempt = Attempt(job, device, self.threads, self.at_once, free[0])
            if attempt.start():
                started.append((job, attempt))
                self.attempts.append(attempt)
                del free[0]
        return started

    def end(self, attempts: list, hurry) -> None:
        """Ask every command to leave, then make it: files appear whole, so nothing finished is lost."""
        for attempt in attempts:
            attempt.cancel()
        until = time.monotonic() + PATIENCE
        while not all(attempt.done() for attempt in attempts) and time.monotonic() < until and not hurry():
            time.sleep(self.pause)
        for attempt in attempts:
            attempt.kill()
            outcome(attempt)


def outcome(attempt) -> str | None:
    """None, or why the job failed."""
    try:
        return attempt.result()
    except Exception as error:  # a full disk here; on a cluster the node died: submitit raises many kinds
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class Runner:
    """Starts every job whose needs have ended, in the order of the list, wherever `places` has room."""

    def __init__(self, jobs: list, places):
        self.places, self.waiting, self.active = places, list(jobs), []
        self.total, self.ended, self.signals, self.failed, self.began = len(jobs), 0, 0, {}, {}
        self.runs = [job.run for job in jobs if job.run]
        self.start, self.epochs_before = time.monotonic(), sum(run.epochs_done() for run in self.runs)
        self.counted = self.epochs_before, self.start  # epochs done, and when the last of them was seen to end

    def run(self) -> list:
        """[(job, reason)] of those that failed. Interrupted: everything is ended, then a PluginError."""
        said = time.monotonic()
        with self._listening():
            try:
                while (self.waiting or self.active) and not self.signals:
                    self._turn()
                    if time.monotonic() - said > HEARTBEAT:
                        said = time.monotonic()
                        running = "; ".join(self._progress(job) for job, _ in self.active)
                        self._say(running or "waiting for another process that is at these runs")
                    self._rest()
            finally:
                if self.active:
                    print("interrupted: ending the runs", file=sys.stderr, flush=True)
                    self.places.end([attempt for _, attempt in self.active], hurry=lambda: self.signals > 1)
        if self.signals:
            raise PluginError("Interrupted; the same command goes on where it stopped.")
        return list(self.failed.values())

    def _rest(self):
        until = time.monotonic() + self.places.pause
        while time.monotonic() < until and not self.signals:
            time.sleep(0.1)

    @contextmanager
    def _listening(self):
        """Ctrl-C and SIGTERM are only noted, so that no command is started and forgotten; nohup stays nohup."""
        heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._note_signal) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note_signal(self, _number, _frame):
        self.signals += 1

    def _turn(self):
        for job, attempt in list(self.active):
            if attempt.done():
                self.active.remove((job, attempt))
                self._finish(job, outcome(attempt))
        for job in list(self.waiting):
            if broken := [self.failed[key] for key in job.needs if key in self.failed]:
                self.waiting.remove(job)
                self._finish(job, f"needs {broken[0][0].title}, which failed: {broken[0][1]}")
                if job.run:
                    with suppress(OSError):
                        note(job.run, status="failed", reason=self.failed[job.key][1])
        unmet = {job.key for job in self.waiting} | {job.key for job, _ in self.active}
        for started in self.places.start([job for job in self.waiting if not unmet & set(job.needs)]):
            self.waiting.remove(started[0])
            self.active.append(started)
            self.began[started[0].key] = time.monotonic()

    def _finish(self, job, reason):
        self.ended += 1
        if reason:
            self.failed[job.key] = (job, reason)
        self._say(f"{job.title}: {f'FAILED ({reason})' if reason else 'ok'}{self._seconds(job)}")

    def _seconds(self, job):
        return f", {time.monotonic() - self.began[job.key]:.0f} s" if job.key in self.began else ""

    def _progress(self, job):
        return f"{job.title}: epoch {job.run.epochs_done()}/{job.run.epochs}" if job.run else job.title

    def _say(self, text):
        print(f"[{self.ended}/{self.total}] {text}{self._left()}", flush=True)

    def _left(self):
        """The time left, by the epochs done since the start; nothing while there are none. It falls inside an epoch."""
        failed = {job.run for job, _ in self.failed.values()}
        left = sum(run.epochs - run.epochs_done() for run in self.runs if run not in failed)
        if (all_done := sum(run.epochs_done() for run in self.runs)) != self.counted[0]:
            self.counted = all_done, time.monotonic()
        done, since = all_done - self.epochs_before, self.counted[1]
        if done <= 0 or left <= 0:
            return ""
        each = (since - self.start) / done
        minutes = max(0.0, each * left - (time.monotonic() - since)) / 60
        return f"; about {minutes:.0f} min left" if minutes < 120 else f"; about {minutes / 60:.1f} h left"
