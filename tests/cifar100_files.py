"""CIFAR-100 of a few random images, written in each container that DATASET.TYPE cifar100 reads."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from atsc_plugin.data.containers import CLASS_NAMES

CONTAINERS = ("pickles", "npz", "packed npz", "class folders", "parquet")


def made(train=12, test=8, classes=(2, 11, 99)):
    """{"train": (images, labels), "test": ...}, class after class as folders have them."""
    draw = np.random.default_rng(0)
    return {
        split: (
            draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
            np.sort(np.array(classes)[np.arange(count) % len(classes)]),
        )
        for split, count in (("train", train), ("test", test))
    }


def write(kind, folder, splits=None, names=CLASS_NAMES):
    """Write the container into `folder`; returns what DATASET.ROOT is to be."""
    splits, folder = splits or made(), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = {
        "pickles": pickles,
        "npz": npz,
        "packed npz": packed_npz,
        "class folders": class_folders,
        "parquet": parquet,
    }[kind]
    return writer(folder, splits, list(names))


def pickles(folder, splits, names, protocol=2):
    inner = folder / "cifar-100-python"
    inner.mkdir()
    for split, (images, labels) in splits.items():
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        content = {"data": rows, "fine_labels": labels.tolist(), "coarse_labels": [0] * len(labels)}
        (inner / split).write_bytes(pickle.dumps(content, protocol=protocol))
    (inner / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=protocol))
    return folder


def python2_pickle(images, labels):
    """The bytes Python 2 wrote: text and pixels are its byte strings, as in the original archive."""
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    number = lambda value: b"J" + int(value).to_bytes(4, "little", signed=True)  # noqa: E731
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN" + number(-1) + number(-1) + b"K\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    pixels = b"T" + rows.size.to_bytes(4, "little") + rows.tobytes()
    array = (
        empty + b"(K\x01(" + number(rows.shape[0]) + number(rows.shape[1]) + b"t" + dtype + b"I00\n" + pixels + b"tb"
    )
    places = b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + b"U\x0bfine_labels" + places + b"u."


def npz(folder, splits, names, **more):
    arrays = {f"{split}_{kind}": array for split in splits for kind, array in zip(("images", "labels"), splits[split])}  # noqa: B905
    path = folder / "cifar100.npz"
    np.savez(path, **{**arrays, "class_names": np.array(names), **more})
    return path


def packed_npz(folder, splits, names, **more):
    arrays = {"class_names": np.array(names)}
    for split, (images, labels) in splits.items():
        columns = [encoded(images[labels == label].reshape(-1, 32, 3), "WEBP") for label in np.unique(labels)]
        arrays[f"{split}_blob"] = np.frombuffer(b"".join(columns), np.uint8)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, columns)])
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    path = folder / "cifar100.npz"
    np.savez(path, **{**arrays, **more})
    return path


def encoded(pixels, kind):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def class_folders(folder, splits, names):
    for split, (images, labels) in splits.items():
        for name in names:
            (folder / split / name).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            (folder / split / names[label] / f"{number:04}.png").write_bytes(encoded(image, "PNG"))
    return folder


def parquet(folder, splits, names):
    import pyarrow
    from pyarrow import parquet as files

    features = {"info": {"features": {"fine_label": {"names": names, "_type": "ClassLabel"}}}}
    for split, (images, labels) in splits.items():
        cells = [{"bytes": encoded(image, "PNG"), "path": None} for image in images]
        table = pyarrow.table({"img": cells, "fine_label": labels, "coarse_label": labels * 0})
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        half = len(labels) // 2
        for number, piece in enumerate((table.slice(0, half), table.slice(half))):
            files.write_table(piece, folder / f"{split}-0000{number}-of-00002.parquet")
    return folder
