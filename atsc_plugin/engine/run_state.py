"""The checkpoints of a run: what is written after every epoch and inside one, and how a run continues from `latest`.

`latest` and `best` hold the whole distiller, `student_*` the bare student in mdistiller's shape, `deploy_*` all that
inference needs and nothing else. `latest` has besides all that an exact continuation needs.
"""

import sys
import time

from atsc_plugin.engine import checkpoint, distributed, latest, run_files
from atsc_plugin.engine.records import about, surroundings
from atsc_plugin.errors import PluginError, out_of_memory
from atsc_plugin.files import remove_parts, write_json, write_text
from atsc_plugin.networks.deployed import deployed_of, tensors_of


def begin(trainer, resume):
    """Start or go on; (number of the first epoch to run, state inside it or None). The directory is ours alone."""
    start, state = distributed.from_first(lambda: _begin(trainer, resume))
    if state is not None and not distributed.first():
        _take_up(trainer, state)
    trainer.saved_at = time.monotonic()
    return start


def _begin(trainer, resume):
    """(start, the state gone on from or None): what one rank does for all."""
    remove_parts(trainer.folder)
    start, state = continue_from_latest(trainer) if resume else ((1, None), None)
    if not resume:
        for name in (run_files.LATEST, run_files.PREVIOUS, "result.json"):  # of another run: never to go on from
            (trainer.folder / name).unlink(missing_ok=True)
        _write_start(trainer)
    (trainer.folder / "stopped.json").unlink(missing_ok=True)
    return start, state


def _write_start(trainer):
    """cfg.yaml and about.json, before the first step."""
    write_text(trainer.cfg.dump(), trainer.folder / "cfg.yaml")
    write_json(about(trainer, sys.argv), trainer.folder / "about.json")


def save_epoch(trainer, line):
    """All files of an epoch; `latest` is written last, so that it never runs ahead of the others."""
    epoch = line["epoch"]
    better = line["top1"] > trainer.best_top1
    if better:
        trainer.best_top1, trainer.best_epoch = line["top1"], epoch
    state = _state(trainer, epoch)
    if distributed.first():
        _write_epoch(trainer, line, state, better)
    _note_saved(trainer, state)


def _write_epoch(trainer, line, state, better):
    epoch, folder = line["epoch"], trainer.folder
    student = {"model": trainer.distiller.student.state_dict()}
    for name in ["last", "best"] if better else ["last"]:
        _save_deployed(trainer, folder / f"deploy_{name}", line)
    if better:
        best = {"epoch": epoch, "model": trainer.distiller.state_dict(), "best_acc": trainer.best_top1}
        checkpoint.save(best, folder / "best")
        checkpoint.save(student, folder / "student_best")
    checkpoint.save(student, folder / "student_latest")
    if epoch % trainer.cfg.LOG.SAVE_CHECKPOINT_FREQ == 0:
        checkpoint.save(state, folder / f"epoch_{epoch}")
    latest.write(state, folder)
    run_files.prune(folder, trainer.cfg.LOG.KEEP_CHECKPOINTS)


def save_inside(trainer):
    """`latest` in the middle of an epoch, from which the run goes on exactly there."""
    trainer.work.check()
    state = _state(trainer, trainer.work.epoch - 1, trainer.work.state())
    if distributed.first():
        latest.write(state, trainer.folder)
    _note_saved(trainer, state)


def _state(trainer, epoch, inside=None):
    """All that a continuation needs; `epoch` is the last finished one, `inside` the state of the one that is not.

    Every rank calls it, since the method may add up what the ranks counted.
    """
    state = {
        "epoch": epoch,
        "inside": inside,
        "model": trainer.distiller.state_dict(),
        **trainer.step.state(),
        "best_acc": trainer.best_top1,
        "best_epoch": trainer.best_epoch,
        "seconds": trainer.trained_seconds,
        "images": trainer.trained_images,
        "teacher_before": trainer.teacher_before,
        "classes": trainer.facts.get("classes"),
        "data": trainer.facts.get("data"),
    }
    if hasattr(trainer.distiller, "run_state"):
        state["method"] = trainer.distiller.run_state()
    return state


def _note_saved(trainer, state):
    trainer.saved, trainer.saved_at = place_of(state), time.monotonic()


def place_of(state):
    """Where in the run a state was written, in words."""
    inside = state["inside"]
    return (
        f"after step {inside['meters']['steps']} of epoch {inside['epoch']}"
        if inside
        else f"after epoch {state['epoch']}"
    )


def last_good(trainer):
    """Which checkpoint is left to a person whose run has ended, in words."""
    return (
        f"the last good checkpoint is `latest`, written {trainer.saved}"
        if trainer.saved
        else "no checkpoint was written"
    )


def write_stop(trainer, epoch, reason):
    """Why the run ended early; a result.json would say that it had not."""
    write_json({"epoch": epoch, "reason": reason}, trainer.folder / "stopped.json")


def _save_deployed(trainer, path, line):
    module, unused = deployed_of(trainer.distiller)
    card = {
        **trainer.facts,
        "epoch": line["epoch"],
        "top1_when_saved": line["top1"],
        **module.facts(),
        "unused": unused,
    }
    checkpoint.save_tensors(tensors_of(module, unused), path, card)


# ---- going on ----


def continue_from_latest(trainer):
    """Bring back the last state; ((number of the epoch to run next, state inside it or None), the state)."""
    state, path = latest.read(trainer.folder)
    try:
        _refuse_misfit(trainer, state, path)
        _take_up(trainer, state)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        if out_of_memory(error):
            raise
        raise PluginError(
            f"{path} does not continue this run ({type(error).__name__}: {str(error).splitlines()[0]}); expected the "
            "checkpoint of the same configuration. Start anew with --overwrite."
        ) from error
    _write_continuation(trainer)
    print(f"resuming {trainer.folder} {trainer.saved}", flush=True)
    return (state["epoch"] + 1, state["inside"]), state


def _take_up(trainer, state):
    trainer.distiller.load_state_dict(state["model"])
    trainer.step.load_state(state)
    trainer.best_top1, trainer.best_epoch = state["best_acc"], state["best_epoch"]
    trainer.trained_seconds, trainer.trained_images = state["seconds"], state["images"]
    trainer.teacher_before = state["teacher_before"]
    if state["classes"]:
        trainer.facts.setdefault("classes", state["classes"])
    if hasattr(trainer.distiller, "load_run_state"):
        trainer.distiller.load_run_state(state["method"])
    trainer.saved = place_of(state)


def _refuse_misfit(trainer, state, path):
    """What no configuration key tells: other images, fewer epochs than are done."""
    there, asked = state["data"], trainer.facts.get("data")
    if there and asked and there != asked:
        raise PluginError(f"{path} was trained on {there}; these data are {asked}. Name the same data to go on.")
    done = state["epoch"] + bool(state["inside"])
    if done > trainer.cfg.SOLVER.EPOCHS:
        raise PluginError(
            f"{path} is in epoch {done}; SOLVER.EPOCHS asks for {trainer.cfg.SOLVER.EPOCHS}. Ask for as many or more."
        )


def _write_continuation(trainer):
    """cfg.yaml with the values that now hold, about.json with an entry for this continuation."""
    now = surroundings(trainer)
    facts = run_files.read_json(trainer.folder, "about.json") or about(trainer, sys.argv)
    for name, value in now.items():
        if facts.get(name, value) != value:
            print(f"note: {name} was {facts[name]}, is {value}: the last digits may differ from now on", flush=True)
    entry = {"from": trainer.saved, "command": " ".join(sys.argv), **now}
    facts["resumed"] = [*facts.get("resumed", []), entry]
    write_text(trainer.cfg.dump(), trainer.folder / "cfg.yaml")
    write_json(facts, trainer.folder / "about.json")
