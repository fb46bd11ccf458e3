"""SIGTERM, SIGINT and SIGUSR1 (SLURM's warning): the step is finished and the run leaves well; a second ends at once.

The handler only takes a note. The loop asks `check()` after every step and every evaluated batch, where all state is
consistent. Exit status is 128 + the signal's number, as a shell has it: 143, 130, 138.
"""

import os
import signal
import sys
import threading
from contextlib import suppress

ASKED_BY = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopAsked(BaseException):
    """A signal asked the run to end; not an Exception, so that nothing that forgives errors swallows it."""


class StopSignals:
    """Context manager that takes note of a signal. In a thread other than the main one it can take none."""

    def __init__(self):
        self.asked = None  # the signal's number
        self._before, self._process = {}, os.getpid()

    def __enter__(self):
        self.asked, self._process = None, os.getpid()
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in ASKED_BY if signal.getsignal(number) != signal.SIG_IGN]  # nohup stays nohup
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_):
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

    def check(self):
        """Raise StopAsked where a signal came; called where the state is consistent."""
        if self.asked is not None:
            raise StopAsked

    def watched(self, loader):
        """The loader's batches, with a check before each."""
        return _Watched(self, loader)


class _Watched:
    def __init__(self, signals, loader):
        self.signals, self.loader = signals, loader

    def __len__(self):
        return len(self.loader)

    def of_part(self, part):
        """The same watch over part(loader)."""
        return _Watched(self.signals, part(self.loader))

    def __iter__(self):
        for batch in self.loader:
            self.signals.check()
            yield batch


def continuing_words(argv):
    """The words of the command line that goes on with the run that `argv` started."""
    script, *words = argv
    words = [word for word in words if word not in ("--overwrite", "--resume")]
    module = script.endswith(os.path.join("atsc_plugin", "__main__.py"))
    start = ["python", "-m", "atsc_plugin"] if module else [sys.executable, script]
    place = 1 if words[:1] == ["train"] else 0
    return [*start, *words[:place], "--resume", *words[place:]]
