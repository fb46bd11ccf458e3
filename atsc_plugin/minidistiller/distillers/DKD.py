"""Decoupled knowledge distillation: KD's loss taken apart into "is it the label" and "which of the others"."""

import torch
import torch.nn.functional as F

from ._base import Distiller


def dkd_loss(logits_student, logits_teacher, target, alpha, beta, temperature):
    """T^2 * (alpha * KL(b_t || b_s) + beta * KL(q_t || q_s)), means over the batch, with p = softmax(z / T):

    b = (p_y, 1 - p_y), the label y against the rest; q = softmax of z / T over the classes other than y.
    """
    classes = logits_student.shape[1]
    # Turn every row so that its label comes first: the two parts are then plain slices, and all stays in logarithms.
    label_first = (target.reshape(-1, 1) + torch.arange(classes, device=target.device)) % classes

    def parts(logits):
        turned = logits.gather(1, label_first) / temperature
        log_p = F.log_softmax(turned, dim=1)
        label_or_not = torch.stack([log_p[:, 0], log_p[:, 1:].logsumexp(dim=1)], dim=1)
        return label_or_not, F.log_softmax(turned[:, 1:], dim=1)

    tckd, nckd = (
        F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        for student, teacher in zip(parts(logits_student), parts(logits_teacher), strict=True)
    )
    return temperature**2 * (alpha * tckd + beta * nckd)


class DKD(Distiller):
    """Decoupled Knowledge Distillation (Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv 2203.08679).

    The loss fades in linearly over the first WARMUP epochs.
    """

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        self.ce_weight = cfg.DKD.CE_WEIGHT
        self.alpha = cfg.DKD.ALPHA
        self.beta = cfg.DKD.BETA
        self.temperature = cfg.DKD.T
        self.warmup = cfg.DKD.WARMUP

    def forward_train(self, image, target, epoch, **kwargs):
        logits, _ = self.student(image)
        with torch.no_grad():
            logits_teacher, _ = self.teacher(image)
        loss_dkd = dkd_loss(logits, logits_teacher, target, self.alpha, self.beta, self.temperature)
        return logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits, target),
            "loss_kd": min(epoch / self.warmup, 1.0) * loss_dkd,
        }
