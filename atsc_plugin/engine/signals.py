"""SIGTERM, SIGINT and SIGUSR1 (SLURM's warning): the step is finished and the run leaves well; a second ends at once.

The handler only takes a note. The loop asks `check()` after every step and before every evaluated batch, where all
state is consistent. Exit status is 128 + the signal's number, as a shell has it: 143, 130, 138.

Several ranks must leave at the same step, whichever of them got the signal: a signal seen by one rank is acted on by
all ranks at the next check. That costs a step or a batch of delay and some 0.1 ms of a thread beside the loop.
"""

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

from atsc_plugin.engine import distributed

ASKED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
WITHOUT_RESUME = ("teachers", "prepare", "bench", "quickstart")
LAUNCHED: list[str] = []  # `launch` and its options, while it runs a host's script, whose name then is sys.argv's first


class StopAsked(BaseException):
    """A signal asked the run to end; not an Exception, so that nothing that forgives errors swallows it."""


class StopSignals:
    """Context manager that takes note of a signal. In a thread other than the main one it can take none."""

    def __init__(self):
        self.asked = None  # the number of the signal that this process got
        self.ending = None  # and of the one upon which the run ends, which may have come to another rank
        self._before, self._process = {}, os.getpid()

    def __enter__(self):
        self.asked, self.ending, self._process = None, None, os.getpid()
        self._ranks = distributed.MaxOfRanks()
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in ASKED_BY if signal.getsignal(number) != signal.SIG_IGN]  # nohup stays nohup
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, error, *_):
        if error is None:
            self._ranks.read(2)  # so that nothing is under way when the ranks part
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number, _frame):
        if os.getpid() != self._process:  # a forked loader worker: its parent decides, SIGTERM ends it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.asked is not None:
            os._exit(128 + number)
        self.asked = number
        name = signal.Signals(number).name
        with suppress(OSError):  # print() may be interrupted inside itself
            os.write(2, f"\n{name}: ending after this step; once more ends at once\n".encode())

    def check(self, due=False):
        """Raise StopAsked where a signal came; else whether something is `due`. Called where the state is consistent.

        Of several ranks all call it, in the same places, and get the same answer, which is that of the call before.
        """
        if distributed.world() == 1:
            self.ending = self.asked
        else:
            own = due
            self.ending, due = self._ranks.read(2)
            if not self.ending:
                self._ranks.send(self.asked or 0, int(own and not due))  # what is done now is due no more
        if self.ending:
            raise StopAsked
        return bool(due)

    def watched(self, batches, rounds):
        """The batches of this rank, with a check before each; `rounds` in all, so that every rank checks as often."""
        done = 0
        for batch in batches:
            self.check()
            done += 1
            yield batch
        for _ in range(done, rounds):
            self.check()


def launcher_argv():
    """The arguments before a script's name with which torchrun started these ranks; none where it did not."""
    if distributed.world() == 1:
        return []
    each, nodes = os.environ.get("LOCAL_WORLD_SIZE", str(distributed.world())), os.environ.get("GROUP_WORLD_SIZE", "1")
    meeting = ["--standalone"] if nodes == "1" else [f"--nnodes={nodes}", "--rdzv-endpoint=HOST:PORT"]
    return ["torchrun", *meeting, f"--nproc_per_node={each}"]


def resuming_argv(argv, launcher=()):
    """The command line that resumes the run which `argv` started, by `launcher` (torchrun ...).

    Commands that train a teacher on their way have no --resume: the same command finds what is there.
    """
    script, *args = argv
    args = [arg for arg in args if arg not in ("--overwrite", "--resume")]
    module = bool(LAUNCHED) or script.endswith(os.path.join("atsc_plugin", "__main__.py"))
    python = launcher or (["python"] if module else [sys.executable])
    start = [*python, "-m", "atsc_plugin"] if module else [*python, script]
    if LAUNCHED:
        return [*start, *LAUNCHED, script, "--resume", *args]
    command, place = Path(script).stem, 0  # of a script in tools/ the name is the command
    if module or command == "atsc-plugin":
        place = next((place for place, arg in enumerate(args, 1) if arg in ("train", *WITHOUT_RESUME)), 0)
        command = args[place - 1] if place else ""
    resume = [] if command in WITHOUT_RESUME else ["--resume"]
    return [*start, *args[:place], *resume, *args[place:]]
