"""The exponential moving average (EMA) of a network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def average_of(network: nn.Module) -> nn.Module:
    """A copy without gradients, in which the average of a network begins."""
    tensors: dict[int, Tensor] = {id(p): nn.Parameter(p.detach().clone(), False) for p in network.parameters()}
    tensors |= {id(buffer): buffer.clone() for buffer in network.buffers()}
    return copy.deepcopy(network, tensors)


@torch.no_grad()
def update_ema(average: nn.Module, online: nn.Module, decay: float) -> None:
    """theta_bar <- decay * theta_bar + (1 - decay) * theta, of weights and BN statistics alike; counts are copied."""
    pairs = tensor_pairs(average, online)
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    counts = [pair for pair in pairs if not pair[0].is_floating_point()]
    torch._foreach_lerp_([mine for mine, _ in floats], [current for _, current in floats], 1 - decay)
    if counts:
        torch._foreach_copy_([mine for mine, _ in counts], [current for _, current in counts])


def tensor_pairs(one: nn.Module, other: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The weights and buffers of two networks of one architecture, side by side."""
    return list(zip(*([*network.parameters(), *network.buffers()] for network in (one, other)), strict=True))


@contextmanager
def exchanged(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within the block the tensors of each pair have each other's values; storage is exchanged, nothing is copied."""
    _exchange(pairs)
    try:
        yield
    finally:
        _exchange(pairs)


def _exchange(pairs):
    for one, other in pairs:
        one.data, other.data = other.data, one.data
