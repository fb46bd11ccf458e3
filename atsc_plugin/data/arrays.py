"""Labelled images as uint8 arrays: read from an .npz file, class folders or CIFAR-10's files, and checked.

Whatever is wrong with somebody's data is told here with counts and the first names, before a network is built. The
result of every reader is {"train": (images N x H x W x 3, labels), "test": ..., perhaps "val"} and the class names.
"""

import pickle
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from atsc_plugin.errors import PluginError

SPLITS = ("train", "val", "test")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"}


def read_npz(root):
    """Arrays train_images, train_labels, test_images, test_labels, optionally val_* and class_names."""
    path = Path(root).expanduser()
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:  # an .npy is a bare array
        raise PluginError(
            f"DATASET.ROOT {path} cannot be read as .npz ({_first_line(error)}); expected a file with arrays "
            "train_images, train_labels, test_images, test_labels (numbers only, no pickled objects)."
        ) from error
    splits = [split for split in SPLITS if split != "val" or {"val_images", "val_labels"} & arrays.keys()]
    needed = [f"{split}_{kind}" for split in splits for kind in ("images", "labels")]
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise PluginError(f"{path} lacks {', '.join(missing)}; it has {', '.join(sorted(arrays)) or 'nothing'}.")
    splits = {s: (arrays[f"{s}_images"], arrays[f"{s}_labels"]) for s in SPLITS if f"{s}_images" in arrays}
    for name, (images, labels) in splits.items():
        _check_shape(path, name, images, labels)
    names = [str(name) for name in arrays["class_names"]] if "class_names" in arrays else []
    return splits, names


def _check_shape(path, name, images, labels):
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not len(images):
        got = f"{images.dtype} {images.shape}"
        raise PluginError(f"{path}: {name}_images is {got}; expected uint8 N x H x W x 3, N > 0.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise PluginError(
            f"{path}: {name}_labels is {labels.dtype} {labels.shape}; expected integers, one for each of the "
            f"{len(images)} images."
        )


def read_folder(root, image_size):
    """train/ and val/ or test/, each with a folder a class, decoded into memory; resized when a size is asked for."""
    root = Path(root).expanduser()
    present = [split for split in SPLITS if (root / split).is_dir()]
    if "train" not in present or len(present) < 2:
        raise PluginError(
            f"DATASET.ROOT {root} has {', '.join(present) or 'none'} of train/, val/, test/; expected train/ and at "
            "least one of the others, each with one folder a class."
        )
    names = sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
    if not names:
        raise PluginError(f"{root / 'train'} has no class folders; expected one folder a class with its images.")
    splits = {split: _read_classes(root / split, names, image_size) for split in present}
    if "test" not in splits:  # a lone val/ is what is reported; it is then no validation split
        splits["test"] = splits.pop("val")
    return splits, names


def _read_classes(folder, names, image_size):
    foreign = sorted({path.name for path in folder.iterdir() if path.is_dir()} - set(names))
    if foreign:
        raise PluginError(f"{folder} has {len(foreign)} class folders that train/ has not: {_some(foreign)}.")
    images, labels, unreadable, sizes = [], [], [], Counter()
    for label, name in enumerate(names):
        for path in sorted(p for p in (folder / name).glob("*") if p.suffix.lower() in SUFFIXES):
            try:
                with Image.open(path) as opened:
                    image = opened.convert("RGB")
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                unreadable.append(str(path.relative_to(folder.parent)))
                continue
            sizes[image.size] += 1
            if image_size and image.size != (image_size, image_size):
                image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
            images.append(np.asarray(image))
            labels.append(label)
    if unreadable:
        raise PluginError(f"{folder}: {len(unreadable)} unreadable images: {_some(unreadable)}. Repair or remove them.")
    if not images:
        raise PluginError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}) in its class folders.")
    if len({image.shape for image in images}) > 1:
        told = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common(3))
        raise PluginError(f"{folder}: mixed image sizes ({told}); set DATASET.IMAGE_SIZE and all are resized to it.")
    return np.stack(images), np.array(labels, dtype=np.int64)


def read_cifar10(root, download):
    """CIFAR-10 from its own files below DATASET.ROOT, through torchvision."""
    from torchvision.datasets import CIFAR10

    try:
        sets = {split: CIFAR10(root, train=split == "train", download=download) for split in ("train", "test")}
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        raise PluginError(
            f"CIFAR-10 is not in {Path(root) / CIFAR10.base_folder} ({_first_line(error)}). Unpack "
            "cifar-10-python.tar.gz there (from https://www.cs.toronto.edu/~kriz/cifar.html), name its folder with "
            "DATASET.ROOT, or set DATASET.DOWNLOAD True."
        ) from error
    splits = {name: (data.data, np.array(data.targets, dtype=np.int64)) for name, data in sets.items()}
    return splits, list(sets["train"].classes)


def check_labels(splits, names, source):
    """The number of classes; labels out of range are refused, classes without a training image are said aloud."""
    highest = max(int(labels.max()) for _, labels in splits.values())
    classes = len(names) or highest + 1
    for split, (_, labels) in splits.items():
        outside = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(outside):
            told = ", ".join(f"{labels[i]} at {i}" for i in outside[:3])
            raise PluginError(
                f"{source}: {len(outside)} {split} labels lie outside 0..{classes - 1} (first: {told}); expected them "
                f"from 0 to one less than the {classes} classes{' of class_names' if names else ''}."
            )
    counts = np.bincount(splits["train"][1], minlength=classes)
    empty = [names[i] if names else str(i) for i in np.flatnonzero(counts == 0)]
    if empty:
        print(f"note: {len(empty)} of {classes} classes have no training image: {_some(empty)}", flush=True)
    return classes


def _some(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
