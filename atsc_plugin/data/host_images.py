"""A host's data set on the device: its images where they can be had whole, its transforms where they are understood."""

import os
from pathlib import Path

import numpy as np
import torch
from torchvision import transforms

from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.data.sharing import WorkerLoader
from atsc_plugin.data.splits import validation_indices, with_validation_loader
from atsc_plugin.errors import PluginError
from atsc_plugin.seeds import stream


def loaders(found, node, facts, trainer):
    """(train, val or None, test, training images, classes, their names) from a host's own, by DATASET.LOADER."""
    train, test, images, classes = found
    names = list(getattr(test.dataset, "classes", []))  # torchvision's data sets name them; a card carries them
    ours = trainer == "plugin"
    hindrance = why_not(train, test, facts.device) if ours else f"SOLVER.TRAINER is {trainer}"
    if node.LOADER == "device" and hindrance:
        raise PluginError(f"DATASET.LOADER is device, but {node.TYPE} cannot: {hindrance}. Use auto or host.")
    if node.LOADER != "host" and not hindrance:
        return *on_device(train, test, node.VAL_SPLIT, facts), classes, names
    val = None
    if node.VAL_SPLIT:
        train, val = with_validation_loader(train, test, node.VAL_SPLIT)
        images = len(train.dataset)
    if ours and (node.LOADER == "auto" or facts.world > 1):
        train = WorkerLoader(train, facts)
    return train, val, test, images, classes, names


def check(found, node, size):
    """Refuse keys that a host's own loaders do not follow: all that is built on them would believe them."""
    side = found[1].dataset[0][0].shape[-1]
    if side != size:
        raise PluginError(
            f"DATASET.IMAGE_SIZE is {size}, but the host's {node.TYPE} has images of {side} pixels and does not resize "
            "them; leave DATASET.IMAGE_SIZE out, or name the size that is there."
        )


def why_not(train, test, device):
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


def augmentation(transform):
    """{"padding", "flip", "mean", "std"} of mdistiller's CIFAR transforms; None for any other."""
    steps = list(getattr(transform, "transforms", []))
    found = {"padding": 0, "flip": False}
    if steps and type(steps[0]) is transforms.RandomCrop:
        step = steps.pop(0)
        if type(step.padding) is not int or (step.fill, step.padding_mode, step.pad_if_needed) != (
            0,
            "constant",
            False,
        ):
            return None
        found["padding"] = step.padding
    if steps and type(steps[0]) is transforms.RandomHorizontalFlip and steps[0].p == 0.5:
        found["flip"] = bool(steps.pop(0))
    if [type(step) for step in steps] != [transforms.ToTensor, transforms.Normalize]:
        return None
    return {**found, "mean": list(steps[1].mean), "std": list(steps[1].std)}


def on_device(train, test, share, facts):
    """(train, val or None, test, training images) as device loaders; `share` of the training images for validation."""
    images, labels = train.dataset.data, np.asarray(train.dataset.targets)
    known, plain = augmentation(train.dataset.transform), augmentation(test.dataset.transform)
    kept, cut = validation_indices(len(labels), share) if share else (np.arange(len(labels)), None)

    def loader(images, labels, batch_size, **rest):
        tensors = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))
        return DeviceLoader(*tensors, batch_size, device=facts.device, **rest)

    seed = stream(facts.seed, "data")
    ours = loader(images[kept], labels[kept], facts.batch_size, **known, seed=seed, rank=facts.rank, world=facts.world)
    val = None if cut is None else loader(images[cut], labels[cut], facts.eval_batch_size, **plain)
    checked = loader(test.dataset.data, np.asarray(test.dataset.targets), facts.eval_batch_size, **plain)
    return ours, val, checked, len(kept)


def _free_bytes(device):
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")  # what the page cache holds can be had: without it the answer would hang on luck
    for line in meminfo.read_text().splitlines() if meminfo.is_file() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
