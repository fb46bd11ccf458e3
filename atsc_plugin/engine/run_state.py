"""The checkpoints of a run: what is written after every epoch, and how a run continues from `latest`.

`latest` and `best` hold the whole distiller, `student_*` the bare student in mdistiller's shape, `deploy_*` all that
inference needs and nothing else.
"""

import sys

from atsc_plugin.distillers.deployed import tensors_of
from atsc_plugin.engine import checkpoint
from atsc_plugin.engine.records import about
from atsc_plugin.errors import PluginError
from atsc_plugin.files import write_json, write_text


def write_start(trainer):
    """cfg.yaml and about.json, before the first step."""
    write_text(trainer.cfg.dump(), trainer.folder / "cfg.yaml")
    write_json(about(trainer, sys.argv), trainer.folder / "about.json")


def save_epoch(trainer, line):
    """All files of an epoch; `latest` is written last, so that it never runs ahead of the others."""
    epoch, folder = line["epoch"], trainer.folder
    better = line["top1"] > trainer.best_top1
    if better:
        trainer.best_top1, trainer.best_epoch = line["top1"], epoch
    student = {"model": trainer.distiller.student.state_dict()}
    state = {"epoch": epoch, "model": trainer.distiller.state_dict(), "best_acc": trainer.best_top1}
    for name in ["last", "best"] if better else ["last"]:
        _save_deployed(trainer, folder / f"deploy_{name}", line)
    if better:
        checkpoint.save(state, folder / "best")
        checkpoint.save(student, folder / "student_best")
    checkpoint.save(student, folder / "student_latest")
    state |= {
        **trainer.step.state(),
        "best_epoch": trainer.best_epoch,
        "seconds": trainer.trained_seconds,
        "images": trainer.trained_images,
        "teacher_before": trainer.teacher_before,
    }
    if hasattr(trainer.distiller, "run_state"):
        state["method"] = trainer.distiller.run_state()
    if epoch % trainer.cfg.LOG.SAVE_CHECKPOINT_FREQ == 0:
        checkpoint.save(state, folder / f"epoch_{epoch}")
    checkpoint.save(state, folder / "latest")


def write_stop(trainer, epoch, reason):
    """Why the run ended early; a result.json would say that it had not."""
    write_json({"epoch": epoch, "reason": reason}, trainer.folder / "stopped.json")


def _save_deployed(trainer, path, line):
    module, unused = trainer.deployed()
    card = {
        **trainer.facts,
        "epoch": line["epoch"],
        "top1_when_saved": line["top1"],
        **module.facts(),
        "unused": unused,
    }
    checkpoint.save_tensors(tensors_of(module, unused), path, card)


def continue_from_latest(trainer):
    """Bring back the state of the last finished epoch; the number of the next one."""
    path = trainer.folder / "latest"
    state = checkpoint.load(path)
    try:
        trainer.distiller.load_state_dict(state["model"])
        trainer.step.load_state(state)
        trainer.best_top1, trainer.best_epoch = state["best_acc"], state["best_epoch"]
        trainer.trained_seconds, trainer.trained_images = state["seconds"], state["images"]
        trainer.teacher_before = state["teacher_before"]
        if hasattr(trainer.distiller, "load_run_state"):
            trainer.distiller.load_run_state(state["method"])
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise PluginError(
            f"{path} does not continue this run ({type(error).__name__}: {str(error).splitlines()[0]}); expected the "
            "checkpoint of the same configuration. Start anew with --overwrite."
        ) from error
    print(f"resuming {trainer.folder} after epoch {state['epoch']}", flush=True)
    return state["epoch"] + 1
