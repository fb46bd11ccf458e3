"""What two methods need to know of a network's stages: the maps in `feats`, their shapes, their attention.

The first entry of mdistiller's `feats` is the stem's map, the others are the stages'; pure torch, no host.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atsc_plugin.errors import ModelRefused
from atsc_plugin.losses import align, full
from atsc_plugin.networks.maps import evaluating, outputs_of, probe_image, unused_parameters


@dataclass(frozen=True)
class StageFacts:
    """Shapes (channels, height, width) of every map in feats, and the number of classes."""

    shapes: list
    classes: int

    def all_but_the_stem(self) -> list[int]:
        """Indices of the stages; a network with a single map has that one."""
        return list(range(1, len(self.shapes))) or [0]


def stage_facts(model: nn.Module, image_size: int, name: str) -> StageFacts:
    """The shapes of a network's maps on images of this size; what has no maps is refused by name."""
    with evaluating(model), torch.no_grad():
        logits, feats = outputs_of(model, probe_image(model, image_size), name)
    shapes = [tuple(feature_map.shape[1:]) for feature_map in feats["feats"]]
    flat = [shape for shape in shapes if len(shape) != 3]
    if flat:
        raise ModelRefused(f"{name} has a map of shape {flat[0]} in feats; expected channels x height x width.")
    return StageFacts(shapes, logits.shape[1])


def check_stages(indices: list[int], facts: StageFacts, key: str, name: str) -> None:
    """Refuse indices that lie outside a network's maps."""
    outside = [index for index in indices if index >= len(facts.shapes)]
    if outside:
        raise ModelRefused(
            f"{key} names {outside[0]}; {name} has maps 0 (the stem) to {len(facts.shapes) - 1} in feats."
        )


def convolutions_behind(model: nn.Module, index: int, image_size: int) -> list[str]:
    """Names of the convolutions that the map of this index in feats does not depend on."""

    def source(network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        logits, feats = network(image)
        return logits, feats["feats"][index]

    layers = dict(model.named_modules())
    paths = [name.rpartition(".") for name in unused_parameters(model, source, image_size)]
    return [path for path, _, leaf in paths if leaf == "weight" and isinstance(layers[path], nn.Conv2d)]


def attention(feature_map: Tensor) -> Tensor:
    """N x C x H x W -> N x HW: the mean over channels of the squares, each row of Euclidean length 1"""
    return F.normalize(full(feature_map).pow(2).mean(dim=1).flatten(1))


def attention_distance(student_map: Tensor, expert_map: Tensor) -> Tensor:
    """mean over images and positions of (attention(student) - attention(expert))^2, the larger map pooled first"""
    side = min(student_map.shape[-1], expert_map.shape[-1])
    return (attention(align(student_map, side)) - attention(align(expert_map, side))).pow(2).mean()
