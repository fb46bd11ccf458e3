"""The run directory: where it lies, the lock on it, its logs and its other text files. Needs no torch.

`LOG.PREFIX/EXPERIMENT.PROJECT/NAME/seed_K/`. `log.jsonl` has a line an epoch; `result.json` is written last, so it is
there exactly when the run is complete.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from atsc_plugin import untrusted
from atsc_plugin.errors import PluginError
from atsc_plugin.files import write_json, write_text
from atsc_plugin.schema import BOOLEAN, FIGURE, MAPPING, NULL, Rule, list_of, number, one_of, problems, text, whole
from atsc_plugin.untrusted import read_yaml

LATEST, PREVIOUS = "latest", "latest_previous"
LOCK, HOLDER = "run.lock", "run.lock.json"
# Where and on what a run is made: neither a trial's name nor the comparison of two configurations knows these.
PLACES = (
    "LOG.", "DATASET.ROOT", "DATASET.NUM_WORKERS", "DATASET.DOWNLOAD", "EXPERIMENT.DEVICE", "TEACHER.CACHE",
    "TEACHER.TRAIN_IF_MISSING",
)  # fmt: skip
# May change when a run is continued: places, how long it goes on, what it does about trouble.
FREE = (*PLACES, "SOLVER.EPOCHS", "SOLVER.NONFINITE", "DATASET.LOADER", "ATSC.GUARD")
# May change too, and have no effect: the teachers are in the checkpoint.
KEPT = ("DISTILLER.TEACHER_CKPT", "DISTILLER.TEACHER_CKPTS")
LEFT_OUT = (*FREE, *KEPT, "EXPERIMENT.")  # overrides that do not belong into a run's name

# Of about.json: what a run's last digits depend on besides its configuration.
SURROUNDINGS = ("host_version", "torch", "device", "processor", "world_size", "loader", "precision")

LOG_BYTES, LOG_LINES = 8 << 20, 20_000  # of log.jsonl

# What the text files of a run may hold, as far as somebody reads it; what else stands in them is let be.
_NAMES = one_of(NULL, text(), list_of(text(), 64))  # a teacher, or several
_FIGURES = one_of(FIGURE, list_of(FIGURE, 64))
NETWORK = {"name": text(), "title": text(), "moved": BOOLEAN}  # beside the student
FIELDS = {
    "result.json": {
        **dict.fromkeys(("method", "method_name", "student", "dataset", "selected_on", "host", "host_version", "torch",
                         "device", "precision"), text()),
        **dict.fromkeys(("data", "test_data"), one_of(text(), NULL)),
        **dict.fromkeys(("seconds", "images_per_second", "params_student", "params_deployed", "params_trained"),
                        number(0)),
        **dict.fromkeys(("top1_last", "top1_best", "top5_last", "ece", "nll", "peak_memory_mb"), FIGURE),
        **dict.fromkeys(("teacher_top1_before", "teacher_top1_after"), _FIGURES),
        "teacher": _NAMES,
        "networks": one_of(list_of(Rule(lambda v: not problems(v, NETWORK, tuple(NETWORK)), "a network"), 64), NULL),
        "epochs": whole(1, 10**9),
        "best_epoch": one_of(whole(0, 10**9), NULL),
        "image_size": one_of(whole(1, 10**6), NULL),
        "seed": one_of(whole(0, 2**64), text(), NULL),
    },
    "job.json": {
        **dict.fromkeys(("suite", "suite_file", "cfg", "status", "reason", "pair", "adapted_by", "teacher_file",
                         "images"), one_of(text(), NULL)),
        **dict.fromkeys(("overrides", "notes"), one_of(list_of(text(), 1000), NULL)),
        "arm": text(),
        **dict.fromkeys(("set", "common"), one_of(MAPPING, NULL)),
        "stretch": number(1e-6, 1e6),
        "trials": whole(0, 10**9),
        "at_once": whole(1, 10**6),
        "seed": whole(0, 2**64),
    },
    "about.json": {"command": text(100_000), "resumed": Rule(lambda v: isinstance(v, list), "a list")},
    "stopped.json": {"reason": one_of(text(), NULL), "epoch": one_of(whole(0, 10**9), NULL)},
    # Nested keys by their dotted names, as a report reads them.
    "cfg.yaml": {
        **dict.fromkeys(("DISTILLER.TYPE", "DISTILLER.TEACHER", "DISTILLER.STUDENT", "DATASET.TYPE", "DATASET.ROOT",
                         "DISTILLER.TEACHER_CKPT"), text()),
        **dict.fromkeys(("DISTILLER.TEACHERS", "DISTILLER.TEACHER_CKPTS"), one_of(text(), list_of(text(), 64))),
        "SOLVER.EPOCHS": whole(1, 10**9),
        "TEACHER.SEED": whole(0, 2**64),
    },
}  # fmt: skip


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


@contextmanager
def held(folder):
    """Make the run directory and hold it for a block; PluginError with the holder's pid and host if it is taken.

    The kernel releases the lock when its holder dies; a forked loader worker does not keep it. On network file systems
    it holds as far as their flock does.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0).acquire()
    except Timeout:
        raise PluginError(
            f"{folder} is in use by {_holder(folder)}; expected one process a run directory. Wait for it or end it; "
            "for another run give this one an EXPERIMENT.NAME or LOG.PREFIX of its own."
        ) from None
    except OSError as error:
        raise PluginError(
            f"The run directory {folder} cannot be written: {error.strerror}. Choose another place with LOG.PREFIX."
        ) from error
    with lock:
        write_json({"pid": os.getpid(), "host": socket.gethostname()}, folder / HOLDER)
        yield
        (folder / HOLDER).unlink(missing_ok=True)


def _holder(folder):
    try:
        holder = untrusted.read_json(folder / HOLDER, "its holder")
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, PluginError, KeyError, TypeError):
        return "another process"


def refuse_if_held(folder):
    """An error if another process has the directory now; nothing is created."""
    if (Path(folder) / LOCK).exists():
        with held(folder):
            pass


def clear(folder):
    """Delete what an earlier run left, unless it is still running."""
    if Path(folder).is_dir():
        with held(folder):
            for path in [p for p in Path(folder).iterdir() if p.name != LOCK]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def has_checkpoint(folder):
    """Whether there is something to resume from."""
    return any((Path(folder) / name).exists() for name in (LATEST, PREVIOUS))


def prune(folder, keep):
    """Delete the oldest numbered checkpoints (epoch_N) until `keep` are left; 0 keeps all."""
    numbered = [path for path in Path(folder).glob("epoch_*") if path.name[6:].isdecimal()]
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
    kept = [line for line in log_lines(folder) if line["epoch"] < epoch]
    write_text("".join(json.dumps(line) + "\n" for line in kept), path)
    return kept


def log_lines(folder):
    """The lines of log.jsonl, at most LOG_LINES; one that a killed run left half written is left out."""
    try:
        content = untrusted.read_bytes(Path(folder) / "log.jsonl", LOG_BYTES)
    except FileNotFoundError:
        return []
    lines = [_entry(line) for line in content.splitlines()[:LOG_LINES]]
    return [line for line in lines if line]


def _entry(line):
    try:
        entry = untrusted.parse_json(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("epoch"), int) else None


def read_json(folder, name):
    """The mapping in a JSON file of a run directory, its known fields checked; None where the file is absent."""
    path = Path(folder) / name
    try:
        content = untrusted.read_json(path, "JSON written by a run")
    except FileNotFoundError:
        return None
    taught = name == "job.json" and isinstance(content, dict) and content.get("adapted_by")
    wrong = problems(content, FIELDS.get(name, {}), ("suite_file", "arm") if taught else ())
    if wrong:
        raise PluginError(f"{path} is none of ours: {'; '.join(wrong[:3])}.")
    return content


def read_tree(path, advice=""):
    """The nested keys of a configuration file; an empty file has none."""
    content = read_yaml(path, "Config file", advice)
    if content is not None and not isinstance(content, dict):
        raise PluginError(f"Config file {path} holds a {type(content).__name__}; expected nested keys such as SOLVER:.")
    return content or {}


# ---- the logs ----


class Logs:
    """log.jsonl, mdistiller's worklog.txt and its TensorBoard folder `train.events`: one entry an epoch in each."""

    def __init__(self, folder, first_epoch):
        self.folder = Path(folder)
        kept = keep_lines_before(folder, first_epoch)
        write_text("".join(map(_worklog_entry, kept)), self.folder / "worklog.txt")
        self.events = _events(self.folder / "train.events", first_epoch)

    def write(self, line):
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        append_line(self.folder, line)
        for name, value in _figures(line).items():
            self.events.write_event(Event(wall_time=time.time(), step=line["epoch"], summary=scalar(name, value)))
        self.events.flush()
        with open(self.folder / "worklog.txt", "a", encoding="utf-8") as file:
            file.write(_worklog_entry(line))

    def close(self):
        self.events.close()


def _figures(line):
    return {name: value for name, value in line.items() if isinstance(value, (int, float)) and name != "epoch"}


def _worklog_entry(line):
    """mdistiller's text form of an epoch."""
    entries = [f"epoch: {line['epoch']}", *(f"{name}: {value:.4f}" for name, value in _figures(line).items())]
    return "\n".join(["-" * 25, *entries, "-" * 25]) + "\n"


def _events(folder, first_epoch):
    """TensorBoard's file, written in this thread: a disk that fails is an error here and not a hang in another.

    Its first entry tells TensorBoard to forget what an interrupted run had written of `first_epoch` and later.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    folder.mkdir(exist_ok=True)
    events = EventsWriter(str(folder / "events"))
    if first_epoch > 1:
        started = SessionLog(status=SessionLog.SessionStatus.START)
        events.write_event(Event(wall_time=time.time(), step=first_epoch, session_log=started))
    return events


def epoch_text(line, epochs, best):
    """One readable line of an epoch for the terminal."""
    losses = [f"{name} {value:.4f}" for name, value in line.items() if name == "ce" or name.startswith("loss")]
    return (
        f"epoch {line['epoch']}/{epochs}  lr {line['lr']:.4g}  {'  '.join(losses)}  train {line['train_top1']:.1f}  "
        f"top-1 {line['top1']:.2f} (best {best:.2f})  {line['seconds']:.1f} s  "
        f"{line['images_per_second']:.0f} images/s"
    )


def commit():
    """The commit of this checkout, None for an installed wheel or without git."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
