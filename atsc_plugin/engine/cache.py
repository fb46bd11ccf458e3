"""The cache of what is trained once and used by many runs: teachers, and DIH's heads on them."""

import fcntl
import hashlib
import json
from contextlib import contextmanager

from atsc_plugin.errors import PluginError


def key_of(recipe):
    """A short name for all that decides what the cached thing is."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def only_writer(path):
    """The one process that may make `path`, for the length of a block; the kernel frees the lock when its holder dies.

    Whoever waited looks whether the file is there by now.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "w")  # noqa: SIM115 - held by the block below
    except OSError as error:
        raise PluginError(
            f"TEACHER.CACHE {path.parent} cannot be written: {error.strerror}. Choose another folder."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)
