"""SHAKE: a shadow head on the frozen teacher's maps learns beside the student, and is what the student learns from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import image_size
from atsc_plugin.losses import full, pool, softened_divergence, through_frozen
from atsc_plugin.methods.base import EpochReport, Key, Method, Network, method
from atsc_plugin.methods.monitor import Extended, moving_top1
from atsc_plugin.networks.maps import check_classes, classes_of, teacher_map
from atsc_plugin.networks.stages import check_stages, stage_facts

SCALE, EPS = 3.1415, 1e-7  # of the released code


def normalised(logits, how):
    """layer: 3.1415 (z - mean z) / sqrt(var z + 1e-7), var over the C classes divided by C, as released;

    zscore: (z - mean z) / (std z + 1e-7), with C - 1 (arXiv 2403.01427); none: z
    """
    if how == "layer":
        return F.layer_norm(logits, logits.shape[1:], eps=EPS) * SCALE
    if how == "zscore":
        return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + EPS)
    return logits


class ShadowHead(nn.Module):
    """(teacher, image) -> (z_sh, z): x_1 = F_1, x_k = R_k(x_{k-1}) + L_k(F_k), z_sh = C_t(pool(O(x_K))), C_t held.

    F_1 ... F_K are the maps of the teacher's stages. R_k is a 3x3 convolution that takes a map to the next one's size,
    L_k a 1x1, O a 3x3 to the width of the classifier's input; each without a bias, with BN and ReLU behind it.
    """

    def __init__(self, shapes, stages, target, name):
        from torchvision.ops import Conv2dNormActivation  # half a second that no other method should wait for

        super().__init__()
        self.stages, self.target = list(stages), target
        maps = [shapes[stage] for stage in stages]
        strides = [max(1, large[1] // small[1]) for large, small in zip(maps, maps[1:], strict=False)]
        for stage, large, small, stride in zip(stages[1:], maps, maps[1:], strides, strict=False):
            if -(-large[1] // stride) != small[1]:
                raise ModelRefused(
                    f"{name} has a map of {small[1]} pixels in stage {stage} behind one of {large[1]}; SHAKE's shadow "
                    "head needs maps that shrink by whole steps. List others, shallow ones first: SHAKE.SHADOW.STAGES."
                )
        widths = [shape[0] for shape in maps]
        self.reduce = nn.ModuleList(
            Conv2dNormActivation(before, after, 3, stride)
            for before, after, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.lateral = nn.ModuleList(Conv2dNormActivation(after, after, 1) for after in widths[1:])
        self.out = Conv2dNormActivation(widths[-1], target.channels, 3)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, teacher, image):
        with torch.no_grad():
            logits, feats = teacher(image)
        x, *others = [feats["feats"][stage] for stage in self.stages]
        for reduce, lateral, feature_map in zip(self.reduce, self.lateral, others, strict=True):
            x = reduce(x) + lateral(feature_map)
        return through_frozen(self.target.tail_of(teacher), pool(self.out(x))), full(logits)


@method("SHAKE")
class SHAKE(Method):
    """Shadow Knowledge Distillation (Li, Jin, NeurIPS 2022), by its code (github.com/lilujunai/SHAKE at 3fa4e11).

    student: CE_WEIGHT * CE(z_s, y) + KD_WEIGHT * T^2 KL(sg(p_sh) || p_s)
    shadow:  CE_WEIGHT * CE(z_sh, y) + KD_WEIGHT * T^2 KL(sg(p_s) || p_sh) + MSE_WEIGHT * mse(z_sh, z)
    The shadow head fuses the frozen teacher's maps and predicts through its classifier, which no loss moves; the
    student does not see the teacher's logits z. The teacher stays in eval mode, the head's BN uses batch statistics.
    Prediction: the student's own logits; the head stays behind.

    NORM: the released code normalises all logits over the classes and multiplies them by 3.1415 before every loss, CE
    included (layer). Raw logits are then fixed up to scale and shift: their accuracy means something, their NLL and ECE
    do not. Ours: none, and zscore, which as in Logit Standardization (Sun et al., CVPR 2024, arXiv 2403.01427) leaves
    CE as it is.

    Deviations: on networks of other than three stages the head fuses all of them, where the released one takes the
    first three (SHADOW.STAGES [1, 2, 3]); the released validation scores normalised logits, which have the same top-1.
    """

    LEAVES_NETWORKS = True
    KEYS = (
        Key("SHAKE.LOSS.CE_WEIGHT", 1.0, "weight of the student's CE", minimum=0.0, symbol="gamma (-r)"),
        Key("SHAKE.LOSS.KD_WEIGHT", 1.0, "weight of what the student learns from the shadow head", minimum=0.0),
        Key("SHAKE.SHADOW.CE_WEIGHT", 1.0, "weight of the shadow head's CE", minimum=0.0),
        Key("SHAKE.SHADOW.KD_WEIGHT", 1.0, "weight of what the shadow head learns from the student", minimum=0.0),
        Key("SHAKE.SHADOW.MSE_WEIGHT", 1.0, "weight of mse(z_sh, z), which holds it at the teacher", minimum=0.0),
        Key(
            "SHAKE.SHADOW.STAGES",
            [],
            "indices into the teacher's feats that the head fuses, shallow ones first; empty: all but the first, the "
            "stem",
        ),
        Key("SHAKE.TEMPERATURE", 4.0, "T of both divergences", minimum=0.1, symbol="kd_T"),
        Key(
            "SHAKE.NORM",
            "layer",
            "logits before the losses. layer: normalised over the classes times 3.1415, as released; zscore: "
            "standardised, except for CE (ours); none: as they are (ours)",
            choices=("layer", "zscore", "none"),
        ),
    )

    @classmethod
    def problems(cls, cfg):
        stages = cfg.SHAKE.SHADOW.STAGES
        whole = all(type(stage) is int and stage >= 0 for stage in stages)
        if whole and list(stages) == sorted(set(stages)):
            return []
        return [f"SHAKE.SHADOW.STAGES: got {stages}, expected rising whole numbers from 0, e.g. [1, 2, 3], or []."]

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.node, side = cfg.SHAKE, image_size(cfg.DATASET)
        names = f"student {cfg.DISTILLER.STUDENT}", f"teacher {cfg.DISTILLER.TEACHER}"
        facts = stage_facts(self.teacher, side, names[1])
        check_classes(classes_of(student, side, names[0]), facts.classes, *names)
        stages = self.node.SHADOW.STAGES or facts.all_but_the_stem()
        check_stages(stages, facts, "SHAKE.SHADOW.STAGES", names[1])
        self.shadow = ShadowHead(facts.shapes, stages, teacher_map(self.teacher, side, names[1]), names[1])
        self.teacher.requires_grad_(False)

    def get_learnable_parameters(self):
        return [*self.student.parameters(), *self.shadow.parameters()]

    def networks(self):
        (teacher,) = super().networks()
        shadow = Extended(self.teacher, self.shadow)
        return [teacher, Network("shadow", f"shadow head on {teacher.title}", shadow, True)]

    def forward_train(self, image, target, **kwargs):
        logits = full(self.student(image)[0])
        raw = logits, *self.shadow(self.teacher, image)
        student, shadow, teacher = (normalised(each, self.node.NORM) for each in raw)
        labelled = (student, shadow) if self.node.NORM == "layer" else raw[:2]
        ce, shadow_ce = (F.cross_entropy(each, target) for each in labelled)
        temperature, own, beside = self.node.TEMPERATURE, self.node.LOSS, self.node.SHADOW
        return logits, {
            "loss_ce": own.CE_WEIGHT * ce,
            "loss_kd": own.KD_WEIGHT * softened_divergence(student, shadow.detach(), temperature),
            "loss_shadow_ce": beside.CE_WEIGHT * shadow_ce,
            "loss_shadow_kd": beside.KD_WEIGHT * softened_divergence(shadow, student.detach(), temperature),
            "loss_shadow_mse": beside.MSE_WEIGHT * F.mse_loss(shadow, teacher),
        }

    def after_epoch(self, epoch, loader):
        return EpochReport(moving_top1(self.networks(), loader))
