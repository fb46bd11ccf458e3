"""DCM: mutual learning between the classifiers of two networks, those on their hidden stages included."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import image_size
from atsc_plugin.losses import full, softened_divergence
from atsc_plugin.methods.base import Key, method
from atsc_plugin.methods.dml import DML, mutual_keys
from atsc_plugin.networks.stages import StageFacts, convolutions_behind, stage_facts

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


class ResidualBlock(nn.Module):
    """x -> s + W_2 a(W_1 h), h = a(x), a = ReLU(BN(.)); s = x, or a 1x1 convolution of h where the shape changes.

    The block of wide residual networks (Zagoruyko and Komodakis, BMVC 2016).
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.enter, self.middle = (nn.Sequential(nn.BatchNorm2d(width), nn.ReLU()) for width in (before, after))
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        changes = stride != 1 or before != after
        self.shortcut = nn.Conv2d(before, after, 1, stride, bias=False) if changes else None
        for layer in self.children():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        skip = x if self.shortcut is None else self.shortcut(entered)
        return skip + self.second(self.middle(self.first(entered)))


def full_head(facts: StageFacts, depths: list[int], stage: int) -> nn.Sequential:
    """The stages behind `stage` once more, then BN, ReLU, average, linear; `depths` are every stage's blocks.

    On the last hidden stage: the last stage at double width. On the one before it: both, the last with half the blocks.
    """
    last, (width, size, _), layers = len(facts.shapes) - 1, facts.shapes[stage], []
    if stage == last - 1:
        again = [(last, 2, depths[last])]
    else:
        again = [(last - 1, 1, depths[last - 1]), (last, 1, max(1, depths[last] // 2))]
    for number, wider, depth in again:
        channels, height, _ = facts.shapes[number]
        for stride in [max(1, size // height), *[1] * (depth - 1)]:
            layers.append(ResidualBlock(width, wider * channels, stride))
            width = wider * channels
        size = height
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, facts.classes))


def block_counts(network: nn.Module, facts: StageFacts, side: int) -> list[int]:
    """How many blocks of two convolutions larger than 1x1 lie before each map of feats and behind the one before."""
    behind = []
    for index in range(len(facts.shapes)):
        layers = map(network.get_submodule, convolutions_behind(network, index, side))
        behind.append(sum(max(layer.kernel_size) > 1 for layer in layers))
    return [1, *(max(1, (more - fewer) // 2) for more, fewer in zip(behind, behind[1:], strict=False))]


def heads_on(network: nn.Module, facts: StageFacts, kind: str, side: int) -> nn.ModuleDict:
    """A head on each hidden stage, by the stage's index in feats; none for the kind none."""
    if kind == "none":
        return nn.ModuleDict()
    stages = hidden_stages(facts)
    if kind == "light":
        return nn.ModuleDict({str(stage): light_head(facts.shapes[stage][0], facts.classes) for stage in stages})
    depths = block_counts(network, facts, side)
    return nn.ModuleDict({str(stage): full_head(facts, depths, stage) for stage in stages})


@method("DCM")
class DCM(DML):
    """Dense Cross-layer Mutual-distillation (Yao and Sun, ECCV 2020, arXiv 2008.07816; sundw2014/DCM at df2f5f6).

    student: sum over its heads i of [CE_WEIGHT * CE(z_i, y) + KD_WEIGHT * sum over linked j of T^2 KL(sg(q_j) || p_i)]
    teacher: the same with the roles exchanged and TEACHER.KD_WEIGHT; both distributions smoothed by SMOOTH.
    Heads are the final classifier and one on each of the last two hidden stages; these are dropped at deployment.
    Three links into a head are 3 x KD to the mean probability: KD_WEIGHT 1 is three times DML's. LINKS final with HEADS
    none and SMOOTH 0 is DML. Controls: KD weights 0 (deep supervision alone), DML with KD weights 3.

    HEADS full are the released ones on wide residual networks: the network's further stages again, the last at half
    depth or at double width. Network and heads together cost 2.8 times the network. On other networks they keep these
    blocks and take the widths, sizes and numbers of blocks of that network's stages (ours).

    Deviations: HEADS light (3x3 convolution, BN, ReLU, average, linear), the default, are ours and cheaper. The rate
    falls at the end of an epoch, not its start.
    """

    NODE = "DCM"
    KEYS = (
        *mutual_keys("DCM", 1.0),
        Key(
            "DCM.HEADS",
            "light",
            "auxiliary classifiers on the last two hidden stages of each network. light: 3x3 convolution, BN, ReLU, "
            "average, linear (ours); full: the network's further stages again, as released; none: no auxiliary ones",
            choices=("light", "full", "none"),
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
        wanted, side = self.node.HEADS, image_size(cfg.DATASET)
        names = f"student {cfg.DISTILLER.STUDENT}", f"teacher {cfg.DISTILLER.TEACHER}"
        self.student_heads, self.teacher_heads = (
            heads_on(network, stage_facts(network, side, name), wanted, side)
            for network, name in zip((self.student, self.teacher), names, strict=True)
        )
        counts = len(self.student_heads) + 1, len(self.teacher_heads) + 1
        if wanted != "none" and 1 in counts:
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
        ours = _outputs(self.student, self.student_heads, image)
        theirs = _outputs(self.teacher, self.teacher_heads, image)
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
