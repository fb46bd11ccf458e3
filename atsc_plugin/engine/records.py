"""What a run says of itself: a line an epoch, where it ran, and its result.

`Records` writes log.jsonl, mdistiller's worklog.txt and its TensorBoard folder `train.events`; `about` and `result_of`
are the contents of about.json and result.json.
"""

import platform
import subprocess
import time
from pathlib import Path

import torch
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from atsc_plugin import __version__
from atsc_plugin.engine import distributed, run_files
from atsc_plugin.engine.meters import peak_memory_mb
from atsc_plugin.files import write_text
from atsc_plugin.methods.teacher_list import teacher_names
from atsc_plugin.networks.deployed import deployed_of, tensors_of


def say(text, **where):
    """A line for people; several ranks say it once."""
    if distributed.first():
        print(text, flush=True, **where)


class NoRecords:
    """What a rank that writes no files has for its records."""

    def write(self, line):
        pass

    def close(self):
        pass


class Records:
    """The three logs of a run, one entry an epoch in each."""

    def __init__(self, folder, first_epoch):
        self.folder = Path(folder)
        kept = run_files.keep_lines_before(folder, first_epoch)
        write_text("".join(map(_worklog_entry, kept)), self.folder / "worklog.txt")
        self.events = _events(self.folder / "train.events", first_epoch)

    def write(self, line):
        run_files.append_line(self.folder, line)
        for name, value in _figures(line).items():
            self.events.write_event(Event(wall_time=time.time(), step=line["epoch"], summary=scalar(name, value)))
        self.events.flush()
        with open(self.folder / "worklog.txt", "a", encoding="utf-8") as file:
            file.write(_worklog_entry(line))

    def close(self):
        self.events.close()

    @staticmethod
    def epoch_text(line, epochs, best):
        """One readable line of an epoch for the terminal."""
        parts = [f"{name} {value:.4f}" for name, value in line.items() if name == "ce" or name.startswith("loss")]
        return (
            f"epoch {line['epoch']}/{epochs}  lr {line['lr']:.4g}  {'  '.join(parts)}  train {line['train_top1']:.1f}  "
            f"top-1 {line['top1']:.2f} (best {best:.2f})  {line['seconds']:.1f} s  "
            f"{line['images_per_second']:.0f} images/s"
        )


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
    folder.mkdir(exist_ok=True)
    events = EventsWriter(str(folder / "events"))
    if first_epoch > 1:
        started = SessionLog(status=SessionLog.SessionStatus.START)
        events.write_event(Event(wall_time=time.time(), step=first_epoch, session_log=started))
    return events


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"


def about(trainer, argv):
    """Where and how a run was started; `resumed` gets an entry each time it is continued."""
    return {
        "plugin": __version__,
        "host": trainer.facts.get("host"),
        "python": platform.python_version(),
        **surroundings(trainer),
        "seed": trainer.cfg.EXPERIMENT.SEED,
        "command": " ".join(argv),
        "commit": _commit(),
        "teacher_from": trainer.facts.get("teacher_from"),
        "resumed": [],
    }


def surroundings(trainer):
    """What a run's last digits hang on besides its configuration; may change where it is continued."""
    return {
        "host_version": trainer.facts.get("host_version"),
        "torch": torch.__version__,
        "device": device_name(trainer.device),
        "world_size": distributed.world(),
        "loader": type(trainer.train_loader).__name__,
    }


def _commit():
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


def _teacher_name(trainer):
    """None without a teacher, a list where the method has several."""
    if trainer.teacher_before is None:
        return None
    names = teacher_names(trainer.cfg)
    return names if isinstance(trainer.teacher_before, list) else names[0]


def result_of(trainer, *, last, best, teacher_after):
    """The content of result.json: accuracies in percent, sizes in parameters."""
    cfg, facts = trainer.cfg, trainer.facts
    module, unused = deployed_of(trainer.distiller)
    stored = tensors_of(module, unused)
    return {
        "method": cfg.DISTILLER.TYPE,
        "teacher": _teacher_name(trainer),
        "student": cfg.DISTILLER.STUDENT,
        "dataset": cfg.DATASET.TYPE,
        "data": facts.get("data"),
        "test_data": facts.get("test_data"),
        "image_size": facts.get("image_size"),
        "classes": facts.get("classes"),
        "seed": cfg.EXPERIMENT.SEED,
        "epochs": cfg.SOLVER.EPOCHS,
        "batch_size": cfg.SOLVER.BATCH_SIZE,  # of all ranks together
        "world_size": distributed.world(),
        "top1_last": last["top1"],
        "top1_best": best,
        "top5_last": last["top5"],
        "selected_on": "test" if trainer.test_loader is None else "val",
        "best_epoch": trainer.best_epoch,
        "teacher_top1_before": trainer.teacher_before,
        "teacher_top1_after": teacher_after,
        "seconds": trainer.trained_seconds,
        "images_per_second": trainer.trained_images / max(trainer.trained_seconds, 1e-9),
        "peak_memory_mb": peak_memory_mb(trainer.device),
        "params_student": sum(p.numel() for p in trainer.distiller.student.parameters()),
        "params_deployed": sum(p.numel() for name, p in module.named_parameters() if name in stored),
        "params_trained": sum(p.numel() for p in trainer.step.parameters()),
        "host": facts.get("host"),
        "host_version": facts.get("host_version"),
        "torch": torch.__version__,
        "device": device_name(trainer.device),
    }
