"""`bench data` and `bench epoch`: the device loader against torchvision's, and the trainer against its bare step."""

import json
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from atsc_plugin.benchmark.arms import Prepared, configuration, distiller_of
from atsc_plugin.benchmark.timing import interleaved, milliseconds, summary, wait
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.engine.placement import inputs_of
from atsc_plugin.engine.trainer import PluginTrainer

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # CIFAR-100's
QUIET = ["ATSC.MONITOR.IMAGES", 1, "ATSC.GUARD", "none"]  # networks of random weights have nothing to lose


def random_images(count, side=32):
    """CIFAR-shaped noise: uint8 images N x 32 x 32 x 3 and labels."""
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, side, side, 3), dtype=np.uint8), draw.integers(0, 100, count)


class HostImages(Dataset):
    """Images in memory through mdistiller's CIFAR transforms, one by one, as torchvision's CIFAR100 gives them."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index]), index


def device_loader(count, batch, device, seed=1):
    """Our loader over random CIFAR-shaped images, augmented as CIFAR-100 is."""
    images, labels = random_images(count)
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
    return DeviceLoader(*tensors, batch, MEAN, STD, device, seed=seed, padding=4, flip=True)


def bench_data(count, batch, device, rounds, workers=2):
    """Rows: images a second of whole passes, batches placed on the device; both loaders in turns in one process."""
    theirs = DataLoader(
        HostImages(*random_images(count)), batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    loaders = {"device loader": device_loader(count, batch, device), f"torchvision, {workers} workers": theirs}

    def whole_pass(loader):
        def run():
            for pulled in loader:
                inputs_of(pulled, device)

        return run

    times = interleaved({name: whole_pass(loader) for name, loader in loaders.items()}, device, rounds)
    rows = []
    for name, values in times.items():
        own = summary(values)
        rows.append(
            {
                "arm": name,
                "batch": batch,
                **own,
                "images_per_second": 1000 * count / own["ms"],
                "ms_a_batch": own["ms"] * batch / count,
            }
        )
    ours, other = rows
    return rows, {"device loader over torchvision's": ours["images_per_second"] / other["images_per_second"]}


class ThrownAway(PluginTrainer):
    """A trainer whose run nobody keeps: after a signal only the whole measurement can be repeated."""

    @staticmethod
    def _continuation():
        return shlex.join([sys.executable, *sys.argv])


def bench_epoch(arm, count, device, rounds):
    """Rows: a pass of the trainer over `count` images, and the bare step as often; overhead and data wait as shares."""
    steps = -(-count // arm.batch)
    bare, passes, waits = Prepared(arm, device), [], []

    def trained():
        with tempfile.TemporaryDirectory() as folder:
            cfg = configuration(arm, "SOLVER.EPOCHS", 1, "LOG.PREFIX", folder, *QUIET)
            few = device_loader(arm.batch, arm.batch, device, seed=None)
            train = device_loader(count, arm.batch, device)
            trainer = ThrownAway("bench", distiller_of(cfg, device), train, few, cfg, folder=Path(folder) / "run")
            trainer.fit()
            wait(device)
            return json.loads((trainer.folder / "log.jsonl").read_text().splitlines()[-1])

    bare()
    bares = []
    for _ in range(rounds):
        bares.append(milliseconds(bare, device, steps) * steps)
        line = trained()
        passes.append(1000 * line["seconds"])
        waits.append(line["data_seconds"] / line["seconds"])
    own, own_bare = summary(sorted(passes)), summary(sorted(bares))
    rows = [
        {"arm": f"trainer, {arm.name}", "batch": arm.batch, **own, "images_per_second": 1000 * count / own["ms"]},
        {"arm": "bare step", "batch": arm.batch, **own_bare, "images_per_second": 1000 * count / own_bare["ms"]},
    ]
    shares = {"trainer's overhead": own["ms"] / own_bare["ms"] - 1, "data wait": sorted(waits)[len(waits) // 2]}
    return rows, {**shares, "seconds for 50,000 images": own["ms"] / 1000 * 50000 / count}
