"""One job as a subprocess with a device and a lock of its own, and what became of it.

The lock is held by the training process itself: when a runner is killed and its run lives on, the next runner waits for
that run instead of starting it a second time.
"""

import fcntl
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from atsc_plugin.engine.run_dir import read_json
from atsc_plugin.suites.jobs import note

ROOT = Path(__file__).resolve().parents[2]
SIGNALLED = "ended by signal"


@dataclass
class Processes:
    """The subprocesses that are running, so that an interrupt can end them."""

    running: set = field(default_factory=set)
    stopping: bool = False

    def run(self, words, *, log, device=None, threads=None, keep=()):
        """Exit status of a command; its words go to the log."""
        with open(log, "a", encoding="utf-8") as file:
            process = subprocess.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, env=environment(device, threads), pass_fds=keep,
                start_new_session=True,
            )  # fmt: skip
            self.running.add(process)
            try:
                if self.stopping:
                    process.terminate()
                return process.wait()
            except BaseException:  # an interrupt while this very thread waits: nobody else would end the process
                self.end()
                raise
            finally:
                self.running.discard(process)

    def end(self, patience=15.0):
        """Ask every subprocess to end, then make it: checkpoints appear whole, so nothing finished is lost."""
        self.stopping = True
        for process in list(self.running):
            process.terminate()
        until = time.monotonic() + patience
        while any(process.poll() is None for process in list(self.running)) and time.monotonic() < until:
            time.sleep(0.1)
        for process in list(self.running):
            process.kill()


def environment(device, threads):
    """The environment of a run: our package, its share of the cores, its device and no other."""
    added = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    if threads:
        added["OMP_NUM_THREADS"] = str(threads)
    if device == "cpu":
        added["CUDA_VISIBLE_DEVICES"] = ""
    elif device is not None:
        added["CUDA_VISIBLE_DEVICES"] = str(device)
    return {**os.environ, **added}


def train_words(job, device=None):
    """The command of a run."""
    words = [sys.executable, "-m", "atsc_plugin", "train", "--cfg", str(job.config), "--resume"]
    words += ["EXPERIMENT.SEED", str(job.seed), "LOG.PREFIX", str(job.folder.parents[2])]
    if job.source is not None:
        words += ["DISTILLER.TEACHER_CKPT", str(job.left_teacher)]
    if device is not None:
        words += ["EXPERIMENT.DEVICE", "cpu" if device == "cpu" else "cuda"]
    return words


def prepare_words(job):
    """The command that trains the teacher a job lacks."""
    return [sys.executable, "-m", "atsc_plugin", "prepare", "--cfg", str(job.config), "LOG.PREFIX",
            str(job.folder.parents[2])]  # fmt: skip


def teacher_log(job):
    return job.folder.parents[1] / "configs" / f"teacher_of_{job.name}.log"


def train_teacher(job, processes, device=None):
    """Train the teacher a job lacks; None when it is there, else the reason in words."""
    log = teacher_log(job)
    begun = _length(log)
    status = processes.run(prepare_words(job), log=log, device=device)
    return f"its teacher: {last_words(log, begun)}" if status else None


def run_job(job, processes, *, device=None, threads=None, at_once=1):
    """Train one job; None when all is well, else the reason in words. Its job.json says the same."""
    job.folder.mkdir(parents=True, exist_ok=True)
    with open(job.folder.parent / f"seed_{job.seed}.lock", "w") as lock, _held(lock, processes):
        if job.done or job.stopped or processes.stopping:  # whoever held the lock has ended it
            return None
        started, begun = time.time(), _length(job.log)
        note(job, status="running", device=device, at_once=at_once, reason=None)
        status = _keep_teacher(job, processes)
        if status == 0:
            words = train_words(job, device)
            status = processes.run(words, log=job.log, device=device, threads=threads, keep=(lock.fileno(),))
        reason = None if status == 0 and job.done else reason_of(job, status, begun)
        state = "done" if reason is None else "interrupted" if processes.stopping else "failed"
        note(job, status=state, reason=reason, minutes=round((time.time() - started) / 60, 2))
    return reason


def _keep_teacher(job, processes):
    """Write the teacher that the job's source left, once; 0 where there is nothing to do."""
    if job.source is None or job.left_teacher.exists():
        return 0
    words = [sys.executable, "-m", "atsc_plugin", "adapted", str(job.source)]
    status = processes.run(words, log=job.log, device="cpu")
    return 0 if job.left_teacher.exists() else status  # two arms of one source may both try


@contextmanager
def _held(lock, processes):
    while not processes.stopping:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.5)
    yield


def _length(log):
    """Bytes of a log: it is written on by every attempt, and an earlier one's error is not this one's."""
    return log.stat().st_size if log.exists() else 0


def reason_of(job, status, begun=0):
    """Why a run did not finish: what it said last, behind the first `begun` bytes of its log."""
    stopped = read_json(job.folder, "stopped.json")
    if stopped:
        return f"stopped in epoch {stopped.get('epoch')}: {stopped.get('reason')}"
    if status < 0:
        return f"{SIGNALLED} {-status}"
    return f"status {status}: {last_words(job.log, begun)}"


def last_words(log, begun=0):
    """The last error in a log from byte `begun` on, else its last line."""
    lines = [line.strip() for line in Path(log).read_bytes()[begun:].decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    told = [line for line in lines if line.startswith(("error:", "stopped:"))] or lines
    return told[-1][:300] if told else "it said nothing"
