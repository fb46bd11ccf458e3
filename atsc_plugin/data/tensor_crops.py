"""ImageNet's training images cropped as tensors: what is resized is bytes, and only what the crop kept becomes floats.

The draws are those of the host's own transforms and the pixels theirs to rounding, for three quarters of the CPU time
(docs/performance.md). Evaluation keeps the host's way, so that a network's accuracy is the host's.
"""

import copy

import torch
from torch.utils.data import Subset
from torchvision import transforms
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

TAKEN_OVER = [transforms.RandomResizedCrop, transforms.RandomHorizontalFlip, transforms.ToTensor, transforms.Normalize]


def cropped_as_tensors(dataset):
    """The data set with that pipeline on tensors; one with any other pipeline or reader as it is."""
    if isinstance(dataset, Subset):
        inner = cropped_as_tensors(dataset.dataset)
        return dataset if inner is dataset.dataset else Subset(inner, dataset.indices)
    steps = getattr(getattr(dataset, "transform", None), "transforms", [])
    if [type(step) for step in steps] != TAKEN_OVER or getattr(dataset, "loader", None) is not default_loader:
        return dataset
    ours = copy.copy(dataset)
    crop, mirror, _, normalise = steps
    taken = v2.RandomResizedCrop(crop.size, crop.scale, crop.ratio, crop.interpolation, antialias=True)
    floats = v2.ToDtype(torch.float32, scale=True)
    own = [
        v2.PILToTensor(),
        taken,
        v2.RandomHorizontalFlip(mirror.p),
        floats,
        v2.Normalize(normalise.mean, normalise.std),
    ]
    ours.transform = v2.Compose(own)
    return ours
