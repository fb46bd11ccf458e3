"""ImageNet's training files decoded into tensors by torchvision, then cropped and resized there.

The draws are those of the host's own transforms and the pixels theirs to rounding, for about two thirds of the time
(docs/performance.md). Evaluation keeps the host's way, so that a network's accuracy is the host's. torchvision calls
its decoder deprecated; where it is gone, or was built without libjpeg, the host's way is kept for training too.
"""

import copy
import warnings

import torch
from torch.utils.data import Subset
from torchvision import io, transforms
from torchvision.datasets.folder import default_loader
from torchvision.transforms.functional import pil_to_tensor

TAKEN_OVER = [transforms.RandomResizedCrop, transforms.RandomHorizontalFlip, transforms.ToTensor, transforms.Normalize]
warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")


def cropped_as_tensors(dataset):
    """The data set with that pipeline on tensors; one with any other pipeline or reader as it is."""
    if isinstance(dataset, Subset):
        inner = cropped_as_tensors(dataset.dataset)
        return dataset if inner is dataset.dataset else Subset(inner, dataset.indices)
    steps = getattr(getattr(dataset, "transform", None), "transforms", [])
    known = [type(step) for step in steps] == TAKEN_OVER and getattr(dataset, "loader", None) is default_loader
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


def can_decode():
    """Whether this torchvision still has a decoder of JPEG files."""
    try:
        io.decode_jpeg(io.encode_jpeg(torch.zeros(3, 8, 8, dtype=torch.uint8)))
    except (RuntimeError, AttributeError):
        return False
    return True


def read_image(path):
    """A file as bytes 3 x H x W. ImageNet also has CMYK, and a PNG that calls itself JPEG: those go through PIL."""
    try:
        return io.decode_jpeg(io.read_file(path), mode=io.ImageReadMode.RGB)
    except RuntimeError:
        return pil_to_tensor(default_loader(path))
