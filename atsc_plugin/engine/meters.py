"""Running sums that live on the device, and what is read from them now and then."""

import math
import resource

import torch

from atsc_plugin.engine import distributed
from atsc_plugin.engine.evaluate import correct

GRADIENT = "the gradient"


class NotFinite(ArithmeticError):
    """A loss term, a gradient or a weight is NaN or infinite; the message names it."""


class Meters:
    """Sums over an epoch; adding costs no synchronisation with the device, reading does."""

    def __init__(self, device):
        self.losses, self.bad_since = {}, {}
        self.steps = self.skipped = 0
        self.hits = torch.zeros((), dtype=torch.int64, device=device)
        self.images, self.data_seconds = 0, 0.0

    def add(self, losses, logits, target, finite_gradients=None):
        count = len(target)
        self.steps += 1
        for name, term in losses.items():
            term = term.detach()
            self.losses[name] = self.losses.get(name, 0) + term.double() * count
            self._watch(name, torch.isfinite(term))
        if finite_gradients is not None:
            self._watch(GRADIENT, finite_gradients)
        self.hits += correct(logits, target, 1)
        self.images += count

    def skip(self):
        """A step that was left out: it counts as made, and in nothing else."""
        self.steps += 1
        self.skipped += 1

    def add_up(self):
        """Put the sums of all ranks into each of them: counts are summed, never averaged."""
        if distributed.world() == 1:
            return
        names = list(self.losses)
        sums = [*(self.losses[name] for name in names), self.hits.double(), self.hits.new_tensor(self.images).double()]
        *losses, hits, images = distributed.total(torch.stack(sums)).unbind()
        self.losses = dict(zip(names, losses, strict=True))
        self.hits, self.images = hits.round().to(self.hits.dtype), int(images)
        watched = list(self.bad_since)
        if not watched:  # every step was left out
            return
        since = distributed.total(torch.stack([self.bad_since[name].double() for name in watched]), least=True)
        self.bad_since = dict(zip(watched, since.unbind(), strict=True))

    def _watch(self, name, finite):
        bad = torch.where(finite, math.inf, float(self.steps))
        self.bad_since[name] = torch.minimum(self.bad_since.get(name, bad), bad)

    def state(self):
        """All sums, on the CPU, for a checkpoint inside the epoch."""
        return {name: _moved(value, "cpu") for name, value in vars(self).items()}

    def load_state(self, state):
        """Take up the sums of `state`, on this machine's device."""
        device = self.hits.device
        for name, value in state.items():
            setattr(self, name, _moved(value, device))

    def load_more(self, state):
        """Take up another rank's sums as well."""
        more = Meters(self.hits.device)
        more.load_state(state)
        for name, value in more.losses.items():
            self.losses[name] = self.losses[name] + value
        for name, since in more.bad_since.items():
            self.bad_since[name] = torch.minimum(self.bad_since[name], since)
        self.hits, self.images = self.hits + more.hits, self.images + more.images

    def forget(self):
        """Count from zero what was summed so far, but for the number of steps."""
        for sums in (self.losses, self.bad_since):
            for name, value in sums.items():
                sums[name] = torch.full_like(value, math.inf) if sums is self.bad_since else torch.zeros_like(value)
        self.hits, self.images = torch.zeros_like(self.hits), 0

    def check(self):
        """NotFinite names what went bad first: soon all of it is. Waits for the device once."""
        if not self.bad_since:
            return
        since = dict(zip(self.bad_since, torch.stack(list(self.bad_since.values())).tolist(), strict=True))
        name = min(since, key=since.get)
        if since[name] == math.inf:
            return
        if name == GRADIENT:
            raise NotFinite(f"the gradient is not finite since step {since[name]:.0f}, though every loss term was")
        raise NotFinite(f"loss term '{name}' is {self.losses[name].item()} since step {since[name]:.0f}")

    def means(self):
        """Mean of each loss term over the images so far."""
        self.check()
        return {name: (total / self.images).item() for name, total in self.losses.items()}

    def postfix(self):
        return {name: f"{mean:.3f}" for name, mean in self.means().items()} | {"top1": f"{self._top1():.1f}"}

    def summary(self):
        """The epoch's figures for the log."""
        figures = {**self.means(), "train_top1": self._top1(), "data_seconds": self.data_seconds}
        return {**figures, "skipped_steps": self.skipped, "images": self.images}

    def _top1(self):
        return 100 * self.hits.item() / max(self.images, 1)


def _moved(value, device):
    if isinstance(value, dict):
        return {name: _moved(entry, device) for name, entry in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value


def peak_memory_mb(device):
    """Peak memory so far: of the device for CUDA, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
