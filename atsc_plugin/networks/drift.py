"""Weights that move, measured against where they started: theta_0, the drift penalty, the relative motion.

The penalty's gradient is written down instead of derived by autograd, so it costs two passes over the weights and no
graph; it is still a loss like any other and works under a trainer that only knows losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from atsc_plugin.networks.ema import exchanged


class StartingPoint(nn.Module):
    """A network's weights and statistics as they were: buffers that move with .to() and stay out of checkpoints.

    They are kept out because they are the teacher's file once more; `latest` carries them for resuming.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.places: dict[str, str] = {}  # {name in the network: name of the buffer}
        for number, (name, tensor) in enumerate(_state(network)):
            self.places[name] = f"start_{number}"
            self.register_buffer(self.places[name], tensor.detach().clone(), persistent=False)

    def items(self) -> list[tuple[str, Tensor]]:
        """(name in the network, tensor) pairs."""
        return [(name, self.get_buffer(place)) for name, place in self.places.items()]

    def tensors(self, names: Iterable[str]) -> list[Tensor]:
        """The tensors of these names, in their order."""
        return [self.get_buffer(self.places[name]) for name in names]

    @torch.no_grad()
    def remember(self, network: nn.Module) -> None:
        """Take the network's present state as the starting point."""
        state = dict(_state(network))
        for name, start in self.items():
            start.copy_(state[name])

    @contextmanager
    def in_place_of(self, network: nn.Module) -> Iterator[nn.Module]:
        """The network as it was, for the length of a block; storage is exchanged, nothing is copied."""
        state = dict(_state(network))
        with exchanged([(tensor, state[name]) for name, tensor in self.items()]):
            yield network


def _state(network):
    return [*network.named_parameters(), *network.named_buffers()]


class _Drift(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, start, *present):
        ctx.difference = torch._foreach_sub(list(present), start)
        ctx.weight = weight
        norms = torch.stack(torch._foreach_norm(ctx.difference))
        return weight * (norms * norms).sum()

    @staticmethod
    def backward(ctx, outer):
        gradients = torch._foreach_mul(ctx.difference, 2 * ctx.weight)
        torch._foreach_mul_(gradients, outer)
        return (None, None, *gradients)


def drift_penalty(parameters: list[nn.Parameter], start: list[Tensor], weight: float) -> Tensor:
    """weight * sum ||theta - theta_0||^2, a plain sum over all entries; gradient 2 * weight * (theta - theta_0)."""
    return _Drift.apply(weight, start, *parameters)


def relative_motion(network: nn.Module, start: StartingPoint, groups: dict[str, list[str]]) -> dict[str, float]:
    """{group: ||theta - theta_0|| / ||theta_0|| over the parameters named in it}; waits for the device once."""
    present = dict(network.named_parameters())
    kept = {name: tensor for name, tensor in start.items() if name in present}
    moved = torch._foreach_sub([present[name].detach() for name in kept], list(kept.values()))
    squares = torch.stack([tensor.double().pow(2).sum() for tensor in [*moved, *kept.values()]]).tolist()
    each = dict(zip(kept, zip(squares, squares[len(kept) :], strict=False), strict=True))
    ratios = {}
    for group, names in groups.items():
        distance, length = (sum(each[name][place] for name in names if name in each) for place in (0, 1))
        ratios[group] = (distance / length) ** 0.5 if length else 0.0
    return ratios
