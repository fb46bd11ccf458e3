"""A fixed part of the images, for figures that need not all of them; and what images are normalised by."""

from collections.abc import Iterable

import torch
from torch.utils.data import DataLoader, Subset

from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.seeds import stream


def drawn(total, count):
    """`count` of `total` images, always the same, in order; drawn because files lie class by class."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(stream(0, "sample")))
    return order[:count].sort().values


def sample(loader, count):
    """The loader's batches with at most `count` of its images; one of a foreign kind is gone through from its start."""
    if isinstance(loader, DeviceLoader):
        return loader.in_order(drawn(len(loader.labels), count))
    if type(loader) is not DataLoader or loader.batch_size is None or len(loader.dataset) <= count:
        return loader
    return DataLoader(
        Subset(loader.dataset, drawn(len(loader.dataset), count).tolist()),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
    )


def statistics(parts: Iterable[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel, in 0..1, of pieces uint8 N x 3 x H x W: no float copy of all is made."""
    total, squares, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    for part in parts:
        scaled = part.double() / 255
        total += scaled.sum(dim=(0, 2, 3))
        squares += scaled.square().sum(dim=(0, 2, 3))
        count += scaled.numel() // 3
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-8).sqrt()
    return [round(v, 4) for v in mean.tolist()], [round(max(v, 1e-4), 4) for v in std.tolist()]
