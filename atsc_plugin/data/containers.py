"""CIFAR-100 in any container: the original pickles, an .npz, class folders of PNGs, or Hugging Face's parquet.

`find_cifar100` says which one DATASET.ROOT holds, `read_cifar100` returns its images and labels. Labels are always
CIFAR-100's: the place of the class in the alphabetical list below, whatever order a container names its classes in.
The order of the images is the container's own. Pickles, parquet and .npz: the order of the rows (parquet: of the files
sorted by name, then of the rows). Class folders: by class, then by file name. Equal images in equal order have an equal
identity in result.json; the same images in another order have another one, for they give other batches.
Nothing in a file is executed, and no size that a file claims is believed before it is bounded.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from atsc_plugin.data.arrays import read_folder, read_npz
from atsc_plugin.errors import PluginError
from atsc_plugin.untrusted import as_plugin_error, expand_user, open_regular

Splits = dict[str, tuple[np.ndarray, np.ndarray]]

PICKLES_FOLDER = "cifar-100-python"
SIDE = 32
MOST = 100_000  # images of a split; CIFAR-100 has 50,000 and 10,000
_LARGEST_FILE = 1 << 30  # bytes of a pickle, or of an array inside an .npz; the largest real one has 154 MB

_ALPHABETICAL = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree
wolf woman worm
"""
CLASS_NAMES: tuple[str, ...] = tuple(_ALPHABETICAL.split())


@dataclass(frozen=True)
class Container:
    """One way in which CIFAR-100 lies on the disk. `kind`: pickles, npz, packed npz, class folders or parquet."""

    kind: str
    path: Path

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


def find_cifar100(root: str | Path) -> Container | None:
    """The container that `root` is or holds, None where there is none. Of several the first is taken.

    The order: pickles of the unpacked archive, cifar100.npz, a folder a class, parquet.
    """
    root = expand_user(root)
    if root.suffix in (".npz", ".parquet") and not root.exists():
        raise PluginError(f"CIFAR-100 is not here: there is no file {root}. Name another one with DATASET.ROOT.")
    if root.is_file():
        if root.suffix == ".parquet":
            return Container("parquet", root.parent)
        if root.suffix == ".npz":
            return Container(_npz_kind(root), root)
        raise PluginError(
            f"DATASET.ROOT {root} is a file, but neither .npz nor .parquet. Unpack an archive and name its folder."
        )
    for folder in (root / PICKLES_FOLDER, root):
        if all((folder / split).is_file() for split in ("train", "test")):
            return Container("pickles", folder)
    if (root / "cifar100.npz").is_file():
        return Container(_npz_kind(root / "cifar100.npz"), root / "cifar100.npz")
    for folder in (root, root / "cifar100"):
        if (folder / "train").is_dir() and any(path.is_dir() for path in (folder / "train").iterdir()):
            return Container("class folders", folder)
    for folder in (root, root / "cifar100", root / "data"):
        if _parquet_files(folder, "train"):
            return Container("parquet", folder)
    return None


def read_cifar100(container: Container) -> Splits:
    """{"train": (images uint8 N x 32 x 32 x 3, labels int64 N), "test": ...}, checked."""
    readers = {
        "pickles": _read_pickles,
        "npz": read_npz,
        "packed npz": _read_packed_npz,
        "class folders": lambda path: read_folder(path, 0, empty_classes=True),
        "parquet": _read_parquet,
    }
    splits, names = readers[container.kind](container.path)
    if extra := sorted(splits.keys() - {"train", "test"}):
        raise PluginError(
            f"{container.path} also has {', '.join(extra)}, but CIFAR-100 is train and test. Cut a validation split "
            "off with DATASET.VAL_SPLIT, or use DATASET.TYPE npz or folder."
        )
    places = _places(names, container.path)
    return {split: _checked(*splits[split], places, f"{container.path}, {split}") for split in ("train", "test")}


def _places(names: list[str], path: Path) -> np.ndarray:
    """The label of each class as the container numbers them. Without names the numbers are taken for CIFAR-100's."""
    if not names:
        return np.arange(len(CLASS_NAMES))
    known = {name: label for label, name in enumerate(CLASS_NAMES)}
    plain = [name.lower().replace(" ", "_").replace("-", "_") for name in names]
    foreign = [name for name, spelt in zip(names, plain, strict=True) if spelt not in known]
    if foreign or len(set(plain)) < len(plain):
        raise PluginError(
            f"{path} has {len(foreign)} class names that are not CIFAR-100's ({', '.join(map(repr, foreign[:3]))}) of "
            f"{len(names)}; expected {CLASS_NAMES[0]} ... {CLASS_NAMES[-1]}, each once. Use DATASET.TYPE npz or folder "
            "for images of your own."
        )
    return np.array([known[name] for name in plain])


def _checked(images: np.ndarray, labels: np.ndarray, places: np.ndarray, source: str) -> tuple[np.ndarray, np.ndarray]:
    if images.dtype != np.uint8 or images.shape[1:] != (SIDE, SIDE, 3) or not 1 <= len(images) <= MOST:
        raise PluginError(
            f"{source}: images are {images.dtype} {images.shape}; expected uint8 N x 32 x 32 x 3, N from 1 to {MOST:,}."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != (len(images),):
        raise PluginError(
            f"{source}: labels are {labels.dtype} {labels.shape}; expected integers, one for each of the "
            f"{len(images)} images."
        )
    if labels.min() < 0 or labels.max() >= len(places):
        raise PluginError(
            f"{source}: labels run from {labels.min()} to {labels.max()}; expected 0 to {len(places) - 1}."
        )
    return np.ascontiguousarray(images), places[labels.astype(np.int64)]


# ---- The original pickles ----

_RECONSTRUCT, _FROM_BUFFER = np.empty(0).__reduce__()[0], np.empty(0).__reduce_ex__(5)[0]
_SAFE = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, coding: text.encode("latin1"),  # how protocol 2 writes bytes
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in ("core", "_core")},
}


class _ArraysOnly(pickle.Unpickler):
    """Builds dicts, lists, texts, numbers and NumPy arrays; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither a number nor an array")
        return _SAFE[module, name]


def _read_pickles(folder: Path) -> tuple[Splits, list[str]]:
    splits = {}
    for split in ("train", "test"):
        content = _unpickled(folder / split)
        with as_plugin_error(
            f"{folder / split} is no part of CIFAR-100 ({{}}); expected a dict with data (uint8 N x {3 * SIDE * SIDE}) "
            "and fine_labels."
        ):
            pixels, labels = np.asarray(content["data"]), np.asarray(content["fine_labels"])
            images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        splits[split] = (images, labels)
    names = _unpickled(folder / "meta").get("fine_label_names", []) if (folder / "meta").is_file() else []
    if not isinstance(names, list):
        raise PluginError(f"{folder / 'meta'}: fine_label_names is a {type(names).__name__}; expected a list.")
    return splits, [_text(name) for name in names]


def _unpickled(path: Path) -> dict:
    """The dict in a pickle, its keys as texts; Python 2 and 3 wrote such files."""
    with as_plugin_error(
        f"{path} cannot be read as a pickle of CIFAR-100 ({{}}). Unpack cifar-100-python.tar.gz again."
    ):
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        with open_regular(path) as file:
            _check_memo(file)
            file.seek(0)
            content = _ArraysOnly(file, encoding="latin1").load()
        return {_text(key): value for key, value in content.items()}


def _check_memo(file: BinaryIO) -> None:
    """Refuse lengths beyond the end of the file, and places in the memo, for which the unpickler would fill memory."""
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > number:
            raise pickle.UnpicklingError(f"it has place {argument:,} in a memo of at most {number:,}")


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


# ---- An .npz of compressed pictures: blob (bytes), offsets and labels a split ----


def _npz_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            return "packed npz" if "train_blob.npy" in archive.namelist() else "npz"
    except Exception:  # of a damaged zip
        return "npz"  # its reader says what is wrong


def _read_packed_npz(path: Path) -> tuple[Splits, list[str]]:
    """Every entry of a blob, cut at the offsets, is one lossless WebP: a column of pictures, one below the other."""
    needed = [f"{split}_{part}" for split in ("train", "test") for part in ("blob", "offsets", "labels")]
    with as_plugin_error(f"{path} cannot be read as .npz ({{}})."):
        with zipfile.ZipFile(path) as archive:
            large = [info.filename for info in archive.infolist() if info.file_size > _LARGEST_FILE]
        if large:
            raise ValueError(f"{large[0]} is larger than {_LARGEST_FILE >> 20} MiB")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in [*needed, "class_names"] if name in file.files}
    if missing := [name for name in needed if name not in arrays]:
        raise PluginError(f"{path} lacks {', '.join(missing)}; expected blob, offsets and labels of train and test.")
    splits = {}
    for split in ("train", "test"):
        labels = arrays[f"{split}_labels"]
        columns = _cut(arrays[f"{split}_blob"], arrays[f"{split}_offsets"], f"{path}, {split}")
        splits[split] = (_pictures(columns, labels.size, ("WEBP",), f"{path}, {split}"), labels)
    names = arrays.get("class_names", np.array([]))
    return splits, [str(name) for name in np.atleast_1d(names)]


def _cut(blob: np.ndarray, offsets: np.ndarray, source: str) -> Iterable[bytes]:
    plain = blob.dtype == np.uint8 and blob.ndim == 1 and np.issubdtype(offsets.dtype, np.integer) and offsets.ndim == 1
    if not plain or len(offsets) < 2 or offsets[0] < 0 or offsets[-1] > len(blob) or (offsets[1:] < offsets[:-1]).any():
        raise PluginError(
            f"{source}: the offsets ({offsets.dtype} {offsets.shape}) do not cut the blob ({blob.dtype} {blob.shape}); "
            "expected them to rise from 0 to its length."
        )
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        yield blob[start:end].tobytes()


def _pictures(encoded: Iterable[bytes], count: int, formats: tuple[str, ...], source: str) -> np.ndarray:
    """`count` images from encoded pictures, each of them 32 pixels wide and one or more images high."""
    if not 1 <= count <= MOST:
        raise PluginError(f"{source}: {count:,} labels; expected 1 to {MOST:,}.")
    images, done = np.empty((count, SIDE, SIDE, 3), np.uint8), 0
    for number, content in enumerate(encoded):
        with (
            as_plugin_error(
                f"{source}: picture {number} cannot be used ({{}}); expected {' or '.join(formats)}, {SIDE} pixels "
                f"wide and a multiple of {SIDE} high."
            ),
            Image.open(io.BytesIO(content), formats=formats) as picture,
        ):
            width, height = picture.size
            more, rest = divmod(height, SIDE)
            if width != SIDE or rest or done + more > count:  # known before it is decoded
                raise ValueError(f"{width}x{height} pixels after {done} of {count} images")
            images[done : done + more] = np.asarray(picture.convert("RGB")).reshape(more, SIDE, SIDE, 3)
        done += more
    if done != count:
        raise PluginError(f"{source}: {done} images, but {count} labels; expected as many.")
    return images


# ---- Hugging Face's parquet: a column img of PNGs, a column fine_label ----


def _parquet_files(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}*.parquet")) or sorted(folder.glob(f"{split}/*.parquet"))


def _read_parquet(folder: Path) -> tuple[Splits, list[str]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise PluginError('Parquet files are read by pyarrow: pip install "atsc_plugin[parquet]".') from error
    splits, names = {}, []
    for split in ("train", "test"):
        paths = _parquet_files(folder, split)
        if not paths:
            raise PluginError(f"{folder} has no {split}*.parquet; expected the files of train and of test.")
        with as_plugin_error(f"{folder}, {split}: not the parquet of CIFAR-100 ({{}})."):
            files = [parquet.ParquetFile(path) for path in paths]
            count = sum(file.metadata.num_rows for file in files)
            image, label = _columns(files[0].schema_arrow.names, paths[0])
            names = names or _names_of(files[0].schema_arrow.metadata, label)
            labels: list[int] = []
            images = _pictures(_cells(files, image, label, labels), count, ("PNG",), f"{folder}, {split}")
        splits[split] = (images, np.array(labels))
    return splits, names


def _columns(names: list[str], path: Path) -> tuple[str, str]:
    image = next((name for name in ("img", "image") if name in names), None)
    label = next((name for name in ("fine_label", "label") if name in names), None)
    if image is None or label is None:
        raise PluginError(f"{path} has the columns {', '.join(names[:8])}; expected img and fine_label.")
    return image, label


def _cells(files: list, image: str, label: str, labels: list[int]) -> Iterable[bytes]:
    """The encoded pictures of the rows, one by one; their labels are appended to `labels`."""
    for file in files:
        for batch in file.iter_batches(1000, columns=[image, label]):
            labels += batch.column(label).to_pylist()
            for cell in batch.column(image).to_pylist():
                yield cell["bytes"] if isinstance(cell, dict) else cell


def _names_of(metadata: dict[bytes, bytes] | None, label: str) -> list[str]:
    """The class names that the `datasets` library writes into a file; empty where it did not."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
