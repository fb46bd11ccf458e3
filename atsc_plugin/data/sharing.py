"""Who takes which images: the batches of an epoch, and each rank's part of them.

A batch is the batch of all ranks together, and every rank takes as many images of it, so that the mean of the ranks'
gradients is the gradient of the whole. Of a last batch that the ranks do not divide, the remainder (fewer images than
there are ranks, others each epoch) is left out; one rank leaves out nothing.
"""

import random

import numpy as np
import torch
from torch.utils.data import DataLoader

from atsc_plugin.data.tensor_crops import cropped_as_tensors
from atsc_plugin.seeds import stream


def steps_of(count, batch_size, world=1):
    """Batches of an epoch of `count` images."""
    whole, rest = divmod(count, batch_size)
    return whole + (rest >= world)


def share(number, count, batch_size, rank=0, world=1):
    """The slice of the epoch's order that one rank takes of batch `number`."""
    start = number * batch_size
    each = (min(start + batch_size, count) - start) // world
    return slice(start + rank * each, start + (rank + 1) * each)


class RankBatches:
    """A batch sampler: (epoch, number of the image) pairs of one rank, in an order that follows from (seed, epoch)."""

    def __init__(self, count, batch_size, seed, rank=0, world=1):
        self.count, self.batch_size, self.seed, self.rank, self.world = count, batch_size, seed, rank, world
        self.epoch = self.first = 0

    def __len__(self):
        return steps_of(self.count, self.batch_size, self.world)

    def __iter__(self):
        draw = torch.Generator().manual_seed(stream(self.seed, "order", self.epoch))
        order = torch.randperm(self.count, generator=draw).tolist()
        for number in range(self.first, len(self)):
            mine = share(number, self.count, self.batch_size, self.rank, self.world)
            yield [(self.epoch, index) for index in order[mine]]


class SeededImages(torch.utils.data.Dataset):
    """A data set whose augmentation of image i in epoch e follows from (seed, e, i), whichever worker draws it."""

    def __init__(self, dataset, seed):
        self.dataset, self.seed = dataset, seed

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, pair):
        epoch, index = pair
        drawn = stream(self.seed, "augment", epoch, index)
        torch.manual_seed(drawn)  # a host's transforms may draw from any of the three, and CRD's negatives from numpy's
        random.seed(drawn)
        np.random.seed(drawn % 2**32)
        return self.dataset[index]


class WorkerLoader(DataLoader):
    """A host's training images through workers that stay, into pinned memory, four batches ahead each."""

    def __init__(self, loader, facts):
        workers, seed = loader.num_workers, stream(facts.seed, "data")
        batches = RankBatches(len(loader.dataset), facts.batch_size, seed, facts.rank, facts.world)
        super().__init__(
            SeededImages(cropped_as_tensors(loader.dataset), seed),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=loader.collate_fn,
            pin_memory=facts.device.type == "cuda",
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
        )

    def set_epoch(self, epoch):
        self.batch_sampler.epoch = epoch

    def batches_from(self, first):
        """The pass without its first `first` batches, which no worker loads."""
        self.batch_sampler.first = first
        try:
            yield from self
        finally:
            self.batch_sampler.first = 0
