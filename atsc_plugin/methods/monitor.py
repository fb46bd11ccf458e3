"""What a learning teacher did in an epoch, and whether it is collapsing.

Measured on a fixed set of evaluation images against the teacher as it was (theta_0): its accuracy, how often it still
predicts what theta_0 predicts, the size of its features and how far they moved. Accuracy alone misses a shrinking map.
A map that lost three tenths of its size is a warning whatever moves the teacher.
A trend of agreement or size is a warning only where the feature loss moves the teacher: a teacher trained on its own
task is expected to move. A slow loss of accuracy is one everywhere.
"""

from __future__ import annotations

import torch
from torch import nn

from atsc_plugin.collapse import accuracy_share, collapsed
from atsc_plugin.contract import EpochReport, Network
from atsc_plugin.data.sample import sample
from atsc_plugin.engine.batches import place
from atsc_plugin.engine.distributed import on_the_first, sum_of
from atsc_plugin.engine.evaluate import evaluate, in_eval_mode
from atsc_plugin.losses import hard_labels, pool
from atsc_plugin.networks.drift import relative_motion
from atsc_plugin.networks.maps import evaluating

IMAGES = 2000  # evaluation images on which a teacher is measured
TREND_EPOCHS = 3  # falls in a row that make a trend
TREND_FALL = 0.1  # and how much must be lost since the last rise: batch statistics at the full rate jitter by .07
SHRUNK = 0.7  # of the scale at the start; no recorded teacher that kept its accuracy had less than .79
ACCURACY_LOST = 0.1  # share of theta_0's top-1; see `slow_fall`


class Hits(nn.Module):
    """Counts correct predictions on training batches, on the device; no checkpoint has these buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("hits", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)

    def add(self, logits, target) -> None:
        self.hits += (logits.argmax(1) == hard_labels(target)).sum()
        self.seen += len(target)

    def top1(self) -> float | None:
        """The percentage over all ranks since the last call; None where nothing was counted."""
        hits, seen = sum_of(self.hits, self.seen)
        self._set(0, 0)
        return 100 * hits / seen if seen else None

    def state(self) -> dict:
        """The counts of all ranks together; load_state hands them to the first."""
        hits, seen = sum_of(self.hits, self.seen)
        return {"hits": hits, "seen": seen}

    def load_state(self, state: dict) -> None:
        self._set(*on_the_first(state["hits"], state["seen"]))

    def _set(self, hits, seen) -> None:
        self.hits.fill_(hits)
        self.seen.fill_(seen)


class Extended(nn.Module):
    """A network and a part that learns beside it, measured as one network: image -> part(network, image)."""

    def __init__(self, network: nn.Module, part: nn.Module) -> None:
        super().__init__()
        self.network, self.part = network, part

    def forward(self, image):
        return self.part(self.network, image)


def top1_of(network: nn.Module, loader, label: str) -> float:
    """Top-1 of a network in eval mode, in percent."""
    with evaluating(network):
        return evaluate(in_eval_mode(network), loader, next(network.parameters()).device, label)["top1"]


def moving_top1(networks: list[Network], loader) -> dict[str, float]:
    """Figures of an epoch: the top-1 of the networks beside the student that move."""
    moving = [network for network in networks if network.moves]
    return {f"{net.name.replace('.', '_')}_top1": top1_of(net.module, loader, net.name) for net in moving}


def feature_figures(present, start):
    """scale = std(F_t) / std(F_t0); motion = ||F_t - F_t0|| / ||F_t0||; var = variance of F_t0. Tensors, no wait."""
    return {
        "feature_scale": present.std() / start.std(),
        "feature_motion": (present - start).norm() / start.norm(),
        "start_variance": start.var(),
    }


def fall(values: list[float]) -> tuple[int, float]:
    """(how many steps the last values fell in a row, how much they lost in them)"""
    first = last = len(values) - 1
    while first > 0 and values[first - 1] > values[first]:
        first -= 1
    return last - first, values[first] - values[last]


def slow_fall(shares: list[float]) -> bool:
    """Whether a teacher slowly loses its accuracy; `shares` are its top-1 over theta_0's, 1 and then epoch by epoch.

    In the third epoch or later it is lower than ever before, and more than a tenth of theta_0's top-1 is lost in all,
    in whatever steps. A teacher that learns its task at the full rate may fall so and come back when the rate drops: of
    more than 250 recorded teachers (docs/results) two were warned of and kept their accuracy in the end. On 2,000
    images chance moves top-1 by about 1 %.
    """
    *before, now = shares
    return len(before) >= TREND_EPOCHS and now < min(before) and now < 1 - ACCURACY_LOST


def together(reports: list[EpochReport]) -> EpochReport:
    """One report of all teachers: the figures of several are called t1_teacher_top1, t2_teacher_top1, ..."""
    if len(reports) == 1:
        return reports[0]
    figures = {
        f"t{number}_{name}": value for number, report in enumerate(reports, 1) for name, value in report.figures.items()
    }
    warning = " ".join(report.warning for report in reports if report.warning) or None
    return EpochReport(figures, warning, any(report.stop for report in reports))


class TeacherMonitor(Hits):
    """The epoch's figures and the guard for one teacher."""

    def __init__(self, title: str, *, guard: str, advice: str, watch_trend: bool, kappa_scale: float) -> None:
        super().__init__()
        self.title, self.guard, self.advice = title, guard, advice
        self.watch_trend, self.kappa_scale = watch_trend, kappa_scale  # kappa = DRIFT / (FEAT * var F_t(theta_0))
        # theta_0 against itself, then every epoch
        self.history = [{"teacher_agreement": 1.0, "feature_scale": 1.0, "accuracy_share": 1.0}]

    def after_epoch(self, loader, read, classifier, start) -> EpochReport:
        """`read` gives (logits, map) of the teacher in eval mode, `start` is its theta_0."""
        figures = self._measure(loader, read, classifier, start)
        if (top1 := self.top1()) is not None:
            figures["teacher_train_top1"] = top1
        seen = {key: figures[key] for key in ("teacher_agreement", "feature_scale")}
        self.history.append({**seen, "accuracy_share": accuracy_share(figures)})
        warning = None if self.guard == "none" else self._verdict(figures)
        return EpochReport(figures, warning, bool(warning) and self.guard == "stop")

    @torch.no_grad()
    def _measure(self, loader, read, classifier, start) -> dict[str, float]:
        """Feature figures are means over images. The device is waited for once a batch."""
        teacher, sums, count = read.network, {}, 0
        like = next(teacher.parameters())
        for batch in sample(loader, IMAGES):
            image = place(batch[0][: IMAGES - count].to(like.dtype), like.device)
            target = place(batch[1][: IMAGES - count], like.device)
            present, predicted = self._look(read, classifier, image)
            with start.in_place_of(teacher):
                before, first = self._look(read, classifier, image)
            figures = {
                **feature_figures(present, before),
                "teacher_top1": 100 * (predicted == target).double().mean(),
                "start_top1": 100 * (first == target).double().mean(),
                "teacher_agreement": (predicted == first).double().mean(),
            }
            values = torch.stack([value.double() for value in figures.values()]).tolist()
            for name, value in zip(figures, values, strict=True):
                sums[name] = sums.get(name, 0.0) + value * len(target)
            count += len(target)
            if count >= IMAGES:
                break
        figures = {name: total / count for name, total in sums.items()}
        figures["kappa"] = self.kappa_scale / figures.pop("start_variance")
        return figures | self._drift(teacher, start)

    @staticmethod
    def _look(read, classifier, image):
        """(map, predicted classes)"""
        _, feature_map = read(image)
        return feature_map, classifier(pool(feature_map)).argmax(1)

    @staticmethod
    def _drift(teacher, start) -> dict[str, float]:
        """Relative motion of the weights: whole, by kind (kernels; BN scales, shifts and biases), by stage."""
        groups = {"drift": [], "drift_kernels": [], "drift_vectors": []}
        for name, weight in teacher.named_parameters():
            groups["drift"].append(name)
            groups["drift_kernels" if weight.dim() > 1 else "drift_vectors"].append(name)
            stage = name.removeprefix("network.").partition(".")[0]  # of a network in an adapter
            groups.setdefault(f"drift_{stage}", []).append(name)
        return relative_motion(teacher, start, {group: names for group, names in groups.items() if names})

    # ---- the guard ----

    def _verdict(self, figures) -> str | None:
        """None, or what happened with its figures and what to change."""
        message = (
            f"teacher top-1 {figures['teacher_top1']:.1f} (began at {figures['start_top1']:.1f}), agreement with its "
            f"start {figures['teacher_agreement']:.2f}, feature scale {figures['feature_scale']:.2f}, "
            f"kappa {figures['kappa']:.3g}"
        )
        if collapsed(figures):
            return f"{self.title} has collapsed: {message}. {self.advice}"
        shares = [entry["accuracy_share"] for entry in self.history if "accuracy_share" in entry]  # not in older runs
        if slow_fall(shares):
            lost = f"{1 - shares[-1]:.0%} lost, its lowest so far"
            return f"{self.title} is losing its accuracy ({lost}): {message}. {self.advice}"
        if figures["feature_scale"] < SHRUNK:
            return f"{self.title}'s map is shrinking: {message}. {self.advice}"
        for key in ("feature_scale", "teacher_agreement") if self.watch_trend else ():
            falls, lost = fall([entry[key] for entry in self.history])
            if falls >= TREND_EPOCHS and lost > TREND_FALL:
                return f"{self.title} is drifting away ({key} fell {falls} epochs in a row): {message}. {self.advice}"
        return None

    def state(self):
        return {"history": self.history, **super().state()}

    def load_state(self, state):
        self.history = list(state["history"])
        super().load_state(state)
