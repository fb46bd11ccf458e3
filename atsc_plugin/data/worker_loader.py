"""Training images read, decoded and augmented by worker processes that stay: of a host, of a folder, or in memory.

The order of an epoch and the augmentation of an image follow from (seed, epoch) and (seed, epoch, image), whichever
worker draws them. ImageNet's training files are decoded into tensors by torchvision, then cropped and resized there:
the draws are those of the host's own transforms and the pixels theirs to rounding, for about two thirds of the time
(docs/performance.md). Evaluation keeps the host's way, so that a network's accuracy is the host's. torchvision calls
its decoder deprecated; where it is gone, or was built without libjpeg, the host's way is kept for training too.
"""

import copy
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info
from torchvision import io, transforms
from torchvision.datasets.folder import default_loader
from torchvision.transforms.functional import pil_to_tensor

from atsc_plugin.data import pictures
from atsc_plugin.data.device_loader import share, steps_of
from atsc_plugin.seeds import stream

warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")


class RankBatches:
    """A batch sampler: (epoch, number of the image) pairs of one rank, in an order that follows from (seed, epoch)."""

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.count, self.batch_size, self.seed, self.rank, self.world = count, batch_size, seed, rank, world
        self.epoch = self.first = 0

    def __len__(self):
        return steps_of(self.count, self.batch_size, self.world)

    def __iter__(self):
        epoch, self.epoch = self.epoch, self.epoch + 1  # as DeviceLoader counts where nobody calls set_epoch
        draw = torch.Generator().manual_seed(stream(self.seed, "order", epoch))
        order = torch.randperm(self.count, generator=draw)
        for number in range(self.first, len(self)):
            mine = share(number, self.count, self.batch_size, self.rank, self.world)
            yield [(epoch, index) for index in order[mine].tolist()]


class SeededImages(Dataset):
    """A data set whose augmentation of image i in epoch e follows from (seed, e, i), whichever worker draws it."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, pair):
        epoch, index = pair
        with nullcontext() if get_worker_info() else _generators_as_they_were():
            return self._drawn(stream(self.seed, "augment", epoch, index), index)

    def _drawn(self, drawn, index):
        # A host's transforms may draw from any of the three, and CRD's negatives from numpy's. torch.manual_seed would
        # also seed every device (100 to 200 us an image against 2); the draws from the CPU's generator are the same.
        torch.default_generator.manual_seed(drawn)
        random.seed(drawn)
        np.random.seed(drawn % 2**32)
        return self.dataset[index]


@contextmanager
def _generators_as_they_were():
    """Around draws in the training process itself: layers draw there too, and see the same with 0 and more workers."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


class WorkerLoader(DataLoader):
    """A host's training images through workers that stay, into pinned memory, four batches ahead each."""

    def __init__(self, loader, options):
        workers, seed = loader.num_workers, stream(options.seed, "data")
        batches = RankBatches(len(loader.dataset), options.batch_size, seed, options.rank, options.world)
        super().__init__(
            SeededImages(cropped_as_tensors(loader.dataset), seed),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=loader.collate_fn,
            pin_memory=options.device.type == "cuda",
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),  # workers' seeds; drawn from the global one, a resumed run would draw twice
        )

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.epoch = epoch

    def batches_from(self, first: int) -> Iterator:
        """The pass without its first `first` batches, which no worker loads."""
        self.batch_sampler.first = first
        try:
            yield from self
        finally:
            self.batch_sampler.first = 0


READERS = (default_loader, pictures.as_torchvision)  # torchvision's own, and ours, which opens the named formats only
TAKEN_OVER = [transforms.RandomResizedCrop, transforms.RandomHorizontalFlip, transforms.ToTensor, transforms.Normalize]


def cropped_as_tensors(dataset: Dataset) -> Dataset:
    """The data set with that pipeline on tensors; one with any other pipeline or reader as it is."""
    if isinstance(dataset, Subset):
        inner = cropped_as_tensors(dataset.dataset)
        return dataset if inner is dataset.dataset else Subset(inner, dataset.indices)
    steps = getattr(getattr(dataset, "transform", None), "transforms", [])
    known = [type(step) for step in steps] == TAKEN_OVER and getattr(dataset, "loader", None) in READERS
    if not known or not can_decode():
        return dataset
    from torchvision.transforms import v2  # a fifth of a second that no other data set should wait for

    ours = copy.copy(dataset)
    crop, mirror, _, normalise = steps
    ours.loader = read_image
    taken = v2.RandomResizedCrop(crop.size, crop.scale, crop.ratio, crop.interpolation, antialias=True)
    floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(normalise.mean, normalise.std)]
    ours.transform = v2.Compose([taken, v2.RandomHorizontalFlip(mirror.p), *floats])
    return ours


def can_decode() -> bool:
    """Whether this torchvision still has a decoder of JPEG files."""
    try:
        io.decode_jpeg(io.encode_jpeg(torch.zeros(3, 8, 8, dtype=torch.uint8)))
    except (RuntimeError, AttributeError):
        return False
    return True


def read_image(path: str) -> torch.Tensor:
    """A file as bytes 3 x H x W. ImageNet also has CMYK, and a PNG that calls itself JPEG: those go through PIL."""
    try:
        return io.decode_jpeg(io.read_file(path), mode=io.ImageReadMode.RGB)
    except RuntimeError:
        return pil_to_tensor(pictures.as_torchvision(path))
