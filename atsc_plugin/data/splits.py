"""What `build` needs to know of a data set: its loaders, its classes and how its images are normalised."""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.data.digits100 import CLASS_NAMES, digits100
from atsc_plugin.errors import PluginError
from atsc_plugin.seeds import stream


@dataclass
class Data:
    """A data set ready to train on. `val` is None where the data have no validation split of their own."""

    name: str
    identity: str  # everything that decides which images these are; teachers are cached under it
    classes: int
    image_size: int
    train: object
    val: object
    test: object
    train_images: int
    mean: list = field(default_factory=list)
    std: list = field(default_factory=list)
    class_names: list = field(default_factory=list)

    def facts(self):
        """What a deployed student's card says of the data."""
        return {
            "dataset": self.name,
            "classes": self.classes,
            "image_size": self.image_size,
            "mean": self.mean,
            "std": self.std,
            "class_names": self.class_names,
        }


@dataclass(frozen=True)
class LoaderFacts:
    """How the loaders are to be built: sizes, place and seed."""

    batch_size: int
    eval_batch_size: int
    device: object
    seed: int


def digits100_data(node, loader):
    """The toy set of two-digit numbers; `node` is DATASET.DIGITS100. Crop, but no flips: mirrored digits are others."""
    tensors = _digits100_tensors(node.TRAIN_IMAGES, node.VAL_IMAGES, node.TEST_IMAGES, node.SEED)
    mean, std = _statistics(tensors["train"][0])
    common = {"mean": mean, "std": std, "device": loader.device}
    return Data(
        name="digits100",
        identity=content_identity("digits100", *tensors["train"]),
        classes=len(CLASS_NAMES),
        image_size=32,
        train=DeviceLoader(*tensors["train"], loader.batch_size, seed=stream(loader.seed, "data"), padding=4, **common),
        val=DeviceLoader(*tensors["val"], loader.eval_batch_size, **common),
        test=DeviceLoader(*tensors["test"], loader.eval_batch_size, **common),
        train_images=node.TRAIN_IMAGES,
        mean=mean,
        std=std,
        class_names=list(CLASS_NAMES),
    )


@lru_cache(maxsize=2)  # a run that trains its teacher first asks twice, and composing takes seconds
def _digits100_tensors(train, val, test, seed):
    try:
        splits = digits100(train, val, test, seed)
    except ImportError as error:
        raise PluginError(str(error)) from error
    return {name: (_channels_first(images), torch.from_numpy(labels)) for name, (images, labels) in splits.items()}


def content_identity(name, images, labels):
    """A name for exactly these training images: their number and a hash of the pixels and labels."""
    digest = hashlib.blake2b(images.numpy().tobytes(), digest_size=8)
    digest.update(labels.numpy().tobytes())
    return f"{name}-{len(labels)}-{digest.hexdigest()}"


def _channels_first(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _statistics(images):
    scaled = images.double() / 255
    return (
        [round(v, 4) for v in scaled.mean(dim=(0, 2, 3)).tolist()],
        [round(v, 4) for v in scaled.std(dim=(0, 2, 3)).tolist()],
    )
