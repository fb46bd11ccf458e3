"""What methods share whose networks learn beside the student: fresh weights, batch statistics, figures of each epoch.

`CoTrained` is for any number of such networks (COTEACH, PEERS). `LearningTeacher` is for one, DISTILLER.TEACHER itself,
which starts from fresh weights or from trained ones (DML and its relatives).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from atsc_plugin.contract import OUR_TRAINER, EpochReport, Network
from atsc_plugin.engine import distributed
from atsc_plugin.host import image_size
from atsc_plugin.losses import hard_labels
from atsc_plugin.methods.base import Key, Method
from atsc_plugin.methods.monitor import moving_top1
from atsc_plugin.networks import named
from atsc_plugin.networks.maps import check_classes, classes_of
from atsc_plugin.seeds import stream


def fresh_network(cfg: Any, name: str, classes: int, *role: Any, kin: str = "TEACHER") -> nn.Module:
    """A network from a random stream of its own, which leaves every other draw of the run where it was.

    It has the arguments of the student or teacher whose name it has; where both have it, those of `kin`.
    """
    node, last = cfg.DISTILLER, {"STUDENT": "TEACHER", "TEACHER": "STUDENT"}[kin]
    args = {node[each]: node[f"{each}_ARGS"] for each in (last, kin)}.get(name, ())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(cfg.EXPERIMENT.SEED, "initialise", *role))
        return named.new_network(cfg.DATASET.TYPE, name, classes, image_size(cfg.DATASET), args)


class Means(nn.Module):
    """Means over the training images of an epoch, summed on the device; no checkpoint has these buffers."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        self.register_buffer("sums", torch.zeros(len(names) + 1, dtype=torch.float64), persistent=False)

    @torch.no_grad()
    def add(self, images: int, *columns: Tensor) -> None:
        """One column of values, one an image, for each name."""
        self.sums += torch.stack([*(column.double().sum() for column in columns), self.sums.new_full((), images)])

    def read(self) -> dict[str, float]:
        """The means over all ranks since the last call; empty where nothing was added."""
        *sums, images = self.state()["sums"].tolist()
        self.sums.zero_()
        return dict(zip(self.names, (total / images for total in sums), strict=True)) if images else {}

    def state(self) -> dict[str, Tensor]:
        """The sums of all ranks together; load_state hands them to the first."""
        return {"sums": distributed.total(self.sums.clone())}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.sums.copy_(state["sums"] if distributed.first() else torch.zeros_like(self.sums))


class CoTrained(Method):
    """A method that trains the networks in `beside` as well: {where it stands in the state_dict: architecture}.

    They use batch statistics while they learn, are measured every epoch, and stay behind at deployment; the command
    `adapted` gives them out.
    """

    LEAVES_NETWORKS = True
    FIGURES: tuple[str, ...] = ()  # means over the training images that a subclass adds to the top-1 of each network
    beside: dict[str, str] = {}

    def learn_beside(self, networks: dict[str, str]) -> None:
        """Name the networks; the constructor calls it once they are there."""
        self.beside = networks
        self.means = Means(*(f"{name.replace('.', '_')}_train_top1" for name in networks), *self.FIGURES)

    def count(self, target: Tensor, logits: list[Tensor], *figures: Tensor) -> None:
        """Add a batch to the means: the logits of each network of `beside` in order, then FIGURES, one an image."""
        target = hard_labels(target)
        self.means.add(len(target), *(100 * (each.argmax(1) == target) for each in logits), *figures)

    def train(self, mode=True):
        super().train(mode)  # the host's, which puts its teacher into eval mode
        for name in self.beside:
            self.get_submodule(name).train(mode)
        return self

    def student_side(self) -> list[nn.Parameter]:
        """What learns with the student."""
        return list(self.student.parameters())

    def other_side(self) -> list[nn.Parameter]:
        """What learns beside it, without what it shares with the student."""
        own = {id(parameter) for parameter in self.student_side()}
        return [p for name in self.beside for p in self.get_submodule(name).parameters() if id(p) not in own]

    def get_learnable_parameters(self):
        return self.student_side() + self.other_side()

    def networks(self):
        networks = {network.name: network for network in super().networks()}
        moving = {name: Network(name, title, self.get_submodule(name), True) for name, title in self.beside.items()}
        return list((networks | moving).values())

    def after_epoch(self, epoch, loader):
        return EpochReport(self.means.read() | moving_top1(self.networks(), loader))

    def run_state(self):
        return self.means.state()

    def load_run_state(self, state):
        self.means.load_state(state)


def start_keys(node: str, choices: tuple[str, ...] = ("scratch", "pretrained"), more: str = "") -> tuple[Key, Key]:
    """How a teacher that learns starts, and how fast it learns."""
    return (
        Key(
            f"{node}.TEACHER.INIT",
            "scratch",
            "how the teacher starts. scratch: from fresh weights, of EXPERIMENT.SEED; pretrained: from a trained "
            f"teacher's{more}",
            choices=choices,
        ),
        Key(
            f"{node}.TEACHER.LR_SCALE",
            1.0,
            "the teacher's learning rate is SOLVER.LR times this",
            minimum=0.0,
        ),
    )


class LearningTeacher(CoTrained):
    """DISTILLER.TEACHER learns beside the student, with `NODE`.TEACHER.INIT and LR_SCALE."""

    NODE = ""

    @classmethod
    def problems(cls, cfg):
        init, node = f"{cls.NODE}.TEACHER.INIT", cfg.DISTILLER
        if cfg[cls.NODE].TEACHER.INIT != "scratch":
            return []
        weights = [f"TEACHER_CKPT names {node.TEACHER_CKPT}"] if node.TEACHER_CKPT else []
        weights += ["TEACHER_PRETRAINED is True"] if node.TEACHER_PRETRAINED else []
        return [f"{init} is scratch, but DISTILLER.{text}. Use {init} pretrained, or leave it out." for text in weights]

    @classmethod
    def needs(cls, cfg):
        scale = cfg[cls.NODE].TEACHER.LR_SCALE
        return {} if scale == 1.0 else {OUR_TRAINER: f"{cls.NODE}.TEACHER.LR_SCALE {scale:g} wants a second rate"}

    @classmethod
    def teacher_weights(cls, cfg):
        return "scratch" if cfg[cls.NODE].TEACHER.INIT == "scratch" else "trained"

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.node, side = cfg[self.NODE], image_size(cfg.DATASET)
        names = f"student {cfg.DISTILLER.STUDENT}", f"teacher {cfg.DISTILLER.TEACHER}"
        self.classes = classes_of(student, side, names[0])
        if self.node.TEACHER.INIT == "scratch":  # a host's own script may have loaded a trained one
            self.teacher = fresh_network(cfg, cfg.DISTILLER.TEACHER, self.classes, "SCRATCH_TEACHER")
        check_classes(self.classes, classes_of(self.teacher, side, names[1]), *names)
        self.learn_beside({"teacher": cfg.DISTILLER.TEACHER})

    def param_groups(self, cfg):
        scale = self.node.TEACHER.LR_SCALE
        if scale == 1.0:
            return self.get_learnable_parameters()
        return [{"params": self.student_side()}, {"params": self.other_side(), "lr_scale": scale}]
