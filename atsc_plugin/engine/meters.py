"""Running sums that live on the device, and what is read from them now and then."""

import math
import resource

import torch
from tqdm import tqdm

from atsc_plugin.engine.evaluate import correct


class NotFinite(ArithmeticError):
    """A loss part is NaN or infinite; the message names it."""


class Meters:
    """Sums over an epoch; adding costs no synchronisation with the device, reading does."""

    def __init__(self, device):
        self.losses, self.bad_since = {}, {}
        self.steps = 0
        self.hits = torch.zeros((), dtype=torch.int64, device=device)
        self.images, self.data_seconds = 0, 0.0

    def add(self, losses, logits, target):
        count = len(target)
        self.steps += 1
        for name, part in losses.items():
            part = part.detach()
            self.losses[name] = self.losses.get(name, 0) + part.double() * count
            bad = torch.where(torch.isfinite(part), math.inf, self.steps)
            self.bad_since[name] = torch.minimum(self.bad_since.get(name, bad), bad)
        self.hits += correct(logits, target, 1)
        self.images += count

    def means(self):
        """Mean of each loss part; NotFinite names the part that went bad first: soon all of them are."""
        means = {name: (total / self.images).item() for name, total in self.losses.items()}
        bad = {name: self.bad_since[name].item() for name, mean in means.items() if not math.isfinite(mean)}
        if bad:
            name = min(bad, key=bad.get)
            raise NotFinite(f"loss part '{name}' is {means[name]} since step {bad[name]:.0f}")
        return means

    def postfix(self):
        return {name: f"{mean:.3f}" for name, mean in self.means().items()} | {"top1": f"{self._top1():.1f}"}

    def summary(self):
        """The epoch's figures for the log."""
        return {**self.means(), "train_top1": self._top1(), "data_seconds": self.data_seconds, "images": self.images}

    def _top1(self):
        return 100 * self.hits.item() / self.images


def progress(loader, label):
    """A bar on a terminal, nothing in a log file."""
    return tqdm(loader, desc=label, leave=False, disable=None)


def peak_memory_mb(device):
    """Peak memory so far: of the device for CUDA, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
