"""DCM: mutual learning between the classifiers of two networks, those on their hidden stages included."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from atsc_plugin.errors import ModelRefused
from atsc_plugin.losses import full, softened_divergence
from atsc_plugin.methods.base import Key, method
from atsc_plugin.methods.dml import DML, mutual_keys
from atsc_plugin.networks.stages import StageFacts

MOST_HEADS = 2  # auxiliary ones a network


def smoothed_divergence(logits: Tensor, wanted: Tensor, temperature: float, smooth: float) -> Tensor:
    """T^2 * KL(q || p), mean over images; p = (softmax(z / T) + e) / (1 + C e) with e `smooth`, q the same of `wanted`.

    It caps the divergence of large logit gaps; e 0 is softened_divergence.
    """
    if smooth == 0:
        return softened_divergence(logits, wanted, temperature)
    norm = 1 + logits.shape[1] * smooth
    log_p, log_q = (((F.softmax(full(z) / temperature, 1) + smooth) / norm).log() for z in (logits, wanted))
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def links(rule: str, ours: int, theirs: int) -> list[tuple[int, int]]:
    """[(head of one network, head of the other)] that learn from each other; the last head of each is the final one.

    dense: every pair;  same: pairs of the same stage;  final: the two final heads alone
    """
    pairs = [(i, j) for i in range(ours) for j in range(theirs)]
    wanted = {"dense": pairs, "same": [(i, i) for i in range(ours)], "final": [(ours - 1, theirs - 1)]}
    return wanted[rule]


def hidden_stages(facts: StageFacts) -> list[int]:
    """The last two stages before the final one."""
    return facts.all_but_the_stem()[:-1][-MOST_HEADS:]


def light_head(channels: int, classes: int) -> nn.Sequential:
    """3x3 convolution, BN, ReLU, average, linear."""
    layers = [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def heads_on(facts: StageFacts) -> nn.ModuleDict:
    """A light head on each hidden stage, by the stage's index in feats."""
    return nn.ModuleDict(
        {str(stage): light_head(facts.shapes[stage][0], facts.classes) for stage in hidden_stages(facts)}
    )


@method("DCM")
class DCM(DML):
    """Dense Cross-layer Mutual-distillation (Yao and Sun, ECCV 2020, arXiv 2008.07816; sundw2014/DCM at df2f5f6).

    student: sum over its heads i of [CE_WEIGHT * CE(z_i, y) + KD_WEIGHT * sum over linked j of T^2 KL(sg(q_j) || p_i)]
    teacher: the same with the roles exchanged and TEACHER.KD_WEIGHT; both distributions smoothed by SMOOTH.
    Heads are the final classifier and one on each of the last two hidden stages; these are dropped at deployment.
    Three links into a head are 3 x KD to the mean probability: KD_WEIGHT 1 is three times DML's. LINKS final with HEADS
    none and SMOOTH 0 is DML. Controls: KD weights 0 (deep supervision alone), DML with KD weights 3.

    Deviations: HEADS light (3x3 convolution, BN, ReLU, average, linear) are ours and cheaper; the paper's heads copy
    the network's further stages and cost 2.8 times the network. The rate falls at the end of an epoch, not its start.
    """

    NODE = "DCM"
    KEYS = (
        *mutual_keys("DCM", 1.0),
        Key(
            "DCM.HEADS",
            "light",
            "auxiliary classifiers on the last two hidden stages of each network. light: 3x3 convolution, BN, ReLU, "
            "average, linear (ours); none: the final classifiers alone",
            choices=("light", "none"),
        ),
        Key(
            "DCM.LINKS",
            "dense",
            "which heads learn from each other across the networks. dense: every pair; same: of the same stage; "
            "final: the final ones alone",
            choices=("dense", "same", "final"),
        ),
        Key("DCM.SMOOTH", 1.0e-8, "e, added to every probability in the divergences, as released", minimum=0.0),
    )

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        wanted = self.node.HEADS == "light"
        facts = (self.student_stages, self.teacher_stages)
        self.student_heads, self.teacher_heads = (heads_on(each) if wanted else nn.ModuleDict() for each in facts)
        counts = len(self.student_heads) + 1, len(self.teacher_heads) + 1
        names = f"student {cfg.DISTILLER.STUDENT}", f"teacher {cfg.DISTILLER.TEACHER}"
        if wanted and 1 in counts:
            raise ModelRefused(f"{names[counts.index(1)]} has no hidden stage for a head. Use DCM.HEADS none.")
        if self.node.LINKS == "same" and counts[0] != counts[1]:
            raise ModelRefused(
                f"DCM.LINKS same pairs heads of equal stages, but {names[0]} has {counts[0]} heads and {names[1]} "
                f"{counts[1]}. Use DCM.LINKS dense."
            )
        self.pairs = links(self.node.LINKS, *counts)

    def student_side(self):
        return super().student_side() + list(self.student_heads.parameters())

    def other_side(self):
        return super().other_side() + list(self.teacher_heads.parameters())

    def forward_train(self, image, target, **kwargs):
        ours, theirs = (
            _outputs(self.student, self.student_heads, image),
            _outputs(self.teacher, self.teacher_heads, image),
        )
        self.count(target, theirs[-1:])
        node, weights = self.node, self.node.LOSS
        into_theirs = [(j, i) for i, j in self.pairs]
        return ours[-1], {
            "loss_ce": weights.CE_WEIGHT * sum(F.cross_entropy(z, target) for z in ours),
            "loss_kd": weights.KD_WEIGHT * self.divergence(ours, theirs, self.pairs),
            "loss_teacher_ce": weights.CE_WEIGHT * sum(F.cross_entropy(z, target) for z in theirs),
            "loss_teacher_kd": node.TEACHER.KD_WEIGHT * self.divergence(theirs, ours, into_theirs),
        }

    def divergence(self, learning, wanted, pairs):
        """sum over the pairs (i, j) of T^2 KL(sg(q_j) || p_i)"""
        settings = self.node.TEMPERATURE, self.node.SMOOTH
        return sum(smoothed_divergence(learning[i], wanted[j].detach(), *settings) for i, j in pairs)


def _outputs(network: nn.Module, heads: nn.ModuleDict, image: Tensor) -> list[Tensor]:
    """The logits of the hidden stages' heads in order, then the network's own."""
    logits, feats = network(image)
    return [*(full(head(feats["feats"][int(stage)])) for stage, head in heads.items()), full(logits)]
