"""The exponential moving average (EMA) of a network."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_ema(average: nn.Module, online: nn.Module, decay: float) -> None:
    """theta_bar <- decay * theta_bar + (1 - decay) * theta, of weights and BN statistics alike; counts are copied."""
    pairs = [*zip(average.parameters(), online.parameters(), strict=True)]
    pairs += zip(average.buffers(), online.buffers(), strict=True)
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_(*map(list, zip(*floats, strict=True)), 1 - decay)
    for mine, current in pairs:
        if not mine.is_floating_point():
            mine.copy_(current)
