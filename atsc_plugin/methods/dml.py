"""DML: two networks learn from the labels and from each other's predictions."""

from __future__ import annotations

import torch.nn.functional as F

from atsc_plugin.losses import full, softened_divergence
from atsc_plugin.methods.base import Key, method
from atsc_plugin.methods.co_training import LearningTeacher, start_keys


def mutual_keys(node: str, temperature: float) -> tuple[Key, ...]:
    """The keys of DML and of every method that is DML and something more."""
    return (
        Key(f"{node}.LOSS.CE_WEIGHT", 1.0, "weight of both networks' CE", minimum=0.0),
        Key(f"{node}.LOSS.KD_WEIGHT", 1.0, "weight of what the student learns from the teacher", minimum=0.0),
        Key(f"{node}.TEMPERATURE", temperature, "T of both divergences", minimum=0.1, symbol="T"),
        Key(
            f"{node}.TEACHER.KD_WEIGHT",
            1.0,
            "weight of what the teacher learns from the student; 0: nothing",
            minimum=0.0,
        ),
        *start_keys(node),
    )


@method("DML")
class DML(LearningTeacher):
    """Deep Mutual Learning (Zhang et al., CVPR 2018, arXiv 1706.00384), with two networks.

    student: CE_WEIGHT * CE(z_s, y) + KD_WEIGHT * T^2 KL(sg(p_t) || p_s)
    teacher: CE_WEIGHT * CE(z_t, y) + TEACHER.KD_WEIGHT * T^2 KL(sg(p_s) || p_t),  p = softmax(z / T)
    No loss of one network reaches the other. Prediction: the student's own.

    Deviations: both networks are moved in one step from the same batch, each with the other's predictions before that
    step. Ours: TEACHER.INIT pretrained, T other than 1, TEACHER.KD_WEIGHT (0: the teacher learns the labels alone).
    """

    NODE = "DML"
    KEYS = mutual_keys("DML", 1.0)

    def forward_train(self, image, target, **kwargs):
        logits, wanted = full(self.student(image)[0]), full(self.teacher(image)[0])
        losses = self.student_losses(logits, wanted.detach(), target)
        return logits, losses | self.teacher_losses(logits.detach(), wanted, target)

    def student_losses(self, logits, wanted, target):
        """They move the student."""
        weights = self.node.LOSS
        return {
            "loss_ce": weights.CE_WEIGHT * F.cross_entropy(logits, target),
            "loss_kd": weights.KD_WEIGHT * self.student_divergence(logits, wanted),
        }

    def teacher_losses(self, logits, wanted, target, *figures):
        """They move the teacher, whose logits are `wanted`; FIGURES are counted beside its hits."""
        self.count(target, [wanted], *figures)
        divergence = softened_divergence(wanted, logits, self.node.TEMPERATURE)
        return {
            "loss_teacher_ce": self.node.LOSS.CE_WEIGHT * F.cross_entropy(wanted, target),
            "loss_teacher_kd": self.node.TEACHER.KD_WEIGHT * divergence,
        }

    def student_divergence(self, logits, wanted):
        """What the student learns from the teacher's logits, before its weight."""
        return softened_divergence(logits, wanted, self.node.TEMPERATURE)
