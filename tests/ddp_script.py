"""Run by tests/test_ddp.py under torchrun, once a rank: all cases of several ranks, one after another in one launch.

usage: ddp_script.py WHERE CASE...; each rank writes how each case ended to WHERE/CASE_RANK.pt. The cases of ENDS are
also run by the test itself, as one process.
"""

import contextlib
import io
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import every_method  # noqa: E402
import torch  # noqa: E402
from runs import EMA, MODERN, Before, DroppingNet, config, dying, latest_of, tiny_loader, without_bn  # noqa: E402
from tiny import TinyNet, add_tiny_networks  # noqa: E402
from tiny import batch as toy_batch  # noqa: E402

from atsc_plugin import __main__ as command_line  # noqa: E402
from atsc_plugin.contract import IDLE_PARAMETERS  # noqa: E402
from atsc_plugin.engine import distributed  # noqa: E402
from atsc_plugin.engine.step import Step  # noqa: E402
from atsc_plugin.engine.trainer import PluginTrainer  # noqa: E402
from atsc_plugin.errors import Interrupted, PluginError  # noqa: E402
from atsc_plugin.host import cifar_model_dict, distiller_dict  # noqa: E402
from atsc_plugin.methods.atsc import ATSC  # noqa: E402
from atsc_plugin.methods.base import class_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["SOLVER.EPOCHS", 2, "SOLVER.LR", 0.02, "SOLVER.BATCH_SIZE", 8]


# ---- runs that end as one process's ----


class Settling(ATSC):
    """Its teacher learns in the first epoch alone, and it says so."""

    @classmethod
    def needs(cls, cfg):
        return {IDLE_PARAMETERS: "the teacher stops"}

    def before_epoch(self, epoch):
        super().before_epoch(epoch)
        self.warming_up = epoch > 1
        self._set_teacher_mode()


ENDS = {
    "vanilla": ("NONE", []),
    "kd": ("KD", []),
    "atsc": ("ATSC", ["ATSC.TEACHER.LR_SCALE", 0.5]),
    "accumulated": ("ATSC", ["SOLVER.ACCUMULATE", 2]),
    "warming": ("ATSC", ["ATSC.TEACHER.WARMUP_EPOCHS", 1]),
    "settling": ("ATSC", []),
    "ema": ("ATSC", EMA),
    "every": ("ATSC", ["ATSC.TEACHER.EVERY", 2]),
    "pausing": ("SWITOKD", ["SWITOKD.TEACHER.INIT", "pretrained"]),
    "with_bn": ("ATSC", []),
}


def end_of(where, case):
    """One run of two epochs of 36 images; its end: weights, theta_0, the result."""
    method, keys = ENDS[case]
    cfg = config(where, *SMALL, "DISTILLER.TYPE", method, *keys)
    torch.manual_seed(1)
    networks = [TinyNet(width=4), *([] if method == "NONE" else [TinyNet(width=6)])]
    divides = (lambda module: module) if case == "with_bn" else without_bn
    kind = Settling if case == "settling" else distiller_dict[method]
    distiller = kind(*map(divides, networks), *([] if method == "NONE" else [cfg]))
    divides(distiller)  # the projector
    trainer = PluginTrainer(
        "run", distiller, tiny_loader(seed=5, count=36), tiny_loader(count=13, start=1), cfg,
        test_loader=tiny_loader(count=21, start=2), folder=Path(where) / case / "run",
    )  # fmt: skip
    result = trainer.train()
    start = dict(distiller.theta_0[0].items()) if isinstance(distiller, ATSC) else {}
    looks = getattr(trainer.step.called, "find_unused_parameters", None)
    return {"state": distiller.state_dict(), "start": start, "result": result, "looks_for_unused": looks}


# ---- one step of every method ----

EACH = {name: (name, []) for name in every_method.NAMES if class_of(name).PER_IMAGE}
EACH["EMA"] = ("ATSC", every_method.WAYS["EMA"])
LEARNING = [case for case, (name, _) in EACH.items() if class_of(name).LEAVES_NETWORKS]


def stepped(where, case, divides):
    """A distiller after one step on this rank's share of 8 images; heads that are trained first stay as they are."""
    name, keys = EACH[case]
    with patch.dict(cifar_model_dict, tiny=(every_method.network, None)):
        cfg = every_method.config(name, Path(where), *keys, "SOLVER.WEIGHT_DECAY", 0.0)
        distiller = divides(every_method.distiller_of(cfg)).train()
    step = Step(distiller, cfg)
    step.method.driven = step.method.begun = True
    step.method.before_epoch(1)
    image, target = (each[distributed.rank() :: distributed.world()] for each in toy_batch(8))
    step({"image": image, "target": target, "epoch": 1})
    return distiller


def gradients(where):
    """{case: {parameter: gradient}} of BN-free networks."""
    return {case: gradients_of(stepped(where, case, without_bn)) for case in EACH}


def gradients_of(distiller):
    return {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}


def statistics(where):
    """{case: (BN's running statistics of a step, and the same after they were averaged)} where a teacher learns."""
    ends = {}
    for case in LEARNING:
        distiller = stepped(where, case, lambda module: module)
        own = {name: each.clone() for name, each in distiller.state_dict().items() if "running_" in name}
        distributed.average_bn(distiller)
        ends[case] = own, {name: distiller.state_dict()[name] for name in own}
    return ends


# ---- runs that are broken off and continued ----


class Killed(BaseException):
    """Stands for SIGKILL of all ranks: nothing of ours answers it."""


def trainer_of(where, name, **keys):
    """2 epochs of 5 steps, 36 images; 5 batches to evaluate: 3 for rank 0, 2 for rank 1."""
    pairs = [word for key, value in keys.items() for word in (key.replace("__", "."), value)]
    cfg = config(where, *SMALL, *pairs)
    torch.manual_seed(1)
    distiller = ATSC(DroppingNet(width=4), TinyNet(width=6), cfg)
    folder = Path(where) / name / "run"
    loaders = tiny_loader(seed=5, count=36), tiny_loader(count=37, start=1)
    return PluginTrainer("run", distiller, *loaders, cfg, folder=folder)


def life(where, name, act, resume=False, **keys):
    """One life of a run with act(number of the step) before each step: its end."""
    trainer = trainer_of(where, name, **keys)
    trainer.step = Before(trainer.step, act)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            trainer.train(resume=resume)
    except (Killed, Interrupted) as end:
        return {"status": getattr(end, "code", None), "said": said.getvalue(), "saved": trainer.checkpoints.saved}
    return {"state": {key: tensor.clone() for key, tensor in trainer.distiller.state_dict().items()}}


def whole(where, name="whole", **keys):
    return life(where, name, lambda step: None, **keys)


def killed(where):
    """`latest` every 2 steps; all ranks die before steps 4, 3 and 4 of a life each."""
    keys = {"LOG__CHECKPOINT_STEPS": 2}
    lives = [life(where, "killed", dying(at, Killed), resume=n > 0, **keys) for n, at in enumerate((4, 3, 4))]
    return {**whole(where, "killed", resume=True, **keys), "lives": lives}


def signalled(where):
    """SIGTERM reaches rank 1 alone, before its step 2."""

    def act(step):
        if (step, distributed.rank()) == (2, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    end = life(where, "signalled", act)
    return {**whole(where, "signalled", resume=True), "first": end}


def evaluating(where):
    """SIGUSR1 reaches rank 0 alone, in the evaluation that ends epoch 1, before its second batch."""
    trainer = trainer_of(where, "evaluating")
    trainer.val_loader = Sending(trainer.val_loader)
    try:
        trainer.train()
    except Interrupted as end:
        first = {"status": end.code, "saved": trainer.checkpoints.saved}
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
    """Every look at rank 0's clock says that a checkpoint is due, no look at rank 1's does."""
    trainer = trainer_of(where, "minutes", LOG__CHECKPOINT_MINUTES=1e9 if distributed.rank() else 1e-9)
    saved, original = [], trainer.checkpoints.save_inside
    trainer.checkpoints.save_inside = lambda inside: (saved.append(inside["meters"]["steps"]), original(inside))
    trainer.step = Before(trainer.step, dying(4, Killed))
    with contextlib.suppress(Killed):
        trainer.train()
    return {**whole(where, "minutes", resume=True), "saved": saved}


def skipping(where):
    """The images of rank 1 are NaN in step 2: every rank leaves the step out. Then once more, killed before step 4."""
    keys = {"SOLVER__NONFINITE": "skip", "LOG__CHECKPOINT_STEPS": 1}
    ends = []
    for name, act in (("skipping", lambda number: None), ("skipping_killed", dying(4, Killed))):
        trainer = trainer_of(where, name, **keys)
        trainer.step = Poisoned(Before(trainer.step, act))
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


def modern(where):
    """AdamW, cosine, warm-up and an average: a whole run, and one whose ranks die before step 4 of each epoch."""
    keys = {key.replace(".", "__"): value for key, value in zip(MODERN[::2], MODERN[1::2], strict=True)}
    twin = whole(where, "modern_whole", **keys)
    for number in range(2):
        life(where, "modern", dying(4 + 2 * number, Killed), resume=number > 0, LOG__CHECKPOINT_STEPS=2, **keys)
    return {**whole(where, "modern", resume=True, LOG__CHECKPOINT_STEPS=2, **keys), "twin": twin["state"]}


def more(where):
    """One process is killed inside an epoch; two ranks continue."""
    if distributed.first():
        with distributed.alone():
            life(where, "more", dying(4, Killed), LOG__CHECKPOINT_STEPS=3)
    return whole(where, "more", resume=True)


def fewer(where):
    """Two ranks are killed inside an epoch; the test continues with one process."""
    life(where, "fewer", dying(4, Killed), LOG__CHECKPOINT_STEPS=3)
    return {"inside": latest_of(Path(where) / "fewer" / "run")["inside"] if distributed.first() else None}


# ---- the command, and launches that end badly ----


def command(where):
    """train with a teacher that is missing. The ranks have met already, so the command's own meeting is left out."""
    add_tiny_networks(SimpleNamespace(setitem=dict.__setitem__))
    distributed.session = lambda wanted: contextlib.nullcontext()
    words = ["LOG.PREFIX", str(where), "EXPERIMENT.NAME", "command", "SOLVER.EPOCHS", "1", "TEACHER.EPOCHS", "1",
             "DISTILLER.TEACHER", "tiny_teacher", "DISTILLER.STUDENT", "tiny", "TEACHER.CACHE", f"{where}/teachers",
             "DATASET.DIGITS100.TRAIN_IMAGES", "100", "DATASET.DIGITS100.VAL_IMAGES", "100",
             "DATASET.DIGITS100.TEST_IMAGES", "100"]  # fmt: skip
    return {"status": command_line.main(["train", "--cfg", str(ROOT / "configs/quickstart/simkd.yaml"), *words])}


def fails_alone(where):
    """Rank 1 fails in step 2 while the others wait for its gradients; as the command line does it."""

    def act(step):
        if (step, distributed.rank()) == (2, 1):
            raise PluginError("a planted failure of one rank")

    def run(args):
        with distributed.session("cpu"):
            life(where, "fails_alone", act)

    distributed._join = lambda wanted: None  # the ranks have met
    distributed.leave(command_line._run(SimpleNamespace(run=run), None))
    return {}


def slow(where):
    """Steps of a fifth of a second, and a real signal to torchrun, whose children the ranks are."""

    def act(step):
        time.sleep(0.2)
        if (step, distributed.rank()) == (2, 0):
            os.kill(os.getppid(), signal.SIGTERM)

    trainer = trainer_of(where, "slow", SOLVER__EPOCHS=1000)
    trainer.step = Before(trainer.step, act)
    trainer.train()


def main():
    torch.set_num_threads(1)
    where, *cases = sys.argv[1:]
    with distributed.session("cpu"):
        for case in cases:
            end = end_of(where, case) if case in ENDS else globals()[case](where)
            torch.save(end, Path(where) / f"{case}_{distributed.rank()}.pt")
        Path(where, f"done_{distributed.rank()}.json").write_text(json.dumps(cases))


if __name__ == "__main__":
    main()
