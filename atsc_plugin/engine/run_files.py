"""The run directory: where it lies, and the files in it that are text.

`LOG.PREFIX/EXPERIMENT.PROJECT/NAME/seed_K/`. `log.jsonl` has a line an epoch; `result.json` is written last, so it is
there exactly when the run is complete. Reading needs no torch.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import yaml

from atsc_plugin.engine import run_lock
from atsc_plugin.errors import PluginError
from atsc_plugin.files import write_text

LATEST, PREVIOUS = "latest", "latest_previous"
LEFT_OUT = (
    "LOG.",
    "EXPERIMENT.",
    "SOLVER.EPOCHS",
    "DATASET.ROOT",
    "DATASET.NUM_WORKERS",
    "DISTILLER.TEACHER_CKPT",
    "TEACHER.CACHE",
)  # overrides that do not belong into a run's name: places, seeds, lengths, logging

# Where and on what a run is made: neither a trial's name nor the comparison of two configurations knows these.
PLACES = ("LOG.", "DATASET.ROOT", "DATASET.NUM_WORKERS", "DATASET.DOWNLOAD", "EXPERIMENT.DEVICE", "TEACHER.CACHE")


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
    """The run's folder; whatever would leave LOG.PREFIX, by its name or through a link, is refused. Nothing is made."""
    project, prefix = cfg.EXPERIMENT.PROJECT, Path(cfg.LOG.PREFIX)
    for part in (project, str(name)):
        if Path(part).is_absolute() or ".." in Path(part).parts or not part.isprintable():
            raise PluginError(
                f"EXPERIMENT.PROJECT {project!r} and name {str(name)!r} would leave LOG.PREFIX; expected plain folder "
                "names."
            )
    folder = prefix / project / name / f"seed_{cfg.EXPERIMENT.SEED}"
    try:
        real = folder.resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise PluginError(f"LOG.PREFIX {str(prefix)!r} is no path ({error}); expected a folder.") from error
    if not real.is_relative_to(prefix.resolve()):
        raise PluginError(
            f"{folder} leads out of LOG.PREFIX, to {real}: a link is in between. Remove it, or name its "
            "goal as LOG.PREFIX."
        )
    return folder


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


def clear(folder):
    """Delete what an earlier run left, unless it is still running."""
    if Path(folder).is_dir():
        with run_lock.held(folder):
            for path in [p for p in Path(folder).iterdir() if p.name != run_lock.NAME]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def has_checkpoint(folder):
    """Whether there is something to resume from."""
    return any((Path(folder) / name).exists() for name in (LATEST, PREVIOUS))


def prune(folder, keep):
    """Delete the oldest numbered checkpoints (epoch_N) until `keep` are left; 0 keeps all."""
    numbered = [path for path in Path(folder).glob("epoch_*") if path.name[6:].isdigit()]
    numbered.sort(key=lambda path: int(path.name[6:]))
    for path in numbered[:-keep] if keep else ():
        path.unlink()


def append_line(folder, content):
    """One JSON line to log.jsonl, on the disk when this returns; a disk that fails leaves no half line."""
    with open(Path(folder) / "log.jsonl", "ab") as file:
        before = file.tell()
        try:
            file.write((json.dumps(content) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(file.name, before)
            raise


def keep_lines_before(folder, epoch):
    """The log's lines before `epoch`; later ones, which a resumed run writes again, and half ones are dropped."""
    path = Path(folder) / "log.jsonl"
    if not path.exists():
        return []
    kept = [line for line in map(_entry, path.read_bytes().splitlines()) if line and line["epoch"] < epoch]
    write_text("".join(json.dumps(line) + "\n" for line in kept), path)
    return kept


def _entry(line):
    """A line of the log, None for one that a killed run left half written."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("epoch"), int) else None


def read_json(folder, name):
    """A JSON file of a run directory, None where it is absent."""
    path = Path(folder) / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise PluginError(f"{path} cannot be read ({error}); expected JSON written by a run.") from error


def read_yaml(path, kind, advice=""):
    """What a YAML file holds; `kind` and `path` are what an error calls it."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PluginError(f"{kind} {path} cannot be read: {error.strerror}.{advice}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PluginError(f"{kind} {path} is not valid YAML: {' '.join(str(error).split())}.") from error


def read_tree(path, advice=""):
    """The nested keys of a configuration file; an empty file has none."""
    content = read_yaml(path, "Config file", advice)
    if content is not None and not isinstance(content, dict):
        raise PluginError(f"Config file {path} holds a {type(content).__name__}; expected nested keys such as SOLVER:.")
    return content or {}
