"""The leaderboard's runner with one bar over all jobs and an estimate of the time left.

Work is counted in seconds on one idle core, from rates that were measured. How much slower this machine is follows
from the epochs that have ended; inside an epoch the bar moves by the clock. Without a terminal the runner's own lines
are printed instead of the bar.
"""

from __future__ import annotations

import re
import sys
import time

from tqdm import tqdm

from atsc_plugin.leaderboard.jobs import Job
from atsc_plugin.leaderboard.runner import Runner

# By arm of the suite: seconds to train its resnet8 on 1,000 images with one thread. In the dearest the teacher learns.
SECONDS = {"vanilla": 1.05, "kd": 2.05, "simkd": 2.05, "atsc": 4.05}
TEACHER_SECONDS = 3.0
AROUND = 8.0  # seconds of a job besides its epochs: start, first and last evaluation
TEACHER_EPOCHS, IMAGES = 10, 5000  # where the configuration does not say; defaults of configs/quickstart
FINAL = 0.5  # the last evaluation, in epochs
INSIDE = 0.95  # the clock moves the bar this far into an epoch, and then waits for its end


def work_of(job: Job) -> float:
    """Seconds that a job takes on one idle core."""
    keys = job.run.keys if job.run else {}
    images = keys.get("DATASET.DIGITS100.TRAIN_IMAGES", IMAGES)
    each = SECONDS.get(job.run.arm, max(SECONDS.values())) if job.run else TEACHER_SECONDS
    return epochs_of(job) * images / 1000 * each + AROUND


def epochs_of(job: Job) -> int:
    return job.run.epochs if job.run else TEACHER_EPOCHS


def epochs_done(job: Job) -> int:
    """Epochs that have ended: lines of the run's log, or for a teacher what its command printed."""
    if job.run:
        return job.run.epochs_done()
    if not job.log.is_file():
        return 0
    found = re.findall(r"^epoch (\d+)/", job.log.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return min(epochs_of(job), int(found[-1])) if found else 0


def seconds_left(left: dict[str, float], needs: dict[str, tuple], slots: int) -> float:
    """The slots' share of all that is left, or the longest job behind what it needs, whichever takes longer."""
    chains = [own + sum(left.get(need, 0.0) for need in needs[key]) for key, own in left.items()]
    return max([sum(left.values()) / slots, *chains])


def clock(seconds: float) -> str:
    """1:05 for 65 seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class BarRunner(Runner):
    """Runner that draws one bar; `_say` and `_rest` are where it speaks and waits, `_left` is its estimate."""

    def __init__(self, jobs: list[Job], places):
        super().__init__(jobs, places)
        self.jobs, self.slots, self.over = {job.key: job for job in jobs}, places.at_once, set()
        self.marks = {key: (epochs_done(job), None) for key, job in self.jobs.items()}  # (epochs, since when)
        self.spent = self.gained = 0.0  # seconds, and work, of the epochs that ended in this call
        self.bar = tqdm(
            total=100,
            bar_format="{percentage:3.0f}% |{bar}| {desc}",
            dynamic_ncols=True,
            leave=False,
            disable=not sys.stderr.isatty(),
        )

    def run(self) -> list:
        """Runner.run, and the bar is gone afterwards."""
        try:
            return super().run()
        finally:
            self.bar.close()

    # ---- how far it is ----

    def look(self) -> tuple[dict[str, float], float]:
        """({job: share done}, seconds here for a second of work on an idle core); notes the epochs that have ended."""
        now, shares = time.monotonic(), {}
        spent = gained = 0.0  # of the epochs that are running
        for key, job in self.jobs.items():
            epochs, (done, since) = epochs_of(job), self.marks[key]
            parts, inside = epochs + FINAL, 0.0
            if key in self.over or key not in self.began:
                shares[key] = 1.0 if key in self.over else done / parts
                continue
            since, ended = since or self.began[key], epochs_done(job)
            if ended > done:
                self.spent += now - since
                self.gained += (ended - done) * work_of(job) / parts
                done, since = ended, now
            self.marks[key] = done, since
            part = 1.0 if done < epochs else FINAL
            work = part * work_of(job) / parts
            inside = min(INSIDE, (now - since) / (work * self._pace()))
            spent, gained = spent + now - since, gained + inside * work
            shares[key] = (done + inside * part) / parts
        all_gained = self.gained + gained
        return shares, (self.spent + spent) / all_gained if all_gained else 1.0

    def _pace(self):
        """By the epochs that have ended; the first ones are expected to run as on an idle core."""
        return self.spent / self.gained if self.gained else 1.0

    def seconds_left(self) -> float:
        """The estimate, by what is left of every job, the pace so far and the slots."""
        shares, pace = self.look()
        left = {key: work_of(job) * (1 - shares[key]) * pace for key, job in self.jobs.items()}
        return seconds_left(left, {key: job.needs for key, job in self.jobs.items()}, self.slots)

    # ---- what is shown ----

    def _rest(self):
        if not self.bar.disable:
            shares, total = self.look()[0], sum(map(work_of, self.jobs.values()))
            self.bar.n = 100 * sum(work_of(self.jobs[key]) * share for key, share in shares.items()) / total
            passed, left = clock(time.monotonic() - self.start), clock(self.seconds_left())
            self.bar.set_description_str(f"{passed}, about {left} left  {self._running()}")
        super()._rest()
        if self.signals:
            self.bar.close()

    def _running(self):
        return "  ".join(f"{title(job)} {epochs_done(job)}/{epochs_of(job)}" for job, _ in self.active)

    def _finish(self, job, reason):
        self.over.add(job.key)
        super()._finish(job, reason)

    def _say(self, text):
        if self.bar.disable or "FAILED" in text:
            self.bar.clear()
            super()._say(text)

    def _left(self):
        return f"; about {clock(self.seconds_left())} left" if len(self.over) < len(self.jobs) else ""


def title(job: Job) -> str:
    """What a job is called: its method, or the teacher."""
    return job.run.record["display"] if job.run else "teacher"
