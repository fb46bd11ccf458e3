"""`bench loader`, `bench files` and `bench epoch`: our data paths against the host's, the trainer against its step."""

import itertools
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from atsc_plugin import host
from atsc_plugin.bench.steps import CLASSES, Arm, PreparedStep, configuration, distiller_of
from atsc_plugin.bench.timing import interleaved, milliseconds, row
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.data.worker_loader import cropped_as_tensors
from atsc_plugin.engine.batches import inputs_of

CIFAR100, IMAGENET = (transforms.Normalize(*host.NORMALISATION[name]) for name in ("cifar100", "imagenet"))
PHOTO_SIZE, JPEG_QUALITY = (500, 375), 92  # a usual ImageNet file: about 100 kB


class HostImages(Dataset):
    """CIFAR-shaped noise in memory, each image through mdistiller's CIFAR transforms as torchvision's CIFAR100 does."""

    def __init__(self, count: int):
        draw = np.random.default_rng(0)
        self.images = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.labels = draw.integers(0, CLASSES, count)
        crop_and_flip = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*crop_and_flip, transforms.ToTensor(), CIFAR100])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index]), index


def device_loader(count: int, batch: int, device: torch.device, seed: int | None = 1) -> DeviceLoader:
    """Our loader over the same images, augmented in the same way."""
    data = HostImages(count)
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous()
    statistics = CIFAR100.mean, CIFAR100.std
    return DeviceLoader(images, torch.from_numpy(data.labels), batch, *statistics, device, seed, padding=4, flip=True)


class NoiseLoaders:
    """What build.Loaders is to a method that trains something first: all of it on the images of one loader of ours."""

    def __init__(self, loader: DeviceLoader) -> None:
        facts = {"name": "noise", "identity": "noise", "mean": [0.5] * 3, "std": [0.25] * 3, "classes": CLASSES}
        self.data = SimpleNamespace(**facts, image_size=32, train_images=len(loader.labels), train=loader, val=None)

    def __call__(self, batch_size: int, seed: int) -> SimpleNamespace:
        return self.data


def bench_loader(count: int, batch: int, device: torch.device, rounds: int):
    """(rows, ratio): whole passes with the batches placed on the device, by both loaders in turns."""
    theirs = DataLoader(HostImages(count), batch, shuffle=True, num_workers=2, persistent_workers=True)

    def whole_pass(loader):
        for batch in loader:
            inputs_of(batch, device)

    loaders = {"device loader": device_loader(count, batch, device), "torchvision, 2 workers": theirs}
    passes = {name: lambda loader=loader: whole_pass(loader) for name, loader in loaders.items()}
    rows = [row(name, times, count) for name, times in interleaved(passes, device, rounds).items()]
    rows = [{**own, "batch": batch, "ms_a_batch": own["ms"] * batch / count} for own in rows]
    return rows, {"device loader over torchvision's": rows[1]["ms"] / rows[0]["ms"]}


def write_photos(folder: Path, count: int) -> None:
    """`count` JPEG files of ImageNet's kind, blobs with some noise, in one class folder."""
    draw = np.random.default_rng(0)
    (folder / "class").mkdir()
    for number in range(count):
        blobs = Image.fromarray(draw.integers(0, 256, (38, 50, 3), dtype=np.uint8)).resize(PHOTO_SIZE, Image.BICUBIC)
        noisy = (np.asarray(blobs) + draw.normal(0, 4, (*PHOTO_SIZE[::-1], 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "class" / f"{number}.jpg", quality=JPEG_QUALITY)


def bench_files(count: int, device: torch.device, rounds: int):
    """(rows, ratio): `count` files read, decoded and augmented by one worker, with the host's transforms and ours."""
    crop_and_flip = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a DataLoader's worker
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder), count)
            theirs = ImageFolder(folder, transforms.Compose([*crop_and_flip, transforms.ToTensor(), IMAGENET]))
            sets = {"decoded to tensors": cropped_as_tensors(theirs), "the host's transforms": theirs}
            passes = {name: lambda files=files: [files[i] for i in range(count)] for name, files in sets.items()}
            rows = [row(name, times, count) for name, times in interleaved(passes, device, rounds).items()]
    finally:
        torch.set_num_threads(threads)
    return rows, {"decoded to tensors over the host's": rows[1]["ms"] / rows[0]["ms"]}


def bench_epoch(arm: Arm, count: int, device: torch.device, rounds: int):
    """(rows, shares): the trainer's pass over `count` images, and as many bare steps; overhead and data wait."""
    steps = -(-count // arm.batch)
    bare, numbers, bares, lines = PreparedStep(arm, device), itertools.count(), [], []
    for _ in range(rounds):
        bares.append(milliseconds(lambda: bare.one(next(numbers)), device, steps) * steps)
        lines.append(trained_epoch(arm, count, device))
    epochs = sorted(1000 * line["seconds"] for line in lines)
    rows = [row(f"trainer, {arm.name}", epochs, count), row("bare step", sorted(bares), count)]
    waits = sorted(line["data_seconds"] / line["seconds"] for line in lines)
    shares = {"trainer's overhead": rows[0]["ms"] / rows[1]["ms"] - 1, "data wait": waits[rounds // 2]}
    return rows, {**shares, "seconds for 50,000 images": rows[0]["ms"] / 1000 * 50000 / count}


def trained_epoch(arm, count, device):
    """The log's line of one epoch by our trainer, built with the five arguments of mdistiller's contract."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = configuration(arm, "SOLVER.EPOCHS", 1, "LOG.PREFIX", folder, "ATSC.GUARD", "none")
        train, val = device_loader(count, arm.batch, device), device_loader(arm.batch, arm.batch, device, seed=None)
        host.trainer_dict["plugin"]("bench", distiller_of(cfg, device), train, val, cfg).train()
        (log,) = Path(folder).rglob("log.jsonl")
        return json.loads(log.read_text().splitlines()[-1])
