"""A folder of images of any size, or images in memory, through worker processes: read, augmented and normalised there.

The files of a folder are checked once, by their first and last bytes; the result is kept in the user's cache under
their names, lengths and times. Memory does not grow with their number but for their names and labels. Pixels are
Pillow's, as in `predict`; the transforms are torchvision's, in the order of its own training scripts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from atsc_plugin.data import pictures
from atsc_plugin.data.arrays import refuse_unreadable
from atsc_plugin.data.digits100 import cache_folder
from atsc_plugin.data.sample import drawn, statistics
from atsc_plugin.data.worker_loader import WorkerLoader
from atsc_plugin.errors import PluginError
from atsc_plugin.files import key_of, only_writer, write_json
from atsc_plugin.untrusted import read_json

POLICIES = {"rand-2-9": lambda: v2.RandAugment(2, 9), "trivial": v2.TrivialAugmentWide, "auto": v2.AutoAugment}
MOST_MEASURED = 1000  # training images that mean and std are taken of


# ---- images, one by one ----


class UnreadableImage(PluginError):
    """An image that cannot be read. A DataLoader puts a worker's traceback before the message; it is cut off."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


class Files:
    """files[i]: image i as an upright RGB image, fitted as in evaluation if `side` says so."""

    def __init__(self, root: Path, names: np.ndarray, side: int = 0, crop: float = 0.0) -> None:
        self.root, self.names, self.side, self.crop = root, names, side, crop

    def __getitem__(self, number: int) -> Any:
        path = self.root / os.fsdecode(self.names[number])
        try:
            image = pictures.decoded(path)
            return pictures.fitted(image, self.side, self.crop) if self.side else image
        except pictures.Unreadable as error:
            raise UnreadableImage(f"{path} cannot be read as an image: {error}. Repair or remove it.") from error


class Images(Dataset):
    """(image, label) for evaluation, (image, label, number) for training; `source[i]` is image i."""

    def __init__(self, source: Any, labels: Any, transform: Callable, training: bool) -> None:
        self.source, self.labels, self.transform, self.training = source, labels, transform, training

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        item = self.transform(self.source[number]), int(self.labels[number])
        return (*item, number) if self.training else item


def scaled(image: Any) -> torch.Tensor:
    """pixel / 255 of an RGB image or of uint8 3 x H x W. v2.ToDtype multiplies by 1 / 255: other last digits."""
    return (image if isinstance(image, torch.Tensor) else pil_to_tensor(image)).float() / 255


def evaluation_transform(mean: list[float], std: list[float]) -> Callable:
    """(pixel / 255 - mean) / std, as ToTensor and Normalize compute it."""
    return v2.Compose([scaled, v2.Normalize(mean, std)])


def training_transform(node: Any, side: int, padding: int, flip: bool, mean: list[float], std: list[float]) -> Callable:
    """Crop, mirror, DATASET.AUGMENT, normalisation, DATASET.ERASING; `node` is DATASET."""
    if node.CROP == "resized":
        steps = [v2.RandomResizedCrop(side, antialias=True)]
    else:
        steps = [v2.RandomCrop(side, padding=padding)] if padding else []
    steps += [v2.RandomHorizontalFlip()] * flip
    if node.AUGMENT != "none":
        steps.append(POLICIES[node.AUGMENT]())
    steps.append(evaluation_transform(mean, std))
    return v2.Compose([*steps, v2.RandomErasing(node.ERASING)] if node.ERASING else steps)


# ---- loaders ----


def training_loader(source: Any, labels: Any, transform: Callable, workers: int, options: Any) -> WorkerLoader:
    """Shuffled, augmented by (seed, epoch, image), shared among the ranks."""
    return WorkerLoader(DataLoader(Images(source, labels, transform, True), num_workers=workers), options)


def evaluation_loader(source: Any, labels: Any, transform: Callable, workers: int, options: Any) -> DataLoader:
    """In order. Its workers end with each pass: those of the training loader stay."""
    images = Images(source, labels, transform, False)
    generator = torch.Generator()  # else every pass would draw a number from torch's global one
    pinned = options.device.type == "cuda"
    return DataLoader(images, options.eval_batch_size, num_workers=workers, pin_memory=pinned, generator=generator)


# ---- what is known of a folder's files before any is read whole ----


def checked_files(root: Path, splits: dict, side: int, crop: float, measured: bool) -> dict[str, Any]:
    """{"files": {split: hash}, "mean", "std"}; unreadable files are refused, counted and by name.

    From the cache where these files were checked before. Several ranks wait for the first of them.
    """
    facts = {"files": _listing(root, splits), "side": side, "crop": crop, "measured": measured}
    try:
        path = cache_folder() / f"folder-{key_of(facts)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home folder, or a read-only one
        return _check(root, splits, side, crop, measured)
    with only_writer(path, "XDG_CACHE_HOME"):
        with suppress(OSError, PluginError):
            return read_json(path, "what a check of image files found")
        found = _check(root, splits, side, crop, measured)
        with suppress(OSError):
            write_json(found, path)
        return found


def _listing(root, splits):
    """A hash of the files' names, lengths and times of change."""
    digest = hashlib.blake2b(os.fsencode(root.absolute()), digest_size=8)
    for split, (names, _) in sorted(splits.items()):
        for name in names:
            digest.update(b"%b/%b" % (split.encode(), name))
            with suppress(OSError):  # a link to nowhere: the check names it
                status = os.stat(root / os.fsdecode(name))
                digest.update(b"/%d/%d" % (status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _check(root, splits, side, crop, measured):
    print(f"checking the files of {root}: {sum(len(names) for names, _ in splits.values()):,} images", flush=True)
    hashes, unreadable = {}, []
    for split, (names, _) in splits.items():
        digest = hashlib.blake2b(digest_size=8)
        for name in names:
            try:
                digest.update(name + b"/" + pictures.check(root / os.fsdecode(name)))
            except pictures.Unreadable as error:
                unreadable.append((name, error))
        hashes[split] = digest.hexdigest()
    refuse_unreadable(root, unreadable)
    found = {"files": hashes}
    if measured:
        found["mean"], found["std"] = statistics(_sampled(Files(root, splits["train"][0], side, crop)))
    return found


def _sampled(files: Files) -> Iterator[torch.Tensor]:
    for number in drawn(len(files.names), MOST_MEASURED).tolist():
        yield pil_to_tensor(files[number])[None]
