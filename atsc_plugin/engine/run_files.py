"""The run directory: where it lies, and the files in it that are text.

`LOG.PREFIX/EXPERIMENT.PROJECT/NAME/seed_K/`. `log.jsonl` has a line an epoch; `result.json` is written last, so it is
there exactly when the run is complete. Reading needs no torch.
"""

import hashlib
import json
import os
import re
from pathlib import Path

from atsc_plugin.errors import PluginError
from atsc_plugin.files import write_text

LEFT_OUT = (
    "LOG.",
    "EXPERIMENT.",
    "SOLVER.EPOCHS",
    "DATASET.ROOT",
    "DATASET.NUM_WORKERS",
    "DISTILLER.TEACHER_CKPT",
    "TEACHER.CACHE",
)  # overrides that do not belong into a run's name: places, seeds, lengths, logging


def experiment_name(cfg, overrides=()):
    """EXPERIMENT.NAME, or the tag, plus the overrides that change the method; legal on every file system."""
    name = cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG
    pairs = zip(overrides[::2], overrides[1::2], strict=False)
    added = [f"{key}={value}" for key, value in pairs if not key.startswith(LEFT_OUT)]
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", ",".join([name, *added])).lstrip(".") or "run"
    if len(name) > 100:
        name = f"{name[:87]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def run_directory(cfg, name):
    """The run's folder; a project name that would leave LOG.PREFIX is refused. Nothing is created."""
    project = Path(cfg.EXPERIMENT.PROJECT)
    if project.is_absolute() or ".." in project.parts or ".." in Path(name).parts or Path(name).is_absolute():
        raise PluginError(
            f"EXPERIMENT.PROJECT '{project}' and name '{name}' would leave LOG.PREFIX; expected plain folder names."
        )
    return Path(cfg.LOG.PREFIX) / project / name / f"seed_{cfg.EXPERIMENT.SEED}"


def create(folder):
    """Make the run directory, or say why it cannot be."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PluginError(
            f"Cannot create the run directory {folder}: {error.strerror}. Choose another place with LOG.PREFIX."
        ) from error
    if not os.access(folder, os.W_OK):
        raise PluginError(f"No permission to write in {folder}. Choose another place with LOG.PREFIX.")


def append_line(folder, content):
    """One JSON line to log.jsonl, on the disk when this returns."""
    with open(Path(folder) / "log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")
        file.flush()
        os.fsync(file.fileno())


def keep_lines_before(folder, epoch):
    """Drop log lines of `epoch` and later: a resumed run writes them again. The file is replaced whole."""
    path = Path(folder) / "log.jsonl"
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if line and json.loads(line)["epoch"] < epoch]
    write_text("".join(f"{line}\n" for line in kept), path)


def read_json(folder, name):
    """A JSON file of a run directory, None where it is absent."""
    path = Path(folder) / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PluginError(f"{path} cannot be read ({error}); expected JSON written by a run.") from error
