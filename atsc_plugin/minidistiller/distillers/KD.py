"""Knowledge distillation on softened logits; registered as "KD", the baseline that other methods are read against."""

import torch
import torch.nn.functional as F

from ._base import Distiller


def kd_loss(logits_student, logits_teacher, temperature):
    """T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), mean over the batch.

    T^2 keeps the gradient's size when T changes.
    """
    student, teacher = (F.log_softmax(logits / temperature, dim=1) for logits in (logits_student, logits_teacher))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class KD(Distiller):
    """Distilling the Knowledge in a Neural Network (Hinton, Vinyals, Dean, 2015, arXiv 1503.02531)."""

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.temperature = cfg.KD.TEMPERATURE
        self.ce_weight = cfg.KD.LOSS.CE_WEIGHT
        self.kd_weight = cfg.KD.LOSS.KD_WEIGHT

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        return logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits, target),
            "loss_kd": self.kd_weight * kd_loss(logits, logits_teacher, self.temperature),
        }
