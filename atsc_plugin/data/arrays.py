"""Labelled images as uint8 arrays: read from an .npz file, class folders or CIFAR-10's files, and checked.

Whatever is wrong with somebody's data is told here with counts and the first names, before a network is built. The
result of every reader is {"train": (images N x H x W x 3, labels), "test": ..., perhaps "val"} and the class names.
"""

import os
import pickle
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from atsc_plugin.cards import LARGEST_CLASSES
from atsc_plugin.data import pictures
from atsc_plugin.errors import PluginError
from atsc_plugin.untrusted import as_plugin_error, expand_user, first_line, memory_limit, open_regular, printable

SPLITS = ("train", "val", "test")
LONGEST_NAME = 1000  # characters of a class
# Endings by which a file in a class folder is meant as a picture; what cannot be read of these is refused by name.
MEANT = pictures.SUFFIXES | {".gif", ".tif", ".tiff", ".heic", ".avif", ".jfif"}


def read_npz(root):
    """Arrays train_images, train_labels, test_images, test_labels, optionally val_* and class_names."""
    path = expand_user(root)
    expected = "arrays train_images, train_labels, test_images, test_labels (numbers only, no pickled objects)"
    with as_plugin_error(f"DATASET.ROOT {path} cannot be read as .npz ({{}}); expected a file with {expected}."):  # noqa: SIM117
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            arrays = _arrays(archive, path)
    splits = {s: (arrays[f"{s}_images"], arrays[f"{s}_labels"]) for s in SPLITS if f"{s}_images" in arrays}
    return splits, _names(arrays["class_names"], path) if "class_names" in arrays else []


def _arrays(archive, path):
    """{name: array} of those that are needed. The header of each is checked before memory is asked for its content."""
    entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    splits = [split for split in SPLITS if split != "val" or {"val_images", "val_labels"} & entries.keys()]
    needed = [f"{split}_{kind}" for split in splits for kind in ("images", "labels")]
    missing = [name for name in needed if name not in entries]
    if missing:
        held = printable(_some(sorted(entries))) if entries else "nothing"
        raise PluginError(f"{path} lacks {', '.join(missing)}; it has {held}.")
    wanted = [*needed, *({"class_names"} & entries.keys())]
    headers = {name: _header(archive, entries[name], path) for name in wanted}
    for split in splits:
        _check_shape(path, split, headers[f"{split}_images"], headers[f"{split}_labels"])
    total = sum(np.dtype(dtype).itemsize * int(np.prod(shape, dtype=object)) for shape, dtype in headers.values())
    if total > memory_limit():
        raise PluginError(f"{path} has {total:,} bytes of arrays, more than half of this machine's memory.")
    arrays = {}
    for name in wanted:
        with archive.open(entries[name]) as file:
            arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
    for name in wanted:
        if name.endswith("_labels"):
            arrays[name] = _whole_labels(arrays[name], name, path)
    return arrays


def _header(archive, entry, path):
    """(shape, dtype) of one array, refused where its content is not as long as it says."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{entry.filename} has the array format {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        length = entry.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds pickled objects")
    if dtype.itemsize * int(np.prod(shape, dtype=object)) != length:
        raise ValueError(f"{entry.filename} says {dtype} {shape}, and {length:,} bytes follow")
    return shape, dtype


def _whole_labels(labels, name, path):
    """Labels as int64; those that are no number of a class are refused before anything counts up to them."""
    highest = int(labels.max())
    if highest >= LARGEST_CLASSES:
        place = int(labels.argmax())
        raise PluginError(
            f"{path}: {name} has {highest} at {place}; expected classes numbered from 0, at most {LARGEST_CLASSES:,}."
        )
    return labels.astype(np.int64)


def _names(names, path):
    """The class names as text that can be shown; bytes are taken as UTF-8."""
    if names.ndim != 1 or len(names) > LARGEST_CLASSES or names.dtype.kind not in "USiu":
        raise PluginError(f"{path}: class_names is {names.dtype} {names.shape}; expected a list of names.")
    if names.dtype.kind in "US" and names.dtype.itemsize > 4 * LONGEST_NAME:
        raise PluginError(f"{path}: class_names is {names.dtype}; expected at most {LONGEST_NAME} characters a name.")
    return [
        printable(name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name)[:LONGEST_NAME]
        for name in names.tolist()
    ]


def _check_shape(path, name, images, labels):
    """Refuse what is no split, by the (shape, dtype) of its two arrays."""
    shape, dtype = images
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise PluginError(f"{path}: {name}_images is {dtype} {shape}; expected uint8 N x H x W x 3, N > 0.")
    if not np.issubdtype(labels[1], np.integer) or labels[0] != shape[:1]:
        raise PluginError(
            f"{path}: {name}_labels is {labels[1]} {labels[0]}; expected integers, one for each of the {shape[0]} "
            "images."
        )


def list_folder(root, empty_classes=False):
    """({split: (files relative to the root as an array of bytes, labels)}, class names); a lone val/ is the test split.

    Bytes: names need not be UTF-8, and an array of them costs a tenth of as many paths.
    """
    root = expand_user(root)
    present = [split for split in SPLITS if (root / split).is_dir()]
    if "train" not in present or len(present) < 2:
        raise PluginError(
            f"DATASET.ROOT {root} has {', '.join(present) or 'none'} of train/, val/, test/; expected train/ and at "
            "least one of the others, each with one folder a class."
        )
    names = sorted(_class_names(root / "train"))
    if not 1 <= len(names) <= LARGEST_CLASSES:
        raise PluginError(
            f"{root / 'train'} has {len(names) or 'no'} class folders; expected one folder a class with its images."
        )
    splits = {split: _class_files(root, split, names, empty_classes or split != "train") for split in present}
    if "test" not in splits:  # a lone val/ is what is reported; it is then no validation split
        splits["test"] = splits.pop("val")
    return splits, [printable(name) for name in names]


def _class_names(folder):
    """Hidden folders, such as .ipynb_checkpoints, are no classes."""
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}


def _pictures_in(folder):
    """Paths below a class folder, sorted, through links too, though no folder twice; hidden ones are no pictures."""
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = "" if place == os.fspath(folder) else os.path.relpath(place, folder)
        shown = (name for name in files if not name.startswith(".") and os.path.splitext(name)[1].lower() in MEANT)
        found += [os.path.join(below, name) for name in shown]
    return sorted(found)


def _class_files(root, split, names, empty_classes):
    folder = root / split
    foreign = sorted(_class_names(folder) - set(names))
    if foreign:
        raise PluginError(f"{folder} has {len(foreign)} class folders that train/ has not: {_some(foreign)}.")
    labels, files, empty = [], [], []
    for label, name in enumerate(names):
        wanted = _pictures_in(folder / name)
        empty += [] if wanted else [name]
        files += [os.fsencode(os.path.join(split, name, file)) for file in wanted]
        labels += [label] * len(wanted)
    if not files:
        raise PluginError(f"{folder} holds no images ({', '.join(sorted(pictures.SUFFIXES))}) in its class folders.")
    if empty and not empty_classes:
        raise PluginError(f"{folder} has {len(empty)} class folders without images: {_some(empty)}. Remove them.")
    return np.array(files), np.array(labels, dtype=np.int64)


def refuse_unreadable(folder, unreadable):
    """Name the images of [(file, reason)], counted; nothing where there are none."""
    if unreadable:
        lines = [f"{os.fsdecode(file)}: {reason}" for file, reason in unreadable]
        raise PluginError(f"{folder}: {len(lines)} unreadable images: {_some(lines)}. Repair or remove them.")


def read_folder(root, image_size, crop=0.0, empty_classes=False):
    """The images of `list_folder` decoded into memory; fitted to a size, as in evaluation, when one is asked for."""
    splits, names = list_folder(root, empty_classes)
    for split, (files, labels) in splits.items():
        splits[split] = _decoded(expand_user(root), files, image_size, crop), labels
    return splits, names


def _decoded(root, files, image_size, crop):
    folder = root / os.fsdecode(files[0].split(b"/")[0])
    unreadable, sizes, images = [], Counter(), []
    for file in files:  # sizes first: what has no place in memory is told before it is decoded
        try:
            sizes[pictures.size_of(root / os.fsdecode(file))] += 1
        except pictures.Unreadable as error:
            unreadable.append((file, error))
    _check_sizes(folder, sizes, image_size)
    for file in files if not unreadable else ():
        try:
            image = pictures.decoded(root / os.fsdecode(file))
            images.append(np.asarray(pictures.fitted(image, image_size, crop) if image_size else image))
        except pictures.Unreadable as error:
            unreadable.append((file, error))
    refuse_unreadable(folder, unreadable)
    return np.stack(images)


def _check_sizes(folder, sizes, image_size):
    """Refuse a mixture that is not to be resized, and more pixels than there is memory for."""
    if len(sizes) > 1 and not image_size:
        most = ", ".join(f"{count} of {w}x{h}" for (w, h), count in sizes.most_common(3))
        raise PluginError(f"{folder}: mixed image sizes ({most}); set DATASET.IMAGE_SIZE and all are resized to it.")
    needed = 3 * sum(count * (image_size * image_size or w * h) for (w, h), count in sizes.items())
    if needed > memory_limit():
        raise PluginError(
            f"{folder}: its images take {needed:,} bytes, more than half of this machine's memory. Set a smaller "
            "DATASET.IMAGE_SIZE."
        )


def read_cifar10(root, download):
    """CIFAR-10 from its own files below DATASET.ROOT, through torchvision."""
    from torchvision.datasets import CIFAR10

    try:
        sets = {split: CIFAR10(root, train=split == "train", download=download) for split in ("train", "test")}
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        raise PluginError(
            f"CIFAR-10 is not in {Path(root) / CIFAR10.base_folder} ({first_line(error)}). Unpack "
            "cifar-10-python.tar.gz there (from https://www.cs.toronto.edu/~kriz/cifar.html), name its folder with "
            "DATASET.ROOT, or set DATASET.DOWNLOAD True."
        ) from error
    splits = {name: (data.data, np.array(data.targets, dtype=np.int64)) for name, data in sets.items()}
    return splits, list(sets["train"].classes)


def check_labels(splits, names, source):
    """The number of classes; labels out of range are refused, classes without a training image are said aloud."""
    highest = max(int(labels.max()) for _, labels in splits.values())
    classes = len(names) or max(highest, 0) + 1
    for split, (_, labels) in splits.items():
        outside = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(outside):
            first = ", ".join(f"{labels[i]} at {i}" for i in outside[:3])
            raise PluginError(
                f"{source}: {len(outside)} {split} labels lie outside 0..{classes - 1} (first: {first}); expected them "
                f"from 0 to one less than the {classes} classes{' of class_names' if names else ''}."
            )
    counts = np.bincount(splits["train"][1], minlength=classes)
    empty = [names[i] if names else str(i) for i in np.flatnonzero(counts == 0)]
    if empty:
        print(f"note: {len(empty)} of {classes} classes have no training image: {_some(empty)}", flush=True)
    return classes


def _some(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
