"""Mixup, CutMix and label smoothing: what a training batch becomes before the teacher and the student see it.

Soft labels have one form, N x C probabilities. What is drawn for a batch follows from (seed, epoch, step, rank), so
that resuming needs no state; it lies in tensors of a fixed shape, so that a recorded step can read it anew. An image is
mixed with one of its rank's own batch: two ranks mix other pairs than one. Evaluation stays on hard labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atsc_plugin.contract import Contract
from atsc_plugin.engine import distributed
from atsc_plugin.engine.batches import place
from atsc_plugin.errors import PluginError
from atsc_plugin.networks.maps import evaluating
from atsc_plugin.seeds import stream

KEYS = ("MIXUP", "CUTMIX", "LABEL_SMOOTHING")  # of SOLVER; 0.0 switches each off


def problems(kind: type[Contract], cfg: Any) -> list[str]:
    """What a method that needs hard labels says to the keys that are on."""
    return [
        f"SOLVER.{key} is {cfg.SOLVER[key]:g}, but {cfg.DISTILLER.TYPE} needs one class an image. Use 0.0."
        for key in KEYS
        if kind.HARD_LABELS and cfg.SOLVER[key] > 0
    ]


def soft_labels(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """(1 - e) onehot(y) + e / C, N x C, with e `smoothing`"""
    even = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    return even.scatter_(1, labels[:, None], 1 - smoothing + smoothing / classes)


def span(length: int, centre: Tensor, side: Tensor) -> Tensor:
    """Which of `length` pixels lie in [m - h, m + h), m = floor(centre * length), h = floor(side * length / 2)."""
    pixel, middle, half = torch.arange(length, device=side.device), centre * length, side * length / 2
    return (pixel >= middle.floor() - half.floor()) & (pixel < middle.floor() + half.floor())


def mixed(image: Tensor, target: Tensor, partner: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """x' = x_j inside of the box, a x + (1 - a) x_j outside; y' = b y + (1 - b) y_j, b = a (1 - |box| / HW).

    j is the image's `partner`; `numbers` are a, and the box's side and centre as shares of height and width. Mixup has
    a side of 0 and so b = a, CutMix a = 1.
    """
    own, side, *centre = numbers.unbind()
    rows, columns = (span(length, at, side) for length, at in zip(image.shape[-2:], centre, strict=True))
    inside, other = rows[:, None] & columns, image[partner]
    whole = torch.where(inside, other, torch.lerp(other, image, own))
    return place(whole, image.device), torch.lerp(target[partner], target, own * (1 - inside.float().mean()))


class Mixing:
    """SOLVER.MIXUP, CUTMIX and LABEL_SMOOTHING of a run. Where both mix, half of the batches get each, as in timm."""

    def __init__(self, cfg: Any, student: nn.Module, classes: int | None) -> None:
        self.mixup, self.cutmix, self.smoothing = (cfg.SOLVER[key] for key in KEYS)
        self.seed, self.student, self.classes = cfg.EXPERIMENT.SEED, student, classes

    def draw(self, epoch: int, step: int, count: int, device: torch.device) -> tuple[Tensor, ...]:
        """(partner, numbers) of a batch of `count` images, as `mixed` takes them; () where nothing is mixed.

        a ~ Beta(MIXUP, MIXUP); the box has the area 1 - lambda, lambda ~ Beta(CUTMIX, CUTMIX), and a uniform centre.
        """
        if not (self.mixup or self.cutmix):
            return ()
        draw = np.random.default_rng(stream(self.seed, "mix", epoch, step, distributed.rank()))
        cut = self.cutmix > 0 and (self.mixup == 0 or draw.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        share, centre, partner = draw.beta(alpha, alpha), draw.random(2), draw.permutation(count)
        numbers = torch.tensor([1.0, (1 - share) ** 0.5, *centre] if cut else [share, 0.0, 0.0, 0.0])
        return tuple(each.to(device, non_blocking=True) for each in (torch.from_numpy(partner), numbers.float()))

    def __call__(self, batch: dict[str, Any], drawn: tuple[Tensor, ...]) -> dict[str, Any]:
        """The batch with soft labels, its images mixed as drawn; of a fork's two views each alike."""
        image = batch["image"]
        views = list(image) if isinstance(image, (list, tuple)) else [image]
        if self.classes is None:  # a foreign script does not say
            with evaluating(self.student), torch.no_grad():
                self.classes = self.student(views[0][:1])[0].shape[1]
        target = soft_labels(batch["target"], self.classes, self.smoothing)
        if drawn:
            views, targets = zip(*(mixed(view, target, *drawn) for view in views), strict=True)
            target = targets[0]
        return {**batch, "image": views[0] if isinstance(image, Tensor) else type(image)(views), "target": target}


def mixing_of(cfg: Any, method: Contract, classes: int | None) -> Mixing | None:
    """None where no key is on; a method that needs hard labels is refused."""
    if found := problems(type(method), cfg):
        raise PluginError("\n".join(found))
    return Mixing(cfg, method.student, classes) if any(cfg.SOLVER[key] > 0 for key in KEYS) else None
