"""`latest` and the one before it: written so that one of them is whole at every moment, read so that a damaged one is
recognised, said and passed over.

The new state is written and flushed beside them; then `latest` becomes `latest_previous`, and the new one `latest`.
"""

import os
from pathlib import Path

from atsc_plugin.engine import checkpoint
from atsc_plugin.engine.run_files import LATEST, PREVIOUS
from atsc_plugin.errors import PluginError
from atsc_plugin.files import PART, flush_folder

REFUSED = "latest_refused"  # where a damaged `latest` is kept, for whoever wants to know why


def write(state, folder):
    """Put `state` in the place of `latest` and keep the old one as `latest_previous`."""
    folder = Path(folder)
    new = folder / f".{LATEST}.next{PART}"
    checkpoint.save(state, new)
    if (folder / LATEST).exists():
        os.replace(folder / LATEST, folder / PREVIOUS)
    os.replace(new, folder / LATEST)
    flush_folder(folder)


def read(folder):
    """(the newest whole state, its path); what is wrong with a newer one is printed and that file is set aside."""
    folder, wrong = Path(folder), []
    for path in (folder / LATEST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = checkpoint.load(path, checked=True)
        except PluginError as error:
            wrong.append((path, error))
            continue
        for broken, error in wrong:
            os.replace(broken, folder / REFUSED)
            print(f"WARNING: {error}\nIt is kept as {REFUSED}; going on from {path.name}.", flush=True)
        return state, path
    if not wrong:
        raise PluginError(f"There is no checkpoint {LATEST} or {PREVIOUS} in {folder}; start without --resume.")
    told = "\n".join(f"  - {error}" for _, error in wrong)
    raise PluginError(f"No checkpoint of {folder} can be used, and none was changed:\n{told}\nStart with --overwrite.")
