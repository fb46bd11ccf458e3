"""ATSC: the teacher keeps learning beside the student, and the student predicts through the teacher's classifier."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from atsc_plugin.errors import ConfigError
from atsc_plugin.methods.atsc_checks import atsc_problems, refuse_replica, refuse_without_bias
from atsc_plugin.methods.monitor import TeacherMonitor, together
from atsc_plugin.methods.shared_classifier import SharedClassifier
from atsc_plugin.methods.simkd import feature_loss, part_name
from atsc_plugin.methods.teacher_list import networks_of
from atsc_plugin.networks.deployed import ensemble_of
from atsc_plugin.networks.drift import StartingPoint, drift_penalty, rescaled_gradient
from atsc_plugin.networks.ema import follow, learner_of
from atsc_plugin.networks.maps import classifier_of, full, pool, scale_gradient


def softened_divergence(logits, wanted, temperature):
    """T^2 * KL(softmax(wanted / T) || softmax(logits / T)), mean over images"""
    log_p, q = F.log_softmax(full(logits) / temperature, dim=1), F.softmax(full(wanted) / temperature, dim=1)
    return F.kl_div(log_p, q, reduction="batchmean") * temperature**2


def through_frozen(classifier, pooled):
    """C_t(pooled) without a gradient for C_t: what the student's own losses see of the shared classifier."""
    held = [None if tensor is None else tensor.detach() for tensor in (classifier.weight, classifier.bias)]
    return full(F.linear(pooled, *held))


def drift_parameters(teacher, which):
    """Names of the weights that the drift term holds: kernels (more than one dimension) or all."""
    return [name for name, p in teacher.named_parameters() if which == "all" or p.ndim > 1]


class ATSC(SharedClassifier):
    """Adaptive Teaching with a Shared Classifier (github.com/random2314235/ATSC; submitted to Neurocomputing).

    loss = FEAT * mse(P(F_s), F_t) + DRIFT * sum ||theta - theta_0||^2 + TEACHER_CE * CE(C_t(sg(pool(F_t))), y)
           [+ CE * CE(z_s, y) + KD * T^2 KL(sg(z_t) || z_s),  z_s = C_t(pool(P(F_s))) with C_t held]
           [+ TRUNK_CE * CE(C_t(pool(F_t)), y) with C_t held]
    prediction = z_s. F_t is not detached: the feature loss moves the teacher's trunk too, and that is the adaptive
    teaching. The teacher's CE moves the classifier only.

    UPDATE "fused" (default) is this loss in one backward and one optimizer. Deviations from the released code: CE sees
    the batch through the weights before the update, not after; the bias is in one optimizer, not two; BN statistics
    move once a step, not twice; unused heads get no decay; CE and KD, when weighted, act on the prediction.
    Ours, off by default: TRUNK_CE lets the teacher's trunk go on learning its own task, and FEAT_PULL < 1 weakens what
    the feature loss does to the trunk without weakening what it does to the student (0: the trunk does not see it).
    TEACHER.AVERAGE keep > 0: the theta above is a learner's, a copy of the teacher, and the teacher that is matched,
    predicted through and kept is its average over the steps, theta_bar <- keep * theta_bar + (1 - keep) * theta.
    UPDATE "published" is the released step to rounding; see PublishedATSC.
    """

    def __init__(self, student, teacher, cfg):
        if problems := atsc_problems(cfg):
            raise ConfigError(problems)
        node = cfg.ATSC
        super().__init__(student, teacher, cfg, node, "ATSC")
        self.node, self.weights = node, node.LOSS
        # A batch in parts is as many calls, between which the learner stays: together they keep AVERAGE.
        self.keep = node.TEACHER.AVERAGE ** (1 / cfg.SOLVER.ACCUMULATE)
        self.learner = learner_of(self.teacher) if node.TEACHER.AVERAGE > 0 else None
        networks, titles = networks_of(self.teacher), self.titles(cfg)
        refuse_without_bias([classifier_of(network) for network in networks], titles, node)
        starts = [StartingPoint(network) for network in networks]
        self.start = nn.ModuleList(starts) if self.several else starts[0]
        self.drift_names = [drift_parameters(network, node.DRIFT.PARAMS) for network in networks]
        titles = titles if len(networks) > 1 else ["the teacher"]
        self.monitors = [TeacherMonitor(self, cfg, number, title) for number, title in enumerate(titles)]
        self.held_still = False
        self.rests_later = node.TEACHER.LAST_EPOCH > 0  # for DDP, which has to look for what gets no gradient
        self.rate_hooks, self.teacher_rate = [], {}
        self.prepare_parameters(cfg)

    def prepare_parameters(self, cfg):
        """Freeze what does not learn, and give the teacher its own rate through its gradients."""
        self.freeze_unused()
        if self.node.CLASSIFIER.PARAMS == "bias":
            for network in networks_of(self.learning):
                classifier_of(network).weight.requires_grad_(False)
        if self.node.TEACHER.BN != "batch":
            for layer in self._batch_norms():
                layer.requires_grad_(False)
        scale, common = self.node.TEACHER.LR_SCALE, cfg.SOLVER.WEIGHT_DECAY
        decay = common if self.node.TEACHER.WEIGHT_DECAY < 0 else self.node.TEACHER.WEIGHT_DECAY
        if scale != 1.0 or decay != common:
            self.rate_hooks = [
                parameter.register_hook(rescaled_gradient(parameter, scale, decay, common))
                for parameter in self.teacher_parameters()
            ]
            self.teacher_rate = {"lr_scale": scale, "weight_decay": decay}

    @property
    def learning(self):
        """What goes on learning, with the gradients and the modes of training: the teacher, or the learner."""
        return self.teacher if self.learner is None else self.learner

    def _batch_norms(self):
        return [layer for layer in self.learning.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]

    def teacher_parameters(self):
        """What of the teachers learns."""
        return [p for p in self.learning.parameters() if p.requires_grad]

    def get_learnable_parameters(self):
        return self.student_parameters() + self.teacher_parameters()

    def param_groups(self, cfg):
        """The teacher's rate and decay as an optimizer's group, for trainers that know groups; its hooks go.

        The same steps, also where gradients come in parts or scaled, which the hooks would decay once a part.
        """
        if not self.rate_hooks:
            return self.get_learnable_parameters()
        while self.rate_hooks:
            self.rate_hooks.pop().remove()
        return [{"params": self.student_parameters()}, {"params": self.teacher_parameters(), **self.teacher_rate}]

    # ---- modes ----

    def train(self, mode=True):
        super().train(mode)
        self._set_teacher_mode()
        return self

    def _set_teacher_mode(self):
        """Batch statistics while the teacher learns; its own while it is held, is evaluated or has its BN frozen."""
        self.learning.train(self.training and not self.held_still)
        if self.node.TEACHER.BN == "frozen":
            for layer in self._batch_norms():
                layer.eval()

    def _enter_epoch(self, epoch):
        first, last = self.node.TEACHER.WARMUP_EPOCHS + 1, self.node.TEACHER.LAST_EPOCH or math.inf
        held_still = epoch is not None and not first <= epoch <= last
        if held_still != self.held_still:
            self.held_still = held_still
            self._set_teacher_mode()

    # ---- the step ----

    def forward_train(self, image, target, epoch=None, **kwargs):
        refuse_replica(self)
        self._enter_epoch(epoch)
        if self.learner is not None:
            follow(self.teacher, self.learner, self.keep)
        branches = self.branches()
        sides = [self.teacher_side(branch, image, target) for branch in branches]
        _, feature_map = self.student_map(image)
        predictions, losses = [], {}
        for branch, (teacher_map, teacher_logits, parts) in zip(branches, sides, strict=True):
            # Backwards the student gets a share from each teacher, the mean; what is behind this line gets all of it.
            projected = branch.project(scale_gradient(feature_map, 1 / len(branches)))
            wanted = scale_gradient(branch.wanted(teacher_map), self.weights.FEAT_PULL)
            parts["loss_feat"] = self.weights.FEAT_WEIGHT * feature_loss(projected, wanted)
            logits = through_frozen(branch.classifier, pool(projected))
            parts |= self.student_losses(logits, teacher_logits.detach(), target)
            losses |= {part_name(name, branch.number, len(branches)): part for name, part in parts.items()}
            predictions.append(logits)
            self.monitors[branch.number].count(teacher_logits.detach(), target)
        return ensemble_of(predictions, self.ensemble), losses

    def teacher_side(self, branch, image, target):
        """(F_t, the teacher's logits, its own losses by name) of one teacher."""
        network = networks_of(self.learning)[branch.number]
        classifier = classifier_of(network)
        moves = not self.held_still and self.node.TEACHER.LR_SCALE > 0
        with torch.set_grad_enabled(moves):  # rate 0: no graph and no gradient, hence neither decay nor momentum
            _, teacher_map = branch.facts.source(network, image)
            logits = full(classifier(pool(teacher_map).detach()))
            losses = {
                "loss_drift": self.drift_loss(branch.number),
                "loss_teacher_ce": self.weights.TEACHER_CE_WEIGHT * F.cross_entropy(logits, target),
            }
            if self.weights.TRUNK_CE_WEIGHT > 0:
                own = through_frozen(classifier, pool(teacher_map))
                losses["loss_trunk_ce"] = self.weights.TRUNK_CE_WEIGHT * F.cross_entropy(own, target)
        if self.learner is not None:
            with torch.no_grad():
                _, teacher_map = branch.facts.source(branch.teacher, image)
                logits = full(branch.classifier(pool(teacher_map)))
        return teacher_map, logits, losses

    def drift_loss(self, number=0):
        """DRIFT * sum ||theta - theta_0||^2 over one teacher's held weights that can move."""
        present = dict(networks_of(self.learning)[number].named_parameters())
        start = dict(self.starts()[number].items())
        names = [name for name in self.drift_names[number] if present[name].requires_grad]
        return drift_penalty([present[n] for n in names], [start[n] for n in names], self.node.DRIFT.WEIGHT)

    def student_losses(self, logits, wanted, target):
        """The optional ones: cross entropy and KD of the prediction through one teacher's classifier."""
        losses = {}
        if self.weights.CE_WEIGHT > 0:
            losses["loss_ce"] = self.weights.CE_WEIGHT * F.cross_entropy(logits, target)
        if self.weights.KD_WEIGHT > 0:
            divergence = softened_divergence(logits, wanted, self.weights.KD_TEMPERATURE)
            losses["loss_kd"] = self.weights.KD_WEIGHT * divergence
        return losses

    # ---- what our trainer asks for beyond the host's contract ----

    def moved_without_gradient(self):
        """The weights of an averaged teacher, which a step left out must not move either."""
        return [] if self.learner is None else list(self.teacher.parameters())

    def starts(self):
        """theta_0 of every teacher."""
        return list(self.start) if self.several else [self.start]

    def after_epoch(self, epoch, loader):
        """Figures of every teacher for the log, and the guard's verdict."""
        return together([monitor.after_epoch(epoch, loader) for monitor in self.monitors])

    def run_state(self):
        """What a resumed run needs beside the weights: theta_0 and the monitor's memory, of every teacher."""
        states = [
            {"start": dict(start.items()), "monitor": monitor.state()}
            for start, monitor in zip(self.starts(), self.monitors, strict=True)
        ]
        return {"teachers": states} if self.several else states[0]

    def load_run_state(self, state):
        states = state["teachers"] if self.several else [state]
        for start, monitor, kept in zip(self.starts(), self.monitors, states, strict=True):
            for name, tensor in start.items():
                tensor.copy_(kept["start"][name])
            monitor.load_state(kept["monitor"])
