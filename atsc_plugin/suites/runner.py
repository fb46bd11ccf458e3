"""Runs the jobs of a suite: configurations checked first, then teachers, then the runs, side by side on their devices.

A failure is kept and the rest goes on. Ctrl-C and SIGTERM end the runs and lose nothing: the same command goes on.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

from atsc_plugin.errors import PluginError
from atsc_plugin.keys import flatten
from atsc_plugin.suites import launch
from atsc_plugin.suites.jobs import note

HEARTBEAT = 30.0  # seconds between two lines about what is running


def check_configs(jobs):
    """Every configuration is loaded once, before anything is trained: an unknown method or key costs nothing."""
    files = list(dict.fromkeys(str(job.config) for job in jobs))
    words = [sys.executable, "-m", "atsc_plugin", "prepare", "--check", "--cfg", *files]
    done = subprocess.run(words, capture_output=True, text=True, env=launch.environment("cpu", None))
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").removeprefix("error: ")
        raise PluginError(f"The suite was not started. {said}")


def teacher_groups(jobs, waiting):
    """One waiting job for every teacher that no finished job has had yet."""
    had = {teacher_key(job) for job in jobs if job.done}
    groups = {}
    for job in waiting:
        if job.teacher and teacher_key(job) not in had:
            groups.setdefault(teacher_key(job), job)
    return list(groups.values())


def teacher_key(job):
    """What decides which teacher a job needs: its name, the images, the recipe, the files."""
    flags = flatten(job.tree)
    kept = {k: v for k, v in flags.items() if k.startswith(("DATASET.", "TEACHER.", "DISTILLER.TEACHER"))}
    return json.dumps({**kept, "momentum": flags.get("SOLVER.MOMENTUM")}, sort_keys=True, default=str)


def prepare_teachers(jobs, waiting, processes, device):
    """Train the missing teachers, one after the other; {key: why} of those that cannot be had."""
    failed = {}
    for job in teacher_groups(jobs, waiting):
        name = ", ".join(job.teacher) if isinstance(job.teacher, list) else job.teacher
        print(f"teacher {name}: looked for, and trained if it is missing ({launch.teacher_log(job)})", flush=True)
        started = time.monotonic()
        reason = launch.train_teacher(job, processes, device)
        print(f"teacher {name}: {'FAILED' if reason else 'ready'}, {time.monotonic() - started:.0f} s", flush=True)
        if reason:
            failed[teacher_key(job)] = reason
    return failed


class Runner:
    """A line of jobs and one worker a slot; a slot has a device of its own where devices were named."""

    def __init__(self, jobs, at_once, devices=()):
        self.jobs, self.at_once, self.devices = jobs, at_once, list(devices)
        self.processes = launch.Processes()
        self.failures, self.waiting = [], []
        self.ended, self.active, self.lock = 0, {}, threading.Lock()
        self.pending = {job.folder for job in jobs}
        self.pace = Pace(jobs)

    def device_of(self, slot):
        return self.devices[slot % len(self.devices)] if self.devices else None

    def run(self, all_jobs):
        """[(job, reason)] of those that failed. Interrupted: everything is ended, then a PluginError."""
        previous = signal.signal(signal.SIGTERM, _interrupt)
        workers = []
        try:
            lacking = prepare_teachers(all_jobs, self.jobs, self.processes, self.device_of(0))
            self.pace = Pace(self.jobs)
            for job in self.jobs:
                why = lacking.get(teacher_key(job)) if job.teacher else None
                self._finish(job, why, 0) if why else self.waiting.append(job)
            workers = [threading.Thread(target=self._work, args=(slot,)) for slot in range(self.at_once)]
            for worker in workers:
                worker.start()
            self._watch(workers)
        except KeyboardInterrupt:
            print("interrupted: ending the runs", file=sys.stderr, flush=True)
            self.processes.end()
            for worker in workers:
                worker.join()
            raise PluginError("Interrupted; the same command goes on where it stopped.") from None
        finally:
            signal.signal(signal.SIGTERM, previous)
        return self.failures

    def _watch(self, workers):
        said = time.monotonic()
        while any(worker.is_alive() for worker in workers):
            time.sleep(0.2)
            if time.monotonic() - said > HEARTBEAT:
                said = time.monotonic()
                with self.lock:
                    now = "; ".join(
                        f"{job.title}: epoch {job.epochs_done()}/{job.epochs}" for job in self.active.values()
                    )
                print(f"[{self.ended}/{len(self.jobs)}] {now}{self._left()}", flush=True)

    def _next(self, slot):
        """The first waiting job whose source, if it has one, has ended: no slot stands idle beside jobs that could run.

        None where no such job is left now; sources come earlier in the line, so some other slot is at them.
        """
        with self.lock:
            job = next((job for job in self.waiting if job.source not in self.pending), None)
            if job is not None:
                self.waiting.remove(job)
                self.active[slot] = job
        return job

    def _work(self, slot):
        threads = max(1, (os.cpu_count() or 1) // self.at_once)
        while self.waiting and not self.processes.stopping:
            job = self._next(slot)
            if job is None:
                time.sleep(0.2)
                continue
            began = time.monotonic()
            try:
                reason = launch.run_job(
                    job, self.processes, device=self.device_of(slot), threads=threads, at_once=self.at_once
                )
            except Exception as error:  # a full disk, a lost folder: this job fails, the others go on
                reason = f"{type(error).__name__}: {error}"
            with self.lock:
                del self.active[slot]
            if not self.processes.stopping:
                self._finish(job, reason, time.monotonic() - began)

    def _finish(self, job, reason, seconds):
        with self.lock:
            self.ended += 1
            self.pending.discard(job.folder)
            if reason:
                self.failures.append((job, reason))
        if reason and not (job.folder / "job.json").exists():
            note(job, status="failed", reason=reason)
        said = f"FAILED ({reason})" if reason else f"ok, {seconds:.0f} s"
        print(f"[{self.ended}/{len(self.jobs)}] {job.title}: {said}{self._left()}", flush=True)

    def _left(self):
        return "" if self.ended == len(self.jobs) else self.pace.left([job for job, _ in self.failures])


class Pace:
    """The time left of some jobs, by the epochs done since the start; nothing while there are none."""

    def __init__(self, jobs):
        self.jobs, self.started, self.before = jobs, time.monotonic(), sum(job.epochs_done() for job in jobs)

    def left(self, failed):
        failed = {id(job) for job in failed}
        done = sum(job.epochs_done() for job in self.jobs) - self.before
        left = sum(job.epochs - job.epochs_done() for job in self.jobs if id(job) not in failed)
        if done <= 0:
            return ""
        minutes = (time.monotonic() - self.started) / done * left / 60
        return f"; about {minutes:.0f} min left" if minutes < 120 else f"; about {minutes / 60:.1f} h left"


def _interrupt(_signal, _frame):
    raise KeyboardInterrupt
