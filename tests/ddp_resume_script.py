"""Run by tests/test_ddp_resume.py under torchrun: tiny runs that are broken off and gone on with, all in one launch.

usage: ddp_resume_script.py WHERE CASE...; each rank writes how each case ended to WHERE/CASE_RANK.pt.
"""

import contextlib
import io
import os
import signal
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from runs import Before, DroppingNet  # noqa: E402
from tiny import TinyNet  # noqa: E402

import atsc_plugin  # noqa: E402
from atsc_plugin.data.device_loader import DeviceLoader  # noqa: E402
from atsc_plugin.engine import distributed, latest, run_state  # noqa: E402
from atsc_plugin.engine.trainer import PluginTrainer  # noqa: E402
from atsc_plugin.errors import Interrupted  # noqa: E402

torch.set_num_threads(1)
atsc_plugin.register()

from atsc_plugin.host import CFG, distiller_dict  # noqa: E402


class Killed(BaseException):
    """Stands for SIGKILL of all ranks: nothing of ours answers it."""


def loader(seed=None, count=36, start=0):
    draw = torch.Generator().manual_seed(9 + start)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    ranks = {"rank": distributed.rank(), "world": distributed.world()} if seed else {}
    return DeviceLoader(images, torch.arange(count) % 10, 8, [0.5] * 3, [0.25] * 3, seed=seed, padding=2, **ranks)


def trainer_of(where, name, **keys):
    """2 epochs of 5 steps, 36 images; 5 batches to evaluate: 3 for rank 0, 2 for rank 1."""
    cfg = CFG.clone()
    cfg.merge_from_list(["LOG.PREFIX", str(where), "SOLVER.EPOCHS", 2, "SOLVER.LR", 0.02, "SOLVER.BATCH_SIZE", 8])
    cfg.merge_from_list(["SOLVER.TRAINER", "plugin", "ATSC.MONITOR.IMAGES", 10, "DISTILLER.TYPE", "ATSC"])
    cfg.merge_from_list([word for key, value in keys.items() for word in (key.replace("__", "."), value)])
    torch.manual_seed(1)
    distiller = distiller_dict["ATSC"](DroppingNet(width=4), TinyNet(width=6), cfg)
    folder = Path(where) / name / "run"
    return PluginTrainer("run", distiller, loader(seed=5), loader(count=37, start=1), cfg, folder=folder)


def dying(number):
    def act(step):
        if step == number:
            raise Killed

    return act


def broken(where, name, act, resume=False, **keys):
    """One life of a run with act(number of the step) before each step: its end."""
    trainer = trainer_of(where, name, **keys)
    trainer.step = Before(trainer.step, act)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            trainer.train(resume=resume)
    except (Killed, Interrupted) as end:
        return {"status": getattr(end, "code", None), "said": said.getvalue(), "saved": trainer.saved}
    return {"state": {key: tensor.clone() for key, tensor in trainer.distiller.state_dict().items()}}


def whole(where, name="whole", **keys):
    return broken(where, name, lambda step: None, **keys)


def killed(where):
    """A state every 2 steps; all ranks die before steps 4, 3 and 4 of a life each."""
    keys = {"LOG__CHECKPOINT_STEPS": 2}
    lives = [broken(where, "killed", dying(at), resume=n > 0, **keys) for n, at in enumerate((4, 3, 4))]
    return {**whole(where, "killed", resume=True, **keys), "lives": lives}


def signalled(where):
    """SIGTERM reaches rank 1 alone, before its step 2."""
    act = lambda step: os.kill(os.getpid(), signal.SIGTERM) if (step, distributed.rank()) == (2, 1) else None  # noqa: E731
    end = broken(where, "signalled", act)
    return {**whole(where, "signalled", resume=True), "first": end}


def evaluating(where):
    """SIGUSR1 reaches rank 0 alone, in the evaluation that ends epoch 1, before its second batch."""
    trainer = trainer_of(where, "evaluating")
    trainer.val_loader = Sending(trainer.val_loader)
    try:
        trainer.train()
    except Interrupted as end:
        first = {"status": end.code, "saved": trainer.saved}
    return {**whole(where, "evaluating", resume=True), "first": first}


class Sending:
    """Sends a signal to rank 0 before batch 2 of the whole of pass 2: the teacher is measured in the first."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.passes += 1
        for place, batch in enumerate(self.batches):
            if (self.passes, place, distributed.rank()) == (2, 2, 0):
                os.kill(os.getpid(), signal.SIGUSR1)
            yield batch


def minutes(where):
    """Every look at rank 0's clock says that a state is due, no look at rank 1's does."""
    saved, original = [], run_state.save_inside
    run_state.save_inside = lambda trainer: (saved.append(trainer.work.steps), original(trainer))
    end = broken(where, "minutes", dying(4), LOG__CHECKPOINT_MINUTES=1e9 if distributed.rank() else 1e-9)
    run_state.save_inside = original
    return {**whole(where, "minutes", resume=True), "first": end, "saved": saved}


def skipping(where):
    """The images of rank 1 are NaN in step 2: every rank leaves the step out. Then once more, killed before step 4."""
    keys = {"SOLVER__NONFINITE": "skip", "LOG__CHECKPOINT_STEPS": 1}
    ends = []
    for name, life in (("skipping", lambda number: None), ("skipping_killed", dying(4))):
        trainer = trainer_of(where, name, **keys)
        trainer.step = Poisoned(Before(trainer.step, life))
        with contextlib.suppress(Killed):
            trainer.train()
        ends.append({key: tensor.clone() for key, tensor in trainer.distiller.state_dict().items()})
    return {**whole(where, "skipping_killed", resume=True, **keys), "twin": ends[0]}


class Poisoned(Before):
    def __init__(self, step):
        super().__init__(step, lambda number: None)

    def __call__(self, inputs):
        if (self.number, distributed.rank()) == (1, 1):
            inputs = {**inputs, "image": torch.full_like(inputs["image"], float("nan"))}
        return super().__call__(inputs)


def more(where):
    """One process is killed inside an epoch; two ranks go on."""
    if distributed.first():
        with distributed.alone():
            broken(where, "more", dying(4), LOG__CHECKPOINT_STEPS=3)
    return whole(where, "more", resume=True)


def fewer(where):
    """Two ranks are killed inside an epoch; the test goes on with one process."""
    broken(where, "fewer", dying(4), LOG__CHECKPOINT_STEPS=3)
    state = latest.read(Path(where) / "fewer" / "run")[0] if distributed.first() else None
    return {"inside": state and state["inside"]}


def slow(where):
    """Steps of a fifth of a second, for a real signal to torchrun from outside."""
    trainer = trainer_of(where, "slow", SOLVER__EPOCHS=1000)
    trainer.step = Before(trainer.step, lambda step: (time.sleep(0.2), Path(where, "begun").touch()))
    trainer.train()


def main():
    where, *cases = sys.argv[1:]
    with distributed.session("cpu"):
        for case in cases:
            end = globals()[case](where)
            torch.save(end, Path(where) / f"{case}_{distributed.rank()}.pt")


if __name__ == "__main__":
    main()
