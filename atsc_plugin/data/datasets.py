"""A data set ready to train on: its loaders, its classes, how its images are normalised, and which images they are.

Images that fit into memory (`memory_data`) live on the device whole; larger folders stream (`streamed_data`). A host's
own data set lives on the device too where its images are an array and its transforms are known; else worker processes
load it (`host_loaders`). torchvision is imported by workers and for a host's data set only: it takes two seconds and
200 MB.
"""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

from atsc_plugin import host
from atsc_plugin.data import pictures
from atsc_plugin.data.arrays import check_labels, list_folder, read_cifar10, read_folder, read_npz
from atsc_plugin.data.containers import CLASS_NAMES as CIFAR100_NAMES
from atsc_plugin.data.containers import Container, find_cifar100, read_cifar100
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.data.digits100 import CLASS_NAMES, cached_digits100
from atsc_plugin.data.sample import statistics
from atsc_plugin.errors import PluginError
from atsc_plugin.files import key_of
from atsc_plugin.seeds import stream
from atsc_plugin.untrusted import expand_user

FLIPS = {"digits100": False, "npz": False, "folder": True, "cifar10": True}  # what DATASET.FLIP auto means

IMAGES = {"cifar100": 50_000, "cifar10": 50_000, "tiny_imagenet": 100_000, "imagenet": 1_281_167}  # to train on
_RESIZED_TOGETHER = 1000
_MEASURED_TOGETHER = 2000 * 32**2  # pixels, of which statistics makes float64
_LARGEST_DECODED = 2 << 30  # bytes of a folder's images that one process decodes before the first step


@dataclass
class Data:
    """A data set ready to train on. `val` is None where the data have no validation split of their own."""

    name: str
    identity: str  # everything that decides which images these are; teachers are cached under it
    classes: int
    image_size: int
    train: Any
    val: Any
    test: Any
    train_images: int
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    test_identity: str | None = None  # None: a host's own files, known by their name
    source: str = ""  # CIFAR-100: the container it was read from
    eval_crop: float = 0.0
    loading: str = ""  # how the training images come, and why not from the device's memory

    def facts(self) -> dict[str, Any]:
        """What a deployed student's card says of the data."""
        names = ("classes", "image_size", "mean", "std", "class_names", *(["eval_crop"] if self.eval_crop else []))
        return {"dataset": self.name, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class LoaderOptions:
    """How the loaders are to be built: sizes, place and seed."""

    batch_size: int
    eval_batch_size: int
    device: torch.device
    seed: int
    rank: int = 0
    world: int = 1


def own_data(node: Any, options: LoaderOptions, image_size: int) -> Data:
    """A data set of ours; `node` is DATASET, `image_size` what the networks take."""
    if node.TYPE == "folder" and node.ROOT:
        splits, names = list_folder(node.ROOT)
        if reason := _why_workers(node) or _too_large(splits, image_size, options.device, node.LOADER):
            return streamed_data(splits, names, node, options, image_size, reason)
    return memory_data(node, options, image_size)


def listed_folder(node: Any, image_size: int) -> Data:
    """What a folder's names tell, with no picture read: enough to build networks for it."""
    splits, names = list_folder(node.ROOT)
    grey = [0.5] * 3
    return Data("folder", "", len(names), image_size, None, None, None, len(splits["train"][1]), grey, grey, names)


def _flips(node):
    return FLIPS[node.TYPE] if node.FLIP == "auto" else node.FLIP == "horizontal"


def _why_workers(node):
    """What asks for worker processes, as a person reads it; empty where nothing does."""
    asked = {key: node[key] for key in ("AUGMENT", "ERASING", "CROP") if node[key] not in ("none", 0.0, "pad")}
    asked |= {"LOADER": node.LOADER} if node.LOADER == "host" else {}
    return ", ".join(f"DATASET.{key} {value}" for key, value in asked.items())


def _too_large(splits, side, device, loader):
    needed = 3 * side**2 * sum(len(labels) for _, labels in splits.values())
    free = min(_free_bytes(torch.device("cpu")), _free_bytes(device))
    if loader == "device" or needed <= min(_LARGEST_DECODED, free // 4):  # three copies while they are made ready
        return ""
    return f"decoded, its images have {needed >> 20:,} MiB"


def streamed_data(
    splits: dict, names: list[str], node: Any, options: LoaderOptions, image_size: int, reason: str
) -> Data:
    """A folder whose images worker processes read in every epoch; `splits` and `names` are `list_folder`'s."""
    from atsc_plugin.data import streams

    if not node.IMAGE_SIZE:
        raise PluginError(
            f"DATASET.IMAGE_SIZE is 0, but the images of {node.ROOT} stream ({reason}); expected the side to bring "
            "them to, e.g. 224."
        )
    root, workers = expand_user(node.ROOT), node.NUM_WORKERS
    classes = check_labels(splits, names, str(root))
    known = streams.checked_files(root, splits, image_size, node.EVAL_CROP, not (node.MEAN and node.STD))
    mean, std = list(node.MEAN) or known["mean"], list(node.STD) or known["std"]
    splits = _with_validation(splits, node.VAL_SPLIT, "folder")
    crop, plain = (image_size, node.EVAL_CROP), streams.evaluation_transform(mean, std)
    augmented = streams.training_transform(node, image_size, node.PADDING, _flips(node), mean, std)
    files, labels = splits["train"]
    source = streams.Files(root, files, *(() if node.CROP == "resized" else crop))
    others = {
        split: streams.evaluation_loader(streams.Files(root, files, *crop), labels, plain, workers, options)
        for split, (files, labels) in splits.items()
        if split != "train"
    }
    seen = {split: key_of([known["files"][split], *crop]) for split in ("train", "test")}
    return Data(
        name="folder",
        identity=f"folder-{len(labels)}-{seen['train']}",
        classes=classes,
        image_size=image_size,
        train=streams.training_loader(source, labels, augmented, workers, options),
        val=others.get("val"),
        test=others["test"],
        train_images=len(labels),
        mean=mean,
        std=std,
        class_names=names,
        test_identity=f"folder-test-{len(splits['test'][1])}-{seen['test']}",
        eval_crop=node.EVAL_CROP,
        loading=f"{workers} workers: {reason}",
    )


def memory_data(node: Any, options: LoaderOptions, image_size: int) -> Data:
    """A data set that lies in memory: on the device whole, or with workers that augment it."""
    name = node.TYPE
    splits, names = _read(node)
    classes = check_labels(splits, names, node.ROOT or name)
    splits = _with_validation(splits, node.VAL_SPLIT, name)
    _check_memory(splits, image_size, node.PADDING)
    tensors = {split: _tensors(*arrays, image_size, node.IMAGE_SIZE, split) for split, arrays in splits.items()}
    mean, std = list(node.MEAN), list(node.STD)
    if not (mean and std):
        measured = statistics(tensors["train"][0].split(max(1, _MEASURED_TOGETHER // image_size**2)))
        mean, std = mean or measured[0], std or measured[1]
    common = {"mean": mean, "std": std, "device": options.device}
    if reason := _why_workers(node):
        from atsc_plugin.data import streams

        transform = streams.training_transform(node, image_size, node.PADDING, _flips(node), mean, std)
        train = streams.training_loader(*tensors["train"], transform, node.NUM_WORKERS, options)
    else:
        seed, ranks = stream(options.seed, "data"), {"rank": options.rank, "world": options.world}
        augmented = {"seed": seed, "padding": node.PADDING, "flip": _flips(node)}
        train = DeviceLoader(*tensors["train"], options.batch_size, **augmented, **ranks, **common)
    others = {split: DeviceLoader(*pair, options.eval_batch_size, **common) for split, pair in tensors.items()}
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
        eval_crop=node.EVAL_CROP,
        loading=f"{node.NUM_WORKERS} workers: {reason}" if reason else "on the device",
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
    if node.TYPE == "folder":
        return read_folder(node.ROOT, node.IMAGE_SIZE, node.EVAL_CROP)
    return read_cifar10(node.ROOT, node.DOWNLOAD)


_digits100 = lru_cache(maxsize=2)(cached_digits100)  # a run that trains its teacher first asks twice


def train_images(node: Any) -> int | None:
    """How many images an epoch has, no picture decoded; None where no file says it. `node` is DATASET."""
    count = node.DIGITS100.TRAIN_IMAGES if node.TYPE == "digits100" else IMAGES.get(node.TYPE)
    if count is None:
        try:
            count = _listed(node.TYPE, node.ROOT) if node.ROOT else 0
        except PluginError:
            count = 0
    if not count:
        return None
    return len(validation_indices(count, node.VAL_SPLIT)[0]) if node.VAL_SPLIT else count


@lru_cache
def _listed(kind, root):
    splits, _ = read_npz(root) if kind == "npz" else list_folder(root)
    return len(splits["train"][1])


def validation_indices(count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
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
    if not len(kept):
        raise PluginError(f"DATASET.VAL_SPLIT {share} of {len(labels)} training images leaves none. Lower it.")
    return {**splits, "train": (images[kept], labels[kept]), "val": (images[cut], labels[cut])}


def with_validation_loader(train: DataLoader, test: DataLoader, share: float) -> tuple[DataLoader, DataLoader]:
    """(train, val) loaders from a host's own two: the cut-off images come with the test transform."""
    kept, cut = validation_indices(len(train.dataset), share)
    unaugmented = copy.copy(train.dataset)
    unaugmented.transform = test.dataset.transform
    common = {"num_workers": train.num_workers}
    return (
        DataLoader(Subset(train.dataset, kept.tolist()), train.batch_size, shuffle=True, **common),
        DataLoader(Subset(unaugmented, cut.tolist()), test.batch_size, **common),
    )


def _check_memory(splits, side, padding):
    """Refuse sizes that the memory cannot hold, before any is asked for."""
    count, train = sum(len(labels) for _, labels in splits.values()), len(splits["train"][1])
    resized = 0 if splits["train"][0].shape[1:3] == (side, side) else min(count, _RESIZED_TOGETHER)
    needed = 3 * (count * side**2 + train * (side + 2 * padding) ** 2 + 8 * resized * side**2)  # resized as float32
    free = _free_bytes(torch.device("cpu"))
    if needed > free:
        raise PluginError(
            f"{count:,} images of {side} x {side} pixels, padded by {padding}, need {needed >> 20:,} MiB of the "
            f"{free >> 20:,} MiB that are free. Set DATASET.IMAGE_SIZE or DATASET.PADDING lower."
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
        for part in tensor.split(_RESIZED_TOGETHER)
    ]
    return torch.cat(pieces), torch.from_numpy(labels.astype(np.int64))


def content_identity(name: str, images: torch.Tensor, labels: torch.Tensor) -> str:
    """A name for exactly these images in this order: their number and a hash of pixels (N x 3 x H x W) and labels."""
    digest = hashlib.blake2b(digest_size=8)
    for part in images.split(2000):  # in pieces: images that lie channels last are copied
        digest.update(part.contiguous().numpy())
    digest.update(labels.contiguous().numpy())
    return f"{name}-{len(labels)}-{digest.hexdigest()}"


# ---- A host's data set: on the device where its images are an array and its transforms known, else by workers. ----


def host_data(cfg: Any, options: LoaderOptions, image_size: int) -> Data:
    """A data set that the host loads, CIFAR-100 out of any container; `image_size` is what the networks take."""
    node, name = cfg.DATASET, cfg.DATASET.TYPE
    container = find_cifar100(host.data_root(node.ROOT)) if name == "cifar100" else None
    # mdistiller reads its pickles itself. All else is read here, and the host's data sets are built around it.
    theirs = host.NAME == "mdistiller" and container == Container("pickles", host.data_place("cifar100", node.ROOT))
    given = None if container is None or theirs else (read_cifar100(container), CIFAR100_NAMES)
    loaded = host.get_dataset(cfg, given)
    for loader in loaded[:2]:
        if hasattr(loader.dataset, "loader"):  # torchvision's folders open whatever Pillow recognises, EPS among it
            loader.dataset.loader = pictures.as_torchvision
    check_host_keys(loaded, node, image_size)
    train, val, test, images, classes, names, loading = host_loaders(loaded, node, options, cfg.SOLVER.TRAINER)
    mean, std = host.NORMALISATION[name]
    identity, test_identity = f"{name}-{images}", None
    if name == "cifar100":
        identity = _array_identity(name, loaded[0].dataset, node.VAL_SPLIT)
        test_identity = _array_identity(f"{name}-test", loaded[1].dataset)
    return Data(
        name=name,
        identity=identity,
        classes=classes,
        image_size=image_size,
        train=train,
        val=val,
        test=test,
        train_images=images,
        mean=list(mean),
        std=list(std),
        class_names=names if len(names) == classes else [],
        test_identity=test_identity,
        source=str(container or ""),
        loading=loading,
    )


def _array_identity(name, dataset, cut_off=0.0):
    """`content_identity` of torchvision's CIFAR, without the share that is cut off for validation."""
    images, labels = torch.from_numpy(dataset.data).permute(0, 3, 1, 2), torch.tensor(dataset.targets)
    if cut_off:
        kept = torch.from_numpy(validation_indices(len(labels), cut_off)[0])
        images, labels = images[kept], labels[kept]
    return content_identity(name, images, labels)


def host_loaders(loaded: tuple, node: Any, options: LoaderOptions, trainer: str) -> tuple:
    """(train, val or None, test, training images, classes, their names, how they load) from a host's own loaders."""
    train, test, images, classes = loaded
    names = list(getattr(test.dataset, "classes", []))  # torchvision's data sets name them; a card carries them
    ours = trainer == "plugin"
    hindrance = why_not(train, test, options.device) if ours else f"SOLVER.TRAINER is {trainer}"
    if node.LOADER == "device" and hindrance:
        raise PluginError(f"DATASET.LOADER is device, but {node.TYPE} cannot: {hindrance}. Use auto or host.")
    asked = _why_workers(node)
    if asked and node.LOADER != "host" and hindrance:
        raise PluginError(f"{asked}, but {node.TYPE} cannot be augmented here: {hindrance}. Leave it out.")
    if node.LOADER != "host" and not hindrance:
        loading = f"{train.num_workers} workers: {asked}" if asked else "on the device"
        return *on_device(train, test, node, options), classes, names, loading
    val = None
    if node.VAL_SPLIT:
        train, val = with_validation_loader(train, test, node.VAL_SPLIT)
        images = len(train.dataset)
    if ours and (node.LOADER == "auto" or options.world > 1):
        from atsc_plugin.data.worker_loader import WorkerLoader

        train = WorkerLoader(train, options)
    return train, val, test, images, classes, names, f"{train.num_workers} workers: {hindrance or asked}"


def check_host_keys(loaded: tuple, node: Any, size: int) -> None:
    """Refuse keys that a host's own loaders do not follow: all that is built on them would believe them."""
    side = loaded[1].dataset[0][0].shape[-1]
    if side != size:
        raise PluginError(
            f"DATASET.IMAGE_SIZE is {size}, but the host's {node.TYPE} has images of {side} pixels and does not resize "
            "them; leave DATASET.IMAGE_SIZE out, or name the size that is there."
        )


def why_not(train: DataLoader, test: DataLoader, device: torch.device) -> str | None:
    """None where both loaders' data sets can live on the device and be augmented there; else the reason in words."""
    for loader in (train, test):
        images = getattr(loader.dataset, "data", None)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
            return "its images are files, not an array"
    if augmentation(train.dataset.transform) is None or augmentation(test.dataset.transform) is None:
        return "its transforms are not padding, cropping, mirroring and normalising"
    if len(train.dataset[0]) > 3:
        return "its batches carry contrastive samples"
    needed, free = 2 * (train.dataset.data.nbytes + test.dataset.data.nbytes), _free_bytes(device)
    if needed > free // 2:
        return f"it needs {needed >> 20} MiB of the {free >> 20} MiB that are free on {device}"
    return None


def augmentation(transform: Any) -> dict[str, Any] | None:
    """{"padding", "flip", "mean", "std"} of mdistiller's CIFAR transforms; None for any other."""
    from torchvision import transforms

    steps = list(getattr(transform, "transforms", []))
    settings = {"padding": 0, "flip": False}
    if steps and type(steps[0]) is transforms.RandomCrop:
        step = steps.pop(0)
        if type(step.padding) is not int or (step.fill, step.padding_mode, step.pad_if_needed) != (
            0,
            "constant",
            False,
        ):
            return None
        settings["padding"] = step.padding
    if steps and type(steps[0]) is transforms.RandomHorizontalFlip and steps[0].p == 0.5:
        settings["flip"] = bool(steps.pop(0))
    if [type(step) for step in steps] != [transforms.ToTensor, transforms.Normalize]:
        return None
    return {**settings, "mean": list(steps[1].mean), "std": list(steps[1].std)}


def on_device(train: DataLoader, test: DataLoader, node: Any, options: LoaderOptions) -> tuple:
    """(train, val or None, test, training images) as device loaders; DATASET.AUGMENT and ERASING want workers."""
    images, labels = train.dataset.data, np.asarray(train.dataset.targets)
    augmented, plain = augmentation(train.dataset.transform), augmentation(test.dataset.transform)
    kept, cut = validation_indices(len(labels), node.VAL_SPLIT) if node.VAL_SPLIT else (slice(None), None)

    def loader(images, labels, batch_size, **rest):
        tensors = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))
        return DeviceLoader(*tensors, batch_size, device=options.device, **rest)

    if _why_workers(node):
        from atsc_plugin.data import streams

        transform = streams.training_transform(node, images.shape[1], **augmented)
        pixels = torch.from_numpy(images[kept]).permute(0, 3, 1, 2)
        train_loader = streams.training_loader(pixels, labels[kept], transform, train.num_workers, options)
    else:
        train_loader = loader(
            images[kept], labels[kept], options.batch_size, **augmented, seed=stream(options.seed, "data"),
            rank=options.rank, world=options.world,
        )  # fmt: skip
    val = None if cut is None else loader(images[cut], labels[cut], options.eval_batch_size, **plain)
    test_loader = loader(test.dataset.data, np.asarray(test.dataset.targets), options.eval_batch_size, **plain)
    return train_loader, val, test_loader, len(labels[kept])


def _free_bytes(device):
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")  # what the page cache holds can be had: without it the answer would hang on luck
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
