"""ADAPTKD: KD from a trained teacher of which a part goes on learning: an adapter, the head, a stage, or all of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from atsc_plugin.contract import OUR_TRAINER
from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import image_size
from atsc_plugin.losses import full, pool, softened_divergence
from atsc_plugin.methods.base import EpochReport, Key, Method, Network, method
from atsc_plugin.methods.monitor import Extended, moving_top1
from atsc_plugin.networks.drift import StartingPoint
from atsc_plugin.networks.maps import check_classes, classes_of, teacher_map
from atsc_plugin.networks.stages import convolutions_behind, stage_facts


class LogitAdapter(nn.Module):
    """(teacher, image) -> z + W_2 ReLU(W_1 h + b_1) + b_2, h = pool(F_t) the input of the teacher's classifier.

    W_2 and b_2 are zero at the start; b (C + K + 1) + K parameters for a bottleneck b, C inputs, K classes.
    """

    def __init__(self, source, width, bottleneck, classes):
        super().__init__()
        self.source = source
        self.layers = nn.Sequential(nn.Linear(width, bottleneck), nn.ReLU(), nn.Linear(bottleneck, classes))
        nn.init.zeros_(self.layers[2].weight), nn.init.zeros_(self.layers[2].bias)

    def forward(self, teacher, image):
        with torch.no_grad():
            logits, feature_map = self.source(teacher, image)
        return full(logits) + full(self.layers(pool(feature_map)))


class LowRank(nn.Module):
    """(teacher, image) -> z with each named kernel W replaced by W_0 + B A, reshaped; r (out + in k k) parameters each.

    LoRA (Hu et al., 2021, arXiv 2106.09685) on convolutions: B is zero at the start. W_0 is the pretrained kernel.
    """

    def __init__(self, teacher, names, rank):
        super().__init__()
        self.names, self.start = names, StartingPoint(teacher)
        kernels = self.start.tensors(names)
        self.down = nn.ParameterList(torch.empty(rank, kernel[0].numel()) for kernel in kernels)
        self.up = nn.ParameterList(torch.zeros(len(kernel), rank) for kernel in kernels)
        for down in self.down:
            nn.init.kaiming_uniform_(down, a=5**0.5)  # as nn.Conv2d's own

    def kernels(self):
        """{name: W_0 + B A}"""
        each = zip(self.names, self.start.tensors(self.names), self.up, self.down, strict=True)
        return {name: start + (up @ down).view_as(start) for name, start, up, down in each}

    def forward(self, teacher, image):
        return full(torch.func.functional_call(teacher, self.kernels(), (image,))[0])


def last_stage_kernels(teacher, side, name):
    """Names of the convolutions' kernels behind the last but one of the teacher's maps."""
    if len(stage_facts(teacher, side, name).shapes) < 2:
        raise ModelRefused(f"{name} has a single map in feats, so it has no last stage. Use another ADAPTKD.MODULE.")
    found = [f"{path}.weight" for path in convolutions_behind(teacher, -2, side)]
    if not found:
        raise ModelRefused(f"{name} has no convolution behind its last but one map. Use another ADAPTKD.MODULE.")
    return found


@method("ADAPTKD", "adaptive KD")
class ADAPTKD(Method):
    """OUR definition: KD from a pretrained teacher of which ADAPTKD.MODULE goes on learning beside the student.

    student: CE_WEIGHT * CE(z_s, y) + KD_WEIGHT * T^2 KL(sg(p_t) || p_s)
    teacher: CE_WEIGHT * CE(z_t, y) + KD_WEIGHT * T^2 KL(sg(p_s) || p_t)
    z_t are the logits of the teacher with what has been learnt. Without its CE the teacher only moves onto the student.
    Prediction: the student's own logits.

    It stands in for PESF-KD (Rao et al., arXiv 2205.15308: an adapter on the teacher is updated beside the student) and
    OKD (Rao et al., arXiv 2409.12512: the same for language models), of which neither losses nor modules could be read,
    and carries neither name. MODULE none is KD: the frozen control.

    logit_adapter: z_t = z + A(h), A an MLP with one hidden layer; the adapter stays behind, the teacher is as it was.
    fc: the teacher's classifier. last_stage_lora: a low-rank term on each kernel of the last stage (LoRA); the teacher
    carries the sum. In these three the rest is frozen and in eval mode, no gradient is computed below what learns, and
    the first step is KD's. all: the whole teacher, its BN on batch statistics like that of any network that trains.
    """

    LEAVES_NETWORKS = True
    KEYS = (
        Key(
            "ADAPTKD.MODULE",
            "logit_adapter",
            "what learns of the teacher: logit_adapter (an MLP added to its logits), fc (its classifier), "
            "last_stage_lora (low-rank terms on its last stage's kernels), all, or none (KD)",
            choices=("none", "logit_adapter", "fc", "last_stage_lora", "all"),
        ),
        Key("ADAPTKD.BOTTLENECK", 64, "hidden width of the logit adapter", minimum=1, maximum=65536),
        Key("ADAPTKD.RANK", 8, "rank of the term on each kernel of the last stage", minimum=1, maximum=4096),
        Key("ADAPTKD.LOSS.CE_WEIGHT", 0.1, "weight of the student's CE", minimum=0.0),
        Key("ADAPTKD.LOSS.KD_WEIGHT", 0.9, "weight of what the student learns from the teacher", minimum=0.0),
        Key("ADAPTKD.TEACHER.CE_WEIGHT", 1.0, "weight of the teacher's CE", minimum=0.0),
        Key("ADAPTKD.TEACHER.KD_WEIGHT", 1.0, "weight of what the teacher learns from the student", minimum=0.0),
        Key(
            "ADAPTKD.TEACHER.LR_SCALE",
            0.1,
            "the learning rate of what learns of the teacher is SOLVER.LR times this; 0: nothing learns",
            minimum=0.0,
        ),
        Key("ADAPTKD.TEMPERATURE", 4.0, "T of both divergences", minimum=0.1, symbol="T"),
    )

    @classmethod
    def needs(cls, cfg):
        node, reasons = cfg.ADAPTKD, []
        if not _learns(node):
            return {}
        if node.TEACHER.LR_SCALE != 1.0:
            reasons.append(f"ADAPTKD.TEACHER.LR_SCALE {node.TEACHER.LR_SCALE:g} wants a second rate")
        if node.MODULE == "last_stage_lora":
            reasons.append("ADAPTKD.MODULE last_stage_lora puts the sums into the teacher after every step")
        return {OUR_TRAINER: "; ".join(reasons)} if reasons else {}

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.node, side = cfg.ADAPTKD, image_size(cfg.DATASET)
        names = f"student {cfg.DISTILLER.STUDENT}", f"teacher {cfg.DISTILLER.TEACHER}"
        check_classes(classes_of(student, side, names[0]), classes_of(self.teacher, side, names[1]), *names)
        self.learns = _learns(self.node)
        self.target = None  # of the teacher, where a module needs one
        self.teacher.requires_grad_(True)
        self.adapter = self._adapter(side, names[1])
        self.teacher.requires_grad_(False)
        for parameter in self.adapted_parameters():
            parameter.requires_grad_(True)

    def _adapter(self, side, name):
        """The module beside the teacher, None where the teacher's own weights learn or nothing does."""
        node = self.node
        if self.learns and node.MODULE in ("logit_adapter", "fc"):
            self.target = teacher_map(self.teacher, side, name)
        if self.learns and node.MODULE == "logit_adapter":
            return LogitAdapter(self.target.source, self.target.channels, node.BOTTLENECK, self.target.classes)
        if self.learns and node.MODULE == "last_stage_lora":
            return LowRank(self.teacher, last_stage_kernels(self.teacher, side, name), node.RANK)
        return None

    def start(self, loaders=None):
        """W_0 is the filled teacher's."""
        if isinstance(self.adapter, LowRank):
            self.adapter.start.remember(self.teacher)

    # ---- parameters and modes ----

    def adapted_parameters(self):
        """What learns beside the student."""
        if not self.learns:
            return []
        learning = self.target.tail_of(self.teacher) if self.node.MODULE == "fc" else self.adapter or self.teacher
        return list(learning.parameters())

    def get_learnable_parameters(self):
        return [*self.student.parameters(), *self.adapted_parameters()]

    def param_groups(self, cfg):
        if not self.learns:
            return self.get_learnable_parameters()
        adapted = {"params": self.adapted_parameters(), "lr_scale": self.node.TEACHER.LR_SCALE}
        return [{"params": list(self.student.parameters())}, adapted]

    def train(self, mode=True):
        super().train(mode)  # the host's, which puts the teacher into eval mode
        if self.learns and self.node.MODULE == "all":
            self.teacher.train(mode)
        return self

    def networks(self):
        (teacher,) = super().networks()
        if isinstance(self.adapter, LogitAdapter):
            adapted = Extended(self.teacher, self.adapter)
            return [teacher, Network("adapter", f"logit adapter on {teacher.title}", adapted, True)]
        return [teacher._replace(moves=self.learns)]

    # ---- the step ----

    def teacher_logits(self, image):
        """z_t"""
        return full(self.teacher(image)[0]) if self.adapter is None else self.adapter(self.teacher, image)

    def forward_train(self, image, target, **kwargs):
        logits, weights, temperature = full(self.student(image)[0]), self.node.TEACHER, self.node.TEMPERATURE
        with torch.set_grad_enabled(self.learns):
            wanted = self.teacher_logits(image)
        losses = {
            "loss_ce": self.node.LOSS.CE_WEIGHT * F.cross_entropy(logits, target),
            "loss_kd": self.node.LOSS.KD_WEIGHT * softened_divergence(logits, wanted.detach(), temperature),
        }
        if self.learns:
            losses["loss_teacher_ce"] = weights.CE_WEIGHT * F.cross_entropy(wanted, target)
            divergence = softened_divergence(wanted, logits.detach(), temperature)
            losses["loss_teacher_kd"] = weights.KD_WEIGHT * divergence
        return logits, losses

    @torch.no_grad()
    def after_step(self):
        """The teacher carries the low-rank terms: it is what evaluation and `adapted` see."""
        if isinstance(self.adapter, LowRank):
            for name, kernel in self.adapter.kernels().items():
                self.teacher.get_parameter(name).copy_(kernel)

    # ---- the run ----

    def after_epoch(self, epoch, loader):
        return EpochReport(moving_top1(self.networks(), loader))

    def constants(self):
        return dict(self.adapter.start.items()) if isinstance(self.adapter, LowRank) else {}


def _learns(node) -> bool:
    return node.MODULE != "none" and node.TEACHER.LR_SCALE > 0
