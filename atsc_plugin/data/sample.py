"""A fixed part of what a loader goes through, for figures that every epoch needs and not all images."""

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
