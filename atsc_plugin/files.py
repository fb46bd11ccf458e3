"""Files that appear whole, one writer a file, and the NumPy numbers a checkpoint may hold.

Every write goes to a temporary file in the same folder, is flushed to the disk and then renamed, so that a reader sees
the old file or the new one; the folder is flushed too, so that the name outlives a power cut. Needs no torch, so that
whatever only reads and writes run directories needs none.
"""

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock

from atsc_plugin.errors import PluginError

# mdistiller decays the rate with NumPy, so a NumPy number sits in the optimizer state it saves. These rebuild such a
# number and run nothing; the second name is the one NumPy 1 wrote.
_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64")),
]


PART = ".part"  # ending of a file that is being written; one that stays behind belongs to a process that was killed


@contextmanager
def whole_file(path):
    """A binary file that takes its name only when the block ends well."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a result is for colleagues too
        os.replace(temporary, path)
        flush_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def flush_folder(folder):
    """Put the names in a folder on the disk; a file system that cannot (some network ones) is left alone."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def remove_parts(folder):
    """Delete what writers that were killed left half written. Only for a folder that nobody else writes to."""
    for path in Path(folder).glob(f".*{PART}"):
        path.unlink(missing_ok=True)


def write_text(text, path):
    """Text, whole."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # a path need not be UTF-8


def write_json(content, path):
    """Indented JSON, whole."""
    write_text(json.dumps(content, indent=2) + "\n", path)


# ---- what is made once and used by many runs ----


def key_of(recipe):
    """A short name for all that decides what a cached thing is."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


@contextmanager
def only_writer(path, key):
    """The one process that may make `path`, for the length of a block; the kernel releases the lock of a dead holder.

    Whoever waited looks whether the file is there by now. `key` is the configuration key that chose the folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock")).acquire()
    except OSError as error:
        raise PluginError(f"{key} {path.parent} cannot be written: {error.strerror}. Choose another folder.") from error
    with lock:
        yield
