"""The progress bar of every loop over batches."""

from tqdm import tqdm

from atsc_plugin.engine import distributed


def progress(batches, label, total=None, done=0):
    """A bar on rank 0's terminal, nothing in a log file; `done` of the `total` batches lie behind."""
    silent = None if distributed.first() else True
    return tqdm(batches, desc=label, total=total, initial=done, leave=False, disable=silent)
