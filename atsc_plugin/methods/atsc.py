"""ATSC: the teacher keeps learning beside the student, and the student predicts through the teacher's classifier."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from atsc_plugin.contract import EAGER_STEP, IDLE_PARAMETERS, OUR_TRAINER, SECOND_STEP
from atsc_plugin.errors import ModelRefused
from atsc_plugin.keys import flatten
from atsc_plugin.losses import (
    feature_loss,
    pool,
    scale_gradient,
    softened_divergence,
    through_again,
    through_frozen,
)
from atsc_plugin.methods.base import Key, method, networks_of
from atsc_plugin.methods.monitor import TeacherMonitor, together
from atsc_plugin.methods.shared_classifier import SharedClassifier, projector_keys, term_name
from atsc_plugin.networks.deployed import ensemble_of
from atsc_plugin.networks.drift import StartingPoint, drift_penalty
from atsc_plugin.networks.ema import update_ema
from atsc_plugin.networks.maps import evaluating

KEYS = (
    Key(
        "ATSC.UPDATE",
        "fused",
        "fused: one backward, one optimizer; published: the released code's two steps to rounding, in which the drift "
        "term holds the kernels and the teacher's CE moves the classifier's bias",
        choices=("fused", "published"),
    ),
    Key(
        "ATSC.LOSS.FEAT_WEIGHT",
        1.0,
        "weight of mse(P(F_s), F_t); with TEACHER.LEARNS features it moves the teacher's trunk too",
        minimum=0.0,
        symbol="beta (-b)",
    ),
    Key(
        "ATSC.LOSS.TEACHER_CE_WEIGHT",
        1.0,
        "weight of the teacher's CE; with TEACHER.LEARNS features it moves the classifier only",
        minimum=0.0,
    ),
    Key(
        "ATSC.LOSS.CE_WEIGHT",
        0.0,
        "weight of the student's CE through the shared classifier",
        minimum=0.0,
        symbol="cls (-c)",
    ),
    Key(
        "ATSC.LOSS.KD_WEIGHT",
        0.0,
        "weight of the student's KD through the shared classifier",
        minimum=0.0,
        symbol="div (-d)",
    ),
    Key("ATSC.LOSS.KD_TEMPERATURE", 4.0, "T of KD, in both directions", minimum=0.1, symbol="T"),
    Key(
        "ATSC.LOSS.REVERSE_KD_WEIGHT",
        0.0,
        "weight of T^2 KL(p_s || p_t), which moves the teacher and not the student; needs TEACHER.LEARNS task (ours)",
        minimum=0.0,
    ),
    Key(
        "ATSC.LOSS.REVERSE_KD_WARMUP_EPOCHS",
        0,
        "epochs at the start without that term, while the teacher learns its task: an untrained student pulls it down",
        minimum=0,
    ),
    *projector_keys("ATSC"),
    Key(
        "ATSC.DRIFT.WEIGHT",
        10.0,
        "w: weight of sum ||theta - theta_0||^2 (released flag: 1 CIFAR, 10 ImageNet)",
        minimum=0.0,
        symbol="w (-w)",
    ),
    Key(
        "ATSC.DRIFT.PARAMS",
        "all",
        "weights that the drift term holds: all, or kernels (more than one dimension, as released: no norm's scales "
        "and shifts and no biases, but a ViT's tokens and positions). UPDATE published always holds the kernels",
        choices=("all", "kernels"),
    ),
    Key(
        "ATSC.TEACHER.LEARNS",
        "features",
        "features: the feature loss moves the teacher's trunk, as released; task: the teacher's CE moves all of it and "
        "the feature loss none (ours). task is not the default, because it gained only where the teacher was not fully "
        "trained; else it was behind SimKD at equal cost, or not told apart from it (docs/results/finished_teacher)",
        choices=("features", "task"),
    ),
    Key("ATSC.TEACHER.LR_SCALE", 1.0, "the teacher's learning rate is SOLVER.LR times this", minimum=0.0),
    Key("ATSC.TEACHER.WARMUP_EPOCHS", 0, "epochs at the start in which the teacher is frozen, as in SimKD", minimum=0),
    Key(
        "ATSC.TEACHER.EVERY",
        1,
        "k: the teacher learns in steps 0, k, 2k, ... of an epoch; in the others its losses are left out (the log's "
        "means are over the steps that have them) and it costs a forward pass (ours)",
        minimum=1,
    ),
    Key(
        "ATSC.TEACHER.EMA",
        0.0,
        "EMA decay per step, e.g. 0.99: the student is matched with the moving average of a teacher that learns its "
        "own task (LEARNS task); 0 switches the average off (ours)",
        minimum=0.0,
    ),
    Key(
        "ATSC.TEACHER.BN",
        "batch",
        "batch: statistics of the batch, as released; affine_frozen: the same with scales and shifts frozen, those of "
        "LayerNorm, GroupNorm and layer scales too",
        choices=("batch", "affine_frozen"),
    ),
    Key(
        "ATSC.GUARD",
        "warn",
        "when the teacher collapses, loses accuracy or drifts away: warn, stop (the run ends with exit status 3), none",
        choices=("warn", "stop", "none"),
    ),
    Key(
        "ATSC.ENSEMBLE",
        "logits",
        "ATSC_MULTI's prediction: mean of the logits through each teacher's projector and classifier, or of the probs",
        choices=("logits", "probs"),
    ),
)

# Keys that the released step does not have: they do nothing at their defaults.
NOT_IN_THE_RELEASED_STEP = ("ATSC.LOSS.REVERSE_KD_WEIGHT", "ATSC.TEACHER.")
OLD_KEYS = {
    "ATSC.LOSS.TRUNK_CE_WEIGHT": "ATSC.TEACHER.LEARNS task has the teacher's CE move all of it, with weight "
    "ATSC.LOSS.TEACHER_CE_WEIGHT.",
    "ATSC.LOSS.FEAT_PULL": "ATSC.TEACHER.LEARNS features is the old 1, task the old 0.",
    "ATSC.CLASSIFIER.PARAMS": "UPDATE published trains the bias, UPDATE fused all of the classifier.",
    "ATSC.TEACHER.AVERAGE": "it is called ATSC.TEACHER.EMA, and needs ATSC.TEACHER.LEARNS task.",
    "ATSC.TEACHER.LAST_EPOCH": "a teacher that stops learning gained nothing; leave it out.",
    "ATSC.TEACHER.WEIGHT_DECAY": "the teacher has SOLVER.WEIGHT_DECAY; leave it out.",
    "ATSC.MONITOR.IMAGES": "the teacher is measured on 2,000 evaluation images; leave it out.",
}
LESS_OF_THE_STUDENT = "Lower ATSC.LOSS.REVERSE_KD_WEIGHT, or raise REVERSE_KD_WARMUP_EPOCHS. "


def scales_and_shifts(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of layers that have vectors alone: BN, LayerNorm, GroupNorm and other norms, layer scales."""
    layers = (list(module.parameters(recurse=False)) for module in network.modules())
    return [parameter for own in layers if all(each.dim() <= 1 for each in own) for parameter in own]


def advice(cfg: Any) -> str:
    """What holds the teacher better, of what this configuration does not have yet."""
    node = cfg.ATSC
    if node.UPDATE == "published":  # its drift term holds the kernels alone, and scales and shifts carry the collapse
        return "Take ATSC.UPDATE fused, and if need be a lower ATSC.TEACHER.LR_SCALE."
    if cfg.SOLVER.TYPE != "SGD":  # under which the drift term is refused
        return "Lower ATSC.TEACHER.LR_SCALE."
    hold_all = "" if node.DRIFT.PARAMS == "all" else "Set ATSC.DRIFT.PARAMS all. "
    return f"{hold_all}Raise ATSC.DRIFT.WEIGHT or lower ATSC.TEACHER.LR_SCALE."


@method("ATSC")
class ATSC(SharedClassifier):
    """Adaptive Teaching with a Shared Classifier (github.com/random2314235/ATSC; submitted to Neurocomputing).

    loss = FEAT * mse(P(F_s), F_t) + DRIFT * sum ||theta - theta_0||^2 + TEACHER_CE * CE(C_t(sg(pool(F_t))), y)
           [+ CE * CE(z_s, y) + KD * T^2 KL(sg(z_t) || z_s),  z_s = C_t(pool(P(F_s))) with C_t held]
    prediction = z_s. F_t is not detached: the feature loss moves the teacher's trunk too, and that is the adaptive
    teaching. The teacher's CE moves the classifier only, and with it all of C_t where that is more than one layer
    (a norm, hidden layers).

    UPDATE "fused" (default) is this loss in one backward and one optimizer. Deviations from the released code: CE sees
    the batch through the weights before the update, not after; the bias is in one optimizer, not two; BN statistics
    move once a step, not twice; unused heads get no decay; CE and KD, when weighted, act on the prediction.

    Ours, off by default. TEACHER.LEARNS "task": the feature loss sees sg(F_t), and TEACHER_CE * CE(C_t(pool(F_t)), y)
    moves the whole teacher. TEACHER.EMA d: theta above belongs to an online copy of the teacher; the teacher that the
    student is matched with and predicts through is its average, theta_bar <- d * theta_bar + (1 - d) * theta.
    LOSS.REVERSE_KD_WEIGHT, with LEARNS "task": + REVERSE_KD * T^2 KL(sg(p_s) || p_t), p = softmax(z / T), the reverse
    of KD. It moves the trunk and the head of what learns, the teacher or its online copy, and nothing of the student.
    TEACHER.EVERY k: in the steps between, the teacher has no gradient, hence neither decay nor momentum; its BN keeps
    to the batch's statistics and goes on averaging them. With EMA the online copy and the average both rest.
    AdamW divides a gradient by its size, so that DRIFT would be another force: refused, as it is for the released step.

    UPDATE "published" is the released step to rounding (random2314235/ATSC at 8bde1b2), two optimizer steps a batch.
    One, over student, projector and the whole teacher: FEAT * mse(P(F_s), F_t) + DRIFT * sum ||theta - theta_0||^2 +
    CE * CE(h_s, y) + KD * T^2 KL(z_t || h_s), where h_s are the student's OWN logits and z_t carries a gradient. At
    weights of zero CE and KD still enter, times zero: both heads receive zero gradients, hence weight decay. Two, with
    an optimizer of its own: a second teacher forward in training mode with the updated weights, and a step of
    CE(z_t, y) on the teacher's last parameter alone, the classifier's bias. The released validation scores h_s; ours
    scores the prediction through C_t.
    """

    NODE = "ATSC"
    LEAVES_NETWORKS = True
    KEYS = KEYS
    OLD_KEYS = OLD_KEYS
    MULTI = "ATSC_MULTI"
    GIVES_WAY = False

    # ---- what an engine may ask before any work ----

    @classmethod
    def problems(cls, cfg):
        node, problems = cfg.ATSC, _adamw_problems(cfg)
        # SGD on a quadratic of curvature h diverges at rate * h >= 2 (1 + momentum); the drift term's h is 2 * DRIFT.
        product = cfg.SOLVER.LR * node.TEACHER.LR_SCALE * 2 * node.DRIFT.WEIGHT
        limit = 2 * (1 + cfg.SOLVER.MOMENTUM)
        if cfg.SOLVER.TYPE == "SGD" and not product < limit:
            problems.append(
                f"SOLVER.LR * ATSC.TEACHER.LR_SCALE * 2 * ATSC.DRIFT.WEIGHT is {product:g}; SGD with momentum "
                f"{cfg.SOLVER.MOMENTUM:g} diverges at {limit:g} and beyond. Lower ATSC.DRIFT.WEIGHT or the rate."
            )
        warmup = node.TEACHER.WARMUP_EPOCHS
        if warmup and warmup >= cfg.SOLVER.EPOCHS:
            problems.append(
                f"ATSC.TEACHER.WARMUP_EPOCHS is {warmup} and SOLVER.EPOCHS {cfg.SOLVER.EPOCHS}, so the teacher would "
                "never learn. Lower WARMUP_EPOCHS; for a frozen teacher use DISTILLER.TYPE SIMKD."
            )
        problems += _ema_problems(node.TEACHER) + _reverse_problems(cfg)
        if node.UPDATE == "published":
            values = flatten(node, "ATSC.")
            problems += [
                f"{key.name} is {values[key.name]}; the released step has no such thing. Use {key.default}, or UPDATE "
                "fused."
                for key in KEYS
                if key.name.startswith(NOT_IN_THE_RELEASED_STEP) and values[key.name] != key.default
            ]
        return problems

    @classmethod
    def needs(cls, cfg):
        node, needs, reasons = cfg.ATSC.TEACHER, {}, []
        if cfg.ATSC.UPDATE == "published":
            needs[SECOND_STEP] = "ATSC.UPDATE published makes two steps a batch"
        if node.EVERY > 1:
            needs[IDLE_PARAMETERS] = f"ATSC.TEACHER.EVERY {node.EVERY} gives the teacher no gradient in between"
            needs[EAGER_STEP] = f"ATSC.TEACHER.EVERY {node.EVERY} makes two kinds of steps in turns"
        if node.LR_SCALE != 1.0:
            reasons.append(f"ATSC.TEACHER.LR_SCALE {node.LR_SCALE:g} wants a second rate")
        if node.EMA > 0:
            reasons.append(f"ATSC.TEACHER.EMA {node.EMA:g} averages weights after every step")
        if cfg.ATSC.GUARD == "stop":
            reasons.append("ATSC.GUARD stop looks at the teacher after every epoch")
        if reasons:
            needs[OUR_TRAINER] = "; ".join(reasons)
        return needs

    # ---- construction ----

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.node, self.weights, self.advice = cfg.ATSC, cfg.ATSC.LOSS, advice(cfg)
        self.published = self.node.UPDATE == "published"
        self.learns_task = self.node.TEACHER.LEARNS == "task"
        self.warming_up, self.resting, self.reverses = False, False, self.weights.REVERSE_KD_WEIGHT > 0
        self.online_teacher = copy.deepcopy(self.teacher) if self.node.TEACHER.EMA > 0 else None
        if self.online_teacher is not None:
            self.teacher.requires_grad_(False)
        self.learning = networks_of(self.teacher if self.online_teacher is None else self.online_teacher)
        self.learning_readers, self.learning_tails = self.readers_and_tails(self.learning)
        self.theta_0 = nn.ModuleList(StartingPoint(network) for network in networks_of(self.teacher))
        self._freeze()
        self.held = [self._held(network) for network in self.learning]
        titles = self.titles() if len(self.learning) > 1 else ["the teacher"]
        self.monitors = nn.ModuleList(map(self._monitor, titles))

    def _freeze(self) -> None:
        """Take the gradient from what does not learn; the released step leaves it on everywhere."""
        last, of_tail = list(self.learning[0].parameters())[-1], list(self.learning_tails[0].parameters())[-1]
        if not self.published:
            self.freeze_unused()
        elif last is not of_tail or last.dim() != 1:
            raise ModelRefused(
                "The teacher's last parameter is not its classifier's bias, which ATSC.UPDATE published trains. Use "
                "ATSC.UPDATE fused."
            )
        if self.node.TEACHER.BN == "affine_frozen":
            for network, title in zip(self.learning, self.titles(), strict=True):
                frozen = scales_and_shifts(network)
                if not frozen:
                    raise ModelRefused(
                        f"ATSC.TEACHER.BN is affine_frozen, but {title} has no layer of scales and shifts, such as BN "
                        "or LayerNorm. Use batch."
                    )
                for parameter in frozen:
                    parameter.requires_grad_(False)

    def _held(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """The weights that the drift term holds, by name."""
        every = not self.published and self.node.DRIFT.PARAMS == "all"
        return {name: p for name, p in network.named_parameters() if p.requires_grad and (every or p.dim() > 1)}

    def _monitor(self, title: str) -> TeacherMonitor:
        weights = self.weights
        return TeacherMonitor(
            title,
            guard=self.node.GUARD,
            advice=(LESS_OF_THE_STUDENT if weights.REVERSE_KD_WEIGHT else "") + self.advice,
            watch_trend=not self.learns_task,
            kappa_scale=self.node.DRIFT.WEIGHT / weights.FEAT_WEIGHT if weights.FEAT_WEIGHT else math.inf,
        )

    def start(self, loaders=None):
        """theta_0 is the filled teacher's, and so is the online copy."""
        for theta_0, network, online in zip(self.theta_0, networks_of(self.teacher), self.learning, strict=True):
            theta_0.remember(network)
            if online is not network:
                online.load_state_dict(network.state_dict())

    # ---- parameters ----

    def teacher_parameters(self) -> list[nn.Parameter]:
        """What of the teachers learns."""
        return [p for network in self.learning for p in network.parameters() if p.requires_grad]

    def get_learnable_parameters(self):
        if self.published:
            return [*self.student.parameters(), *self.projector.parameters(), *self.teacher.parameters()]
        return self.student_parameters() + self.teacher_parameters()

    def param_groups(self, cfg):
        scale = self.node.TEACHER.LR_SCALE
        if scale == 1.0:
            return self.get_learnable_parameters()
        return [{"params": self.student_parameters()}, {"params": self.teacher_parameters(), "lr_scale": scale}]

    def second_parameters(self):
        return [list(self.teacher.parameters())[-1]] if self.published else []

    # ---- modes ----

    def before_epoch(self, epoch):
        self.warming_up = epoch <= self.node.TEACHER.WARMUP_EPOCHS
        self.reverses = self.weights.REVERSE_KD_WEIGHT > 0 and epoch > self.weights.REVERSE_KD_WARMUP_EPOCHS
        self._set_teacher_mode()

    def before_step(self, epoch, step):
        self.resting = step % self.node.TEACHER.EVERY > 0  # the step's number alone decides: a resumed run agrees

    def phase(self, epoch):
        return epoch <= self.node.TEACHER.WARMUP_EPOCHS, epoch <= self.weights.REVERSE_KD_WARMUP_EPOCHS

    def train(self, mode=True):
        super().train(mode)
        self._set_teacher_mode()
        return self

    def _set_teacher_mode(self) -> None:
        """Batch statistics while the teacher learns; its own in the warm-up and in evaluation."""
        for network in self.learning:
            network.train(self.training and not self.warming_up)

    # ---- the step ----

    def forward_train(self, image, target, **kwargs):
        self.refuse_replicas("have no parameters of a teacher to hold")
        return self._published_losses(image, target) if self.published else self._fused_losses(image, target)

    def _fused_losses(self, image, target):
        sides = [self.teacher_side(branch, image, target) for branch in self.branches]
        _, feature_map = self.read_student(image)
        predictions, losses, count = [], {}, len(self.branches)
        for branch, (teacher_map, teacher_logits, learning_logits, terms) in zip(self.branches, sides, strict=True):
            # Backwards the student gets a share from each teacher, the mean; what is behind this line gets all of it.
            projected = branch.project(scale_gradient(feature_map, 1 / count))
            wanted = branch.target(teacher_map.detach() if self.learns_task else teacher_map)
            terms["loss_feat"] = self.weights.FEAT_WEIGHT * feature_loss(projected, wanted)
            logits = through_frozen(branch.classifier, pool(projected))
            terms |= self.student_losses(logits, teacher_logits.detach(), target)
            if self.reverses and not self.resting:
                divergence = softened_divergence(learning_logits, logits.detach(), self.weights.KD_TEMPERATURE)
                terms["loss_reverse_kd"] = self.weights.REVERSE_KD_WEIGHT * divergence
            losses |= {term_name(name, branch.number, count): term for name, term in terms.items()}
            predictions.append(logits)
            self.monitors[branch.number].add(teacher_logits.detach(), target)
        return ensemble_of(predictions, self.ensemble), losses

    def teacher_side(self, branch, image, target):
        """(F_t and z_t that the student is matched with, z_t of what learns, its own losses by name) of one teacher."""
        number, averaged, learning, terms = branch.number, self.online_teacher is not None, None, {}
        if not self.resting:
            learns = not self.warming_up and self.node.TEACHER.LR_SCALE > 0
            with torch.set_grad_enabled(learns):  # rate 0: no graph and no gradient, hence neither decay nor momentum
                _, teacher_map = self.learning_readers[number](image)
                pooled = pool(teacher_map)
                learning = through_again(self.learning_tails[number], pooled if self.learns_task else pooled.detach())
                if self.node.DRIFT.WEIGHT > 0:
                    terms["loss_drift"] = self.drift_loss(number)
                terms["loss_teacher_ce"] = self.weights.TEACHER_CE_WEIGHT * F.cross_entropy(learning, target)
            if not averaged:
                return teacher_map, learning, learning, terms
        with torch.no_grad():  # an average; a resting teacher gives the map of the steps around, by batch statistics
            _, teacher_map = branch.read(image) if averaged else self.learning_readers[number](image)
            return teacher_map, through_again(branch.classifier, pool(teacher_map)), learning, terms

    def drift_loss(self, number: int = 0):
        """DRIFT * sum ||theta - theta_0||^2 over one teacher's held weights."""
        held = self.held[number]
        return drift_penalty(list(held.values()), self.theta_0[number].tensors(held), self.node.DRIFT.WEIGHT)

    def student_losses(self, logits, wanted, target):
        """The optional ones: cross entropy and KD of the prediction through one teacher's classifier."""
        losses = {}
        if self.weights.CE_WEIGHT > 0:
            losses["loss_ce"] = self.weights.CE_WEIGHT * F.cross_entropy(logits, target)
        if self.weights.KD_WEIGHT > 0:
            divergence = softened_divergence(logits, wanted, self.weights.KD_TEMPERATURE)
            losses["loss_kd"] = self.weights.KD_WEIGHT * divergence
        return losses

    def after_step(self):
        if self.online_teacher is not None and not self.resting:
            for average, online in zip(networks_of(self.teacher), self.learning, strict=True):
                update_ema(average, online, self.node.TEACHER.EMA)

    # ---- the released step ----

    def _published_losses(self, image, target):
        (branch,) = self.branches
        own_logits, feature_map = self.read_student(image)
        projected = branch.project(feature_map)
        teacher_logits, teacher_map = branch.read(image)
        divergence = softened_divergence(own_logits, teacher_logits, self.weights.KD_TEMPERATURE)
        losses = {
            "loss_feat": self.weights.FEAT_WEIGHT * feature_loss(projected, branch.target(teacher_map)),
            "loss_drift": self.drift_loss(),
            "loss_ce": self.weights.CE_WEIGHT * F.cross_entropy(own_logits, target),
            "loss_kd": self.weights.KD_WEIGHT * divergence,
        }
        self.monitors[0].add(teacher_logits.detach(), target)
        return branch.classifier(pool(projected)).detach(), losses

    def second_loss(self, image, target):
        return {"loss_teacher_ce": self.weights.TEACHER_CE_WEIGHT * F.cross_entropy(self.teacher(image)[0], target)}

    # ---- the run ----

    def networks(self):
        return [network._replace(moves=True) for network in super().networks()]

    def named_readers(self):
        readers = super().named_readers()
        if self.online_teacher is None:
            return [(name, reader) for (name, _), reader in zip(readers, self.learning_readers, strict=True)]
        return [*readers, *((f"online_{name}", r) for (name, _), r in zip(readers, self.learning_readers, strict=True))]

    def after_epoch(self, epoch, loader):
        """Figures of every teacher for the log, and the guard's verdict."""
        with evaluating(self):
            reports = [
                monitor.after_epoch(loader, branch.read, branch.classifier, theta_0)
                for monitor, branch, theta_0 in zip(self.monitors, self.branches, self.theta_0, strict=True)
            ]
        return together(reports)

    def constants(self):
        return {
            f"{number}.{name}": tensor
            for number, theta_0 in enumerate(self.theta_0)
            for name, tensor in theta_0.items()
        }

    def run_state(self):
        return {"monitors": [monitor.state() for monitor in self.monitors]}

    def load_run_state(self, state):
        for monitor, stored in zip(self.monitors, state["monitors"], strict=True):
            monitor.load_state(stored)


def _adamw_problems(cfg) -> list[str]:
    """What is defined with SGD alone."""
    node, problems = cfg.ATSC, []
    if cfg.SOLVER.TYPE == "AdamW" and node.DRIFT.WEIGHT > 0:
        problems.append(
            f"ATSC.DRIFT.WEIGHT is {node.DRIFT.WEIGHT:g} with SOLVER.TYPE AdamW, which divides a gradient by its size: "
            "the drift term would no longer hold in proportion to the distance. Use SGD, or DRIFT.WEIGHT 0, e.g. with "
            "ATSC.TEACHER.LEARNS task and TEACHER.EMA 0.99."
        )
    if node.UPDATE == "published":
        problems += [
            f"SOLVER.{key} is {cfg.SOLVER[key]}; the released step is SGD's, with decay of all weights. Use "
            f"{released}, or ATSC.UPDATE fused."
            for key, released in (("TYPE", "SGD"), ("NO_DECAY", "none"))
            if cfg.SOLVER[key] != released
        ]
    return problems


def _ema_problems(node) -> list[str]:
    """What is wrong with an averaged teacher: the average itself learns nothing."""
    problems = []
    if not node.EMA < 1:
        problems.append(f"ATSC.TEACHER.EMA is {node.EMA:g}; expected below 1, e.g. 0.99, or 0 for no average.")
    if node.EMA > 0 and node.LR_SCALE == 0:
        problems.append(
            f"ATSC.TEACHER.EMA is {node.EMA:g} with TEACHER.LR_SCALE 0, so nothing moves that could be averaged. Raise "
            "LR_SCALE."
        )
    if node.EMA > 0 and node.LEARNS != "task":
        problems.append(
            f"ATSC.TEACHER.EMA is {node.EMA:g} with TEACHER.LEARNS {node.LEARNS}, but the student is matched with the "
            "average, so the feature loss cannot move what learns. Use ATSC.TEACHER.LEARNS task."
        )
    return problems


def _reverse_problems(cfg) -> list[str]:
    """What is wrong with a teacher that learns from the student; the released step refuses the term by itself."""
    node, weights, problems = cfg.ATSC.TEACHER, cfg.ATSC.LOSS, []
    named, warmup = f"ATSC.LOSS.REVERSE_KD_WEIGHT is {weights.REVERSE_KD_WEIGHT:g}", weights.REVERSE_KD_WARMUP_EPOCHS
    if not weights.REVERSE_KD_WEIGHT or cfg.ATSC.UPDATE == "published":
        return []
    if node.LEARNS != "task":
        problems.append(
            f"{named} with TEACHER.LEARNS {node.LEARNS}, where nothing but the student's signals would move the "
            "teacher's trunk: it would follow an untrained student. Use ATSC.TEACHER.LEARNS task."
        )
    if node.LR_SCALE == 0:
        problems.append(f"{named} with TEACHER.LR_SCALE 0, so the teacher it should move stays. Raise LR_SCALE.")
    if warmup and warmup >= cfg.SOLVER.EPOCHS:
        problems.append(
            f"ATSC.LOSS.REVERSE_KD_WARMUP_EPOCHS is {warmup} and SOLVER.EPOCHS {cfg.SOLVER.EPOCHS}, so the term would "
            "never act. Lower REVERSE_KD_WARMUP_EPOCHS."
        )
    return problems
