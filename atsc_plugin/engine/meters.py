"""Running sums that live on the device, and what is read from them now and then."""

import math
import resource

import torch

from atsc_plugin.engine import distributed
from atsc_plugin.engine.evaluate import correct
from atsc_plugin.losses import hard_labels

GRADIENT = "the gradient"


class NotFinite(ArithmeticError):
    """A loss term, a gradient or a weight is NaN or infinite; the message names it."""


class Meters:
    """Sums over an epoch; adding costs no synchronisation with the device and few operations, reading does."""

    def __init__(self, device):
        self.names, self.losses = [], torch.zeros(0, dtype=torch.float64, device=device)
        self.images_of = {}  # how many images each term was computed on: some steps have no such term
        self.bad_since = torch.full((1,), math.inf, device=device)  # the first bad step of each loss, of the gradient
        self.steps = self.skipped = 0
        self.hits = torch.zeros((), dtype=torch.int64, device=device)
        self.images, self.data_seconds = 0, 0.0

    def add(self, losses, logits, target, finite_gradients=None):
        count = len(target)
        self.steps += 1
        values = torch.stack(self._in_order(losses))
        self.images_of = self.images_of | {name: self.images_of.get(name, 0) + count for name in losses}
        self.losses += values.double() * count
        fine = values.abs() < math.inf  # NaN is not
        if finite_gradients is not None:
            fine = torch.cat([fine, finite_gradients.view(1)])
        bad = self.bad_since[: len(fine)]
        bad.copy_(torch.where(fine, bad, bad.clamp(max=self.steps)))
        self.hits += correct(logits, hard_labels(target), 1)
        self.images += count

    def _in_order(self, losses):
        """The terms in the order of `names`; terms that come later are put behind, and those that go are zero."""
        if new := [name for name in losses if name not in self.names]:
            self.names += new
            self.losses = torch.cat([self.losses, self.losses.new_zeros(len(new))])
            *known, gradient = self.bad_since.split(1)
            self.bad_since = torch.cat([*known, self.bad_since.new_full((len(new),), math.inf), gradient])
        terms = {name: term.detach() for name, term in losses.items()}
        return [terms[name] if name in terms else self.losses.new_zeros(()) for name in self.names]

    def skip(self):
        """A step that was left out: it counts as made, and in nothing else."""
        self.steps += 1
        self.skipped += 1

    def add_up(self):
        """Put the sums of all ranks into each of them: counts are summed, never averaged."""
        if distributed.world() == 1:
            return
        counts = [self.images, *(self.images_of[name] for name in self.names)]
        sums = torch.cat([self.losses, self.losses.new_tensor(counts), self.hits.double().view(1)])
        self.losses, counts, hits = distributed.total(sums).split([len(self.names), len(counts), 1])
        self.hits = hits.round().to(self.hits.dtype).view(())
        self.images, *each = map(int, counts.tolist())
        self.images_of = dict(zip(self.names, each, strict=True))
        distributed.total(self.bad_since, least=True)

    def state(self):
        """All sums, on the CPU, for a checkpoint inside the epoch; by name, as every edition wrote them."""
        own = {name: value for name, value in vars(self).items() if name != "names"}
        own["losses"] = dict(zip(self.names, self.losses.cpu().unbind(), strict=True))
        own["bad_since"] = dict(zip([*self.names, GRADIENT], self.bad_since.cpu().unbind(), strict=True))
        return own | {"hits": self.hits.cpu()}

    def load_state(self, state):
        """Take up the sums of `state`, on this machine's device."""
        device = self.hits.device
        for name, value in state.items():
            setattr(self, name, value)
        self.names = list(state["losses"])
        self.images_of = state.get("images_of", dict.fromkeys(self.names, self.images))  # older checkpoints have none
        since = [state["bad_since"].get(name, torch.tensor(math.inf)) for name in [*self.names, GRADIENT]]
        self.losses = torch.tensor([float(value) for value in state["losses"].values()], dtype=torch.float64).to(device)
        self.bad_since = torch.tensor([float(value) for value in since]).to(device)
        self.hits = state["hits"].to(device)

    def load_more(self, state):
        """Take up another rank's sums as well."""
        more = Meters(self.hits.device)
        more.load_state(state)
        self.losses = self.losses + more.losses
        self.bad_since = torch.minimum(self.bad_since, more.bad_since)
        self.hits, self.images = self.hits + more.hits, self.images + more.images
        self.images_of = {name: count + more.images_of[name] for name, count in self.images_of.items()}

    def forget(self):
        """Count from zero what was summed so far, but for the number of steps."""
        self.losses = torch.zeros_like(self.losses)
        self.bad_since = torch.full_like(self.bad_since, math.inf)
        self.hits, self.images = torch.zeros_like(self.hits), 0
        self.images_of = dict.fromkeys(self.names, 0)

    def check(self):
        """NotFinite names what went bad first: soon all of it is. Waits for the device once."""
        since = dict(zip([*self.names, GRADIENT], self.bad_since.tolist(), strict=True))
        name = min(since, key=since.get)
        if since[name] == math.inf:
            return
        if name == GRADIENT:
            raise NotFinite(f"the gradient is not finite since step {since[name]:.0f}, though every loss term was")
        total = self.losses[self.names.index(name)].item()
        raise NotFinite(f"loss term '{name}' is {total} since step {since[name]:.0f}")

    def means(self):
        """Mean of each loss term over the images so far that it was computed on."""
        self.check()
        sums = zip(self.names, self.losses.tolist(), strict=True)
        return {name: total / max(self.images_of[name], 1) for name, total in sums}

    def postfix(self):
        return {name: f"{mean:.3f}" for name, mean in self.means().items()} | {"top1": f"{self._top1():.1f}"}

    def summary(self):
        """The epoch's figures for the log."""
        figures = {**self.means(), "train_top1": self._top1(), "data_seconds": self.data_seconds}
        return {**figures, "skipped_steps": self.skipped, "images": self.images}

    def _top1(self):
        return 100 * self.hits.item() / max(self.images, 1)


def peak_memory_mb(device):
    """Peak memory so far: of the device for CUDA, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
