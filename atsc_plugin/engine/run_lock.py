"""One process a run directory: an advisory lock that the kernel gives back when its holder dies.

The file `run.lock` stays; only the lock on it counts. On network file systems it holds as far as their flock does.
"""

import fcntl
import json
import os
import socket
from contextlib import contextmanager
from pathlib import Path

from atsc_plugin.errors import PluginError
from atsc_plugin.untrusted import read_json

NAME = "run.lock"
_held = set()  # descriptors of this process


def _let_go_in_child():
    """A forked loader worker must not keep the lock of a parent that died."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def held(folder):
    """Hold the run directory for the length of a block; PluginError with the other's pid and host if it is taken."""
    path = Path(folder) / NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # absent in a child that was forked inside the block
            _held.discard(descriptor)
            os.close(descriptor)


def _take(descriptor, path):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PluginError(
            f"{path.parent} is in use by {_holder(path)}; expected one process a run directory. Wait for it or end it; "
            "for another run give this one an EXPERIMENT.NAME or LOG.PREFIX of its own."
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)


def _holder(path):
    try:
        who = read_json(path, "its holder")
        return f"process {who['pid']} on {who['host']}"
    except (OSError, PluginError, KeyError, TypeError):
        return "another process"


def refuse_if_held(folder):
    """An error if another process has the directory now; nothing is created."""
    if (Path(folder) / NAME).exists():
        with held(folder):
            pass
