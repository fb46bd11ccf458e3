"""`bench memory`: the peak memory of loading a folder of photographs, few and ten times as many, streamed and decoded.

Memory is no timing: it may be measured beside other jobs.
"""

import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import atsc_plugin
from atsc_plugin import build, host

SIDES = 256, 400  # pixels of a photograph's sides
KEYS = {
    "streamed": ["DATASET.CROP", "resized", "DATASET.AUGMENT", "rand-2-9", "DATASET.ERASING", 0.25],
    "decoded": ["DATASET.LOADER", "device"],
}


def write_folder(root: Path, images: int) -> None:
    """`images` JPEGs for training and a tenth of them for the test, in two classes."""
    draw = np.random.default_rng(0)
    for split, count in (("train", images), ("test", images // 10)):
        for number in range(count):
            folder = root / split / f"class_{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            blobs = Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8))
            blobs.resize(draw.integers(SIDES[0], SIDES[1] + 1, 2).tolist()).save(folder / f"{number}.jpg")


def one_epoch(root: str, keys: list) -> dict[str, float]:
    """MB at most of this process and of its largest worker: the data made ready, an epoch, an evaluation."""
    atsc_plugin.register()
    cfg = host.CFG.clone()
    cfg.defrost()
    cfg.merge_from_list(["DATASET.TYPE", "folder", "DATASET.ROOT", root, "DATASET.IMAGE_SIZE", 224, *keys])
    cfg.merge_from_list(["SOLVER.BATCH_SIZE", 64, "DATASET.NUM_WORKERS", 2])
    data = build.data_of(cfg, torch.device("cpu"))
    for loader in (data.train, data.test):
        for _ in loader:
            pass
    del data, loader  # the workers end, and count
    who = {"main_mb": resource.RUSAGE_SELF, "largest_worker_mb": resource.RUSAGE_CHILDREN}
    return {name: resource.getrusage(each).ru_maxrss / 2**10 for name, each in who.items()}


def bench_memory(images: int) -> tuple[list[dict], dict[str, float]]:
    """(rows, growth): a tenth of the images and all of them, in both ways, each in a process of its own."""
    rows, growth = [], {}
    with tempfile.TemporaryDirectory() as folder:
        counts = [images // 10, images]
        for count in counts:
            write_folder(Path(folder) / str(count), count)
        for name, keys in KEYS.items():
            for count in counts:
                with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                    found = alone.submit(one_epoch, f"{folder}/{count}", keys).result()
                rows.append({"arm": f"{name}, {count} images", **found})
            growth[f"{name}: MB more with {images} than with {images // 10}"] = (
                rows[-1]["main_mb"] - rows[-2]["main_mb"]
            )
    return rows, growth
