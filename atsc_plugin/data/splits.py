"""What `build` needs to know of a data set: its loaders, its classes and how its images are normalised."""

import copy
import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

from atsc_plugin.data.arrays import check_labels, read_cifar10, read_folder, read_npz, refuse_too_large
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.data.digits100 import CLASS_NAMES, digits100
from atsc_plugin.errors import PluginError
from atsc_plugin.seeds import stream

FLIPS = {"digits100": False, "npz": False, "folder": True, "cifar10": True}  # what DATASET.FLIP auto means


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
    test_identity: str | None = None  # None: a host's own loaders, known by their name

    def facts(self):
        """What a deployed student's card says of the data."""
        names = ("classes", "image_size", "mean", "std", "class_names")
        return {"dataset": self.name, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class LoaderFacts:
    """How the loaders are to be built: sizes, place and seed."""

    batch_size: int
    eval_batch_size: int
    device: object
    seed: int
    rank: int = 0
    world: int = 1


def memory_data(node, loader, image_size):
    """A data set that lives on the device whole; `node` is DATASET, `image_size` what the networks take."""
    name = node.TYPE
    splits, names = _read(node)
    classes = check_labels(splits, names, node.ROOT or name)
    refuse_too_large(splits, image_size)
    splits = _with_validation(splits, node.VAL_SPLIT, name)
    tensors = {split: _tensors(*arrays, image_size, node.IMAGE_SIZE, split) for split, arrays in splits.items()}
    mean, std = _statistics(tensors["train"][0])
    mean, std = list(node.MEAN) or mean, list(node.STD) or std
    common = {"mean": mean, "std": std, "device": loader.device}
    flip = FLIPS[name] if node.FLIP == "auto" else node.FLIP == "horizontal"
    seed = stream(loader.seed, "data")
    ours = {"seed": seed, "padding": node.PADDING, "flip": flip, "rank": loader.rank, "world": loader.world}
    train = DeviceLoader(*tensors["train"], loader.batch_size, **ours, **common)
    others = {split: DeviceLoader(*pair, loader.eval_batch_size, **common) for split, pair in tensors.items()}
    return Data(
        name=name,
        identity=content_identity(name, *tensors["train"]),
        classes=classes,
        image_size=image_size,
        train=train,
        val=others.get("val"),
        test=others["test"],
        train_images=len(tensors["train"][1]),
        mean=mean,
        std=std,
        class_names=names,
        test_identity=content_identity(f"{name}-test", *tensors["test"]),
    )


def _read(node):
    if node.TYPE == "digits100":
        own = node.DIGITS100
        return _digits100(own.TRAIN_IMAGES, own.VAL_IMAGES, own.TEST_IMAGES, own.SEED), list(CLASS_NAMES)
    if not node.ROOT:
        kinds = {"npz": "the path of an .npz file", "folder": "a folder with train/ and val/ or test/"}
        raise PluginError(
            f"DATASET.TYPE {node.TYPE} needs DATASET.ROOT: {kinds.get(node.TYPE, 'the folder of its files')}."
        )
    if node.TYPE == "npz":
        return read_npz(node.ROOT)
    return read_folder(node.ROOT, node.IMAGE_SIZE) if node.TYPE == "folder" else read_cifar10(node.ROOT, node.DOWNLOAD)


@lru_cache(maxsize=2)  # a run that trains its teacher first asks twice, and composing takes seconds
def _digits100(train, val, test, seed):
    try:
        return digits100(train, val, test, seed)
    except ImportError as error:
        raise PluginError(str(error)) from error


def validation_indices(count, share):
    """(kept for training, cut off for validation): a fixed draw, so that every run and method has the same split."""
    order = np.random.default_rng(stream(0, "validation split")).permutation(count)
    cut = max(1, round(count * share))
    return np.sort(order[cut:]), np.sort(order[:cut])


def _with_validation(splits, share, name):
    if share == 0:
        return splits
    if "val" in splits:
        raise PluginError(f"DATASET.VAL_SPLIT is {share}, but {name} has a validation split of its own. Set it to 0.0.")
    images, labels = splits["train"]
    kept, cut = validation_indices(len(labels), share)
    return {**splits, "train": (images[kept], labels[kept]), "val": (images[cut], labels[cut])}


def with_validation_loader(train, test, share):
    """(train, val) loaders from a host's own two: the cut-off images come with the test transform."""
    kept, cut = validation_indices(len(train.dataset), share)
    unaugmented = copy.copy(train.dataset)
    unaugmented.transform = test.dataset.transform
    common = {"num_workers": train.num_workers}
    return (
        DataLoader(Subset(train.dataset, kept.tolist()), train.batch_size, shuffle=True, **common),
        DataLoader(Subset(unaugmented, cut.tolist()), test.batch_size, **common),
    )


def _tensors(images, labels, wanted, asked, split):
    """Channels-first uint8 of the wanted side; other sizes are resized when DATASET.IMAGE_SIZE asks, else refused."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous()
    height, width = tensor.shape[2:]
    if (height, width) == (wanted, wanted):
        return tensor, torch.from_numpy(labels.astype(np.int64))
    if not asked:
        raise PluginError(
            f"The {split} images are {width}x{height} pixels; mdistiller's CIFAR networks take {wanted}. Set "
            f"DATASET.IMAGE_SIZE {wanted} to resize them, or another size for networks that can."
        )
    pieces = [
        F.interpolate(part.float(), (wanted, wanted), mode="bilinear", antialias=True).round().clamp(0, 255).byte()
        for part in tensor.split(1000)
    ]
    return torch.cat(pieces), torch.from_numpy(labels.astype(np.int64))


def content_identity(name, images, labels):
    """A name for exactly these images: their number and a hash of the pixels and labels."""
    digest = hashlib.blake2b(images.numpy().tobytes(), digest_size=8)
    digest.update(labels.numpy().tobytes())
    return f"{name}-{len(labels)}-{digest.hexdigest()}"


def _statistics(images):
    """Mean and standard deviation by channel, in 0..1, in pieces so that no float copy of the set is made."""
    total, squares, count = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0
    for part in images.split(2000):
        scaled = part.double() / 255
        total += scaled.sum(dim=(0, 2, 3))
        squares += scaled.square().sum(dim=(0, 2, 3))
        count += scaled.numel() // 3
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-8).sqrt()
    return [round(v, 4) for v in mean.tolist()], [round(max(v, 1e-4), 4) for v in std.tolist()]
