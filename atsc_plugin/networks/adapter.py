"""An adapter that gives any network the host's outputs: image -> (logits, {"feats", "preact_feats", "pooled_feat"}).

Its own forward runs, untouched; hooks read the maps on the way. `feats` are the last maps of each resolution, stem
first, and last the map whose mean feeds the tail where there is one. `preact_feats` are the same maps: which of them a
ReLU follows is not known of a foreign network. `pooled_feat` is the vector that feeds the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atsc_plugin.errors import PluginError
from atsc_plugin.losses import pool
from atsc_plugin.networks.maps import FEATS, MapSource, evaluating, find_target, layouts_of, probe_image, recording
from atsc_plugin.networks.tail import Step, without_zeros

PROBE_SIDE = 128
FLAT_STAGES = 4  # maps of a network that has one resolution, such as a ViT


class View(nn.Module):
    """Images as a network with another normalisation or input size sees them: x * scale + shift, then bilinear."""

    scale: Tensor
    shift: Tensor

    def __init__(self, size: int, seen: tuple[Sequence[float], ...], wanted: tuple[Sequence[float], ...]) -> None:
        super().__init__()
        self.size = size
        mean, std, wanted_mean, wanted_std = (torch.tensor(each).view(3, 1, 1) for each in (*seen, *wanted))
        self.register_buffer("scale", std / wanted_std, persistent=False)
        self.register_buffer("shift", (mean - wanted_mean) / wanted_std, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        image = image * self.scale + self.shift
        if image.shape[-1] == self.size:
            return image
        return F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)


class Adapted(nn.Module):
    """A network with the maps of the host's; its parameters stand under `network`."""

    def __init__(self, network: nn.Module, image_size: int, view: View | None = None) -> None:
        super().__init__()
        self.network, self.view = network, view or nn.Identity()
        self.origin: dict[str, Any] = {}  # how named.py made it, for the card of a student behind its tail
        self.sources, target, tail = read_places(network, image_size)
        self.vector = MapSource(tail[0][0], layout="vector") if tail else None
        self.target: tuple[MapSource, tuple[Step, ...]] | None = None
        if target is not None:
            place = MapSource(f"network.{target.place}", layout="vector") if target.layout == "vector" else FEATS
            self.target = place, tuple((f"network.{path}", rank) for path, rank in tail)

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        places = self.sources if self.vector is None else [*self.sources, self.vector]
        with recording(self.network, places) as seen:
            logits = _logits(self.network(self.view(image)))
        if skipped := [place.place for place in places if place not in seen]:
            raise PluginError(
                f"{skipped[0]} was not run in this step, and its output is a map that methods compare. Switch off what "
                "skips layers at random."
            )
        feats = [seen[source] for source in self.sources]
        if feats and self.training and logits.requires_grad and not feats[-1].requires_grad:
            self._refuse_no_grad()
        pooled = seen[self.vector].flatten(1) if self.vector else (pool(feats[-1]) if feats else None)
        return logits, {"feats": feats, "preact_feats": feats, "pooled_feat": pooled}

    def _refuse_no_grad(self):
        """A map without a gradient is right where what makes it is frozen, and lost where it was made under no_grad."""
        place = self.sources[-1].place
        if any(parameter.requires_grad for parameter in self.network.get_submodule(place).parameters()):
            raise PluginError(
                f"The map of {place} has no gradient: it was read where gradients are off, as in a checkpointed block "
                "(use_reentrant=True). Use use_reentrant=False, or switch the network's activation checkpointing off."
            )


def adapt(network: nn.Module, image_size: int, view: View | None = None) -> nn.Module:
    """A network with the host's outputs: itself where it has them."""
    with evaluating(network), torch.no_grad():
        output = network(probe_image(network, image_size))
    has_maps = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], dict) and "feats" in output[1]
    return network if has_maps else Adapted(network, image_size, view)


def unwrapped(network: nn.Module) -> nn.Module:
    """The network itself, without the adapter."""
    return network.network if isinstance(network, Adapted) else network


def read_places(network: nn.Module, image_size: int) -> tuple[list[MapSource], MapSource | None, tuple[Step, ...]]:
    """(where the maps of feats are read, the target, the tail's steps); None and () where there is no tail.

    Looked for on images of at least PROBE_SIDE pixels where the network takes them: in a map of one pixel a convolution
    and a layer of the tail look the same.
    """
    for side in sorted({max(image_size, PROBE_SIDE), image_size}, reverse=True):
        try:
            return _places(network, probe_image(network, side))
        except (RuntimeError, AssertionError, ValueError):
            if side == image_size:
                raise
    raise AssertionError("unreachable")


def _places(network, image):
    own = getattr(network, "num_prefix_tokens", None)  # timm's transformers: class and register tokens
    prefixes = [own] if isinstance(own, int) else range(3)
    with evaluating(network), torch.no_grad(), without_zeros(network):
        target, tail = find_target(network, image, _logits(network(image)), {}, prefixes) or (None, ())
        stages = _stages(network, image, tail, prefixes)
        if target is None or target.layout == "vector":
            return stages, target, tail
        with recording(network, [target, *stages[-1:]]) as seen:
            network(image)
    same_size = [source for source in stages[-1:] if seen[source].shape[-1] == seen[target].shape[-1]]
    return [*stages[: len(stages) - len(same_size)], target], target, tail


def _stages(network, image, tail, prefixes):
    """The last map of each resolution before the tail, by execution; of a single resolution, FLAT_STAGES of them."""
    maps: list[tuple[int, MapSource]] = []
    pooled: list[Tensor] = []

    def look(path):
        def hook(_module, _inputs, output):
            layouts = layouts_of(output, prefixes)
            if layouts and not pooled:
                source = MapSource(path, layout=layouts[0])
                feature_map = source.shaped(output)
                maps.append((feature_map.shape[-1], source))
                if feature_map.shape[-1] == 1:
                    vectors[source] = feature_map.flatten(1)

        return hook

    vectors: dict[MapSource, Tensor] = {}
    with ExitStack() as hooks:
        for path in _units(network):
            hooks.enter_context(network.get_submodule(path).register_forward_hook(look(path)))
        if tail:
            module = network.get_submodule(tail[0][0])
            hooks.enter_context(module.register_forward_pre_hook(lambda _m, args: pooled.append(args[0].flatten(1))))
        network(image)
    maps = [(side, source) for side, source in maps if not (pooled and _equal(vectors.get(source), pooled[0]))]
    by_side = dict(maps)
    if len(by_side) > 1 or len(maps) <= FLAT_STAGES:
        return list(by_side.values())
    last = len(maps) - 1
    return [maps[last * number // (FLAT_STAGES - 1)][1] for number in range(FLAT_STAGES)]


def _equal(left, right):
    return left is not None and left.shape == right.shape and torch.equal(left, right)


def _units(network, prefix=""):
    """Paths of a network's children, and of the layers of those that are a sequence; a wrapper's are its network's."""
    children = [(f"{prefix}{name}", child) for name, child in network.named_children()]
    for path, child in children:
        if isinstance(child, (nn.Sequential, nn.ModuleList)) and len(child):
            yield from (f"{path}.{inner}" for inner, _ in child.named_children())
        elif len(children) == 1 and next(child.children(), None) is not None:
            yield from _units(child, f"{path}.")
        else:
            yield path


def _logits(output):
    """Some networks return more than logits while they train: they come first."""
    first = output[0] if isinstance(output, (tuple, list)) and output else output
    if not isinstance(first, Tensor):
        raise TypeError(
            f"its forward gives a {type(first).__name__}, expected logits, or a tuple that begins with them"
        )
    return first
