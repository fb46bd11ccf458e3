"""The exponential moving average (EMA) of a network."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_ema(average: nn.Module, online: nn.Module, decay: float) -> None:
    """theta_bar <- decay * theta_bar + (1 - decay) * theta, of weights and BN statistics alike; counts are copied."""
    averages, onlines = ([*network.parameters(), *network.buffers()] for network in (average, online))
    pairs = list(zip(averages, onlines, strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_([mine for mine, _ in floats], [current for _, current in floats], 1 - decay)
    for mine, current in pairs:
        if not mine.is_floating_point():
            mine.copy_(current)
