"""Projectors from the student's map to the teacher's channels: SimKD's bottleneck, and a small MLP for vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from atsc_plugin.errors import ModelRefused

TYPES = ("auto", "bottleneck", "mlp")


class Projection(nn.Sequential):
    """What all projectors have: (channels in, inner, channels out), and which of KINDS they are."""

    channels: tuple[int, int, int]
    kind: str


class Projector(Projection):
    """SimKD's bottleneck C_s -> inner -> C_t: 1x1, 3x3, 1x1 convolutions without bias, each with BN and ReLU.

    Ours, without the last ReLU (kind "signed"): for a target with values below zero, which a ReLU could never reach.
    """

    def __init__(self, channels_in: int, inner: int, channels_out: int, kind: str = "bottleneck") -> None:
        layers: list[nn.Module] = []
        for before, after, kernel in ((channels_in, inner, 1), (inner, inner, 3), (inner, channels_out, 1)):
            layers.append(nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*(layers[:-1] if kind == "signed" else layers))
        self.channels, self.kind = (channels_in, inner, channels_out), kind


class MLP(Projection):
    """Linear C_s -> inner, LayerNorm, GELU, Linear inner -> C_t, on maps of one pixel (ours, for vectors).

    LayerNorm and not BN: it takes a batch of one image, and its target usually comes from a LayerNorm.
    """

    kind = "mlp"

    def __init__(self, channels_in: int, inner: int, channels_out: int) -> None:
        layers = [nn.Linear(channels_in, inner), nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, channels_out)]
        super().__init__(nn.Flatten(), *layers, nn.Unflatten(1, (channels_out, 1, 1)))
        self.channels = channels_in, inner, channels_out


KINDS: dict[str, Callable[[int, int, int], Projection]] = {
    "bottleneck": Projector,
    "signed": partial(Projector, kind="signed"),
    "mlp": MLP,
}


def kind_of(wanted: str, vector: bool, signed: bool, key: str, name: str) -> str:
    """The kind that PROJECTOR.TYPE means for a target; a bottleneck needs a map."""
    if wanted == "bottleneck" and vector:
        raise ModelRefused(
            f"{key} is bottleneck, but {name} hands its classifier a vector that is no map's mean (a CLS token, "
            "attention or maximum pooling); expected mlp, or auto."
        )
    if wanted == "mlp" or vector:
        return "mlp"
    return "signed" if signed else "bottleneck"


def check_factor(channels_out: int, factor: int, key: str) -> None:
    if not 1 <= factor <= channels_out:
        raise ModelRefused(
            f"{key} is {factor}, but the teacher's map has {channels_out} channels; expected 1 to {channels_out}."
        )
