"""What the adapting teacher did in an epoch, and whether it is collapsing.

Measured on a fixed set of evaluation images, against the teacher as it was (theta_0): its accuracy, how often it still
predicts what theta_0 predicts, the size of its features and how far they moved. Accuracy alone misses a shrinking map.
A trend is told only where the feature loss pulls the teacher: one that learns its own task alone moves away rightly.
"""

import math

import torch

from atsc_plugin.collapse import collapsed
from atsc_plugin.data.sample import sample
from atsc_plugin.engine.agreement import on_the_first, sum_of
from atsc_plugin.engine.placement import place
from atsc_plugin.networks.drift import relative_motion
from atsc_plugin.networks.maps import pool

TREND_EPOCHS = 3  # falls in a row that make a trend
TREND_FALL = 0.1  # and how much must be lost since the last rise: batch statistics at the full rate jitter by .07
HOLD = "Raise ATSC.DRIFT.WEIGHT, set ATSC.DRIFT.PARAMS all, or "
ADVICE = {
    "fused": f"{HOLD}lower ATSC.TEACHER.LR_SCALE.",
    "published": f"{HOLD}take ATSC.UPDATE fused with a lower ATSC.TEACHER.LR_SCALE.",
}


def feature_figures(present, start):
    """scale = std(F_t) / std(F_t0); motion = ||F_t - F_t0|| / ||F_t0||; var = variance of F_t0"""
    return {
        "feature_scale": (present.std() / start.std()).item(),
        "feature_motion": ((present - start).norm() / start.norm()).item(),
        "start_variance": start.var().item(),
    }


def fall(values):
    """(how many steps the last values fell in a row, how much they lost in them)"""
    first = last = len(values) - 1
    while first > 0 and values[first - 1] > values[first]:
        first -= 1
    return last - first, values[first] - values[last]


def together(reports):
    """One report of all teachers: the figures of several are called t1_teacher_top1, t2_teacher_top1, ..."""
    if len(reports) == 1:
        return reports[0]
    warnings = [report["warning"] for report in reports if report["warning"]]
    return {
        "figures": {
            f"t{number}_{name}": value
            for number, report in enumerate(reports, 1)
            for name, value in report["figures"].items()
        },
        "warning": " ".join(warnings) or None,
        "stop": any(report["stop"] for report in reports),
    }


class TeacherMonitor:
    """The epoch's figures and the guard for one teacher of a distiller; keeps only numbers between steps."""

    def __init__(self, distiller, cfg, number=0, title="the teacher"):
        self.distiller, self.number, self.title = distiller, number, title
        self.guard, self.images = cfg.ATSC.GUARD, cfg.ATSC.MONITOR.IMAGES
        self.kappa_scale = cfg.ATSC.DRIFT.WEIGHT / cfg.ATSC.LOSS.FEAT_WEIGHT if cfg.ATSC.LOSS.FEAT_WEIGHT else math.inf
        self.advice, self.pulled = ADVICE[cfg.ATSC.UPDATE], cfg.ATSC.LOSS.FEAT_PULL > 0
        self.history = [{"teacher_agreement": 1.0, "feature_scale": 1.0}]  # theta_0 against itself
        self.hits = self.seen = 0

    # ---- training batches ----

    def count(self, logits, target):
        """The teacher's hits on a training batch; stays on the device."""
        self.hits = self.hits + (logits.argmax(1) == target).sum()
        self.seen += len(target)

    # ---- after an epoch ----

    def after_epoch(self, epoch, loader):
        """{"figures": for the log, "warning": text or None, "stop": whether to end the run}."""
        figures = self._figures(loader)
        hits, seen = sum_of(self.hits, self.seen)
        if seen:
            figures["teacher_train_top1"] = 100 * hits / seen
        self.hits = self.seen = 0
        self.history.append({key: figures[key] for key in ("teacher_agreement", "feature_scale")})
        warning = None if self.guard == "none" else self._verdict(figures)
        return {"figures": figures, "warning": warning, "stop": bool(warning) and self.guard == "stop"}

    @torch.no_grad()
    def _figures(self, loader):
        """Everything measured on the monitor's images, batch by batch; feature figures are means over images."""
        branch, start = self.distiller.branches()[self.number], self.distiller.starts()[self.number]
        teacher = branch.teacher
        was_training = self.distiller.training
        self.distiller.eval()
        sums, count = {}, 0
        for batch in sample(loader, self.images):
            image, target = self._some(batch, self.images - count, teacher)
            present_logits, present = self._look(branch, image)
            with start.in_place_of(teacher):
                start_logits, before = self._look(branch, image)
            predicted, first = present_logits.argmax(1), start_logits.argmax(1)
            figures = {
                **feature_figures(present, before),
                "teacher_top1": 100 * (predicted == target).double().mean().item(),
                "start_top1": 100 * (first == target).double().mean().item(),
                "teacher_agreement": (predicted == first).double().mean().item(),
            }
            for name, value in figures.items():
                sums[name] = sums.get(name, 0.0) + value * len(target)
            count += len(target)
            if count >= self.images:
                break
        self.distiller.train(was_training)
        figures = {name: total / count for name, total in sums.items()}
        figures["kappa"] = self.kappa_scale / figures.pop("start_variance")
        return figures | self._drift(teacher, start)

    @staticmethod
    def _some(batch, count, teacher):
        like = next(teacher.parameters())
        return place(batch[0][:count].to(like.dtype), like.device), place(batch[1][:count], like.device)

    @staticmethod
    def _look(branch, image):
        _, feature_map = branch.facts.source(branch.teacher, image)
        return branch.classifier(pool(feature_map)), feature_map

    @staticmethod
    def _drift(teacher, start):
        """Relative motion of the weights: whole, by kind (kernels; BN scales, shifts and biases), by stage."""
        groups = {"kernels": set(), "vectors": set()}
        for name, weight in teacher.named_parameters():
            groups["kernels" if weight.dim() > 1 else "vectors"].add(name)
            groups.setdefault(name.partition(".")[0], set()).add(name)
        each = {f"drift_{group}": relative_motion(teacher, start, names) for group, names in groups.items() if names}
        return {"drift": relative_motion(teacher, start), **each}

    # ---- the guard ----

    def _verdict(self, figures):
        """None, or what happened with its figures and what to change."""
        told = (
            f"teacher top-1 {figures['teacher_top1']:.1f} (began at {figures['start_top1']:.1f}), agreement with its "
            f"start {figures['teacher_agreement']:.2f}, feature scale {figures['feature_scale']:.2f}, "
            f"kappa {figures['kappa']:.3g}"
        )
        if collapsed(figures):
            return f"{self.title} has collapsed: {told}. {self.advice}"
        for key in ("feature_scale", "teacher_agreement") if self.pulled else ():
            falls, lost = fall([entry[key] for entry in self.history])
            if falls >= TREND_EPOCHS and lost > TREND_FALL:
                return f"{self.title} is drifting away ({key} fell {falls} epochs in a row): {told}. {self.advice}"
        return None

    def state(self):
        """The counts are those of all ranks together; load_state hands them to the first."""
        hits, seen = sum_of(self.hits, self.seen)
        return {"history": self.history, "hits": hits, "seen": seen}

    def load_state(self, state):
        self.history = list(state["history"])
        self.hits, self.seen = on_the_first(state["hits"], state["seen"])
