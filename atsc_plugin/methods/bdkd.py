"""BDKD: mutual learning in which each image's forward and reverse divergence are weighted by the entropy gap."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atsc_plugin.losses import full
from atsc_plugin.methods.base import Key, method
from atsc_plugin.methods.dml import DML, mutual_keys


def divergences(logits: Tensor, wanted: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(KL(p_t || p_s), KL(p_s || p_t)) of each image, p = softmax(z / T)"""
    student, teacher = (F.log_softmax(full(each) / temperature, dim=1) for each in (logits, wanted))
    each = [F.kl_div(a, b, reduction="none", log_target=True) for a, b in ((student, teacher), (teacher, student))]
    return each[0].sum(1), each[1].sum(1)


def entropy(logits: Tensor, temperature: float) -> Tensor:
    """H = -sum_c p_c log p_c of each image, p = softmax(z / T)"""
    log_p = F.log_softmax(full(logits) / temperature, dim=1)
    return -(log_p.exp() * log_p).sum(1)


def balance(student: Tensor, teacher: Tensor, rule: str, nu: float) -> tuple[Tensor, Tensor]:
    """(f, r) of each image, the weights of KL(p_t || p_s) and KL(p_s || p_t), from the entropies H_s and H_t.

    entropy: (1, nu) where H_s > H_t, else (nu, 1);  gap: r = 1 + nu * sigmoid(H_s - H_t), f = 2 + nu - r;
    jeffreys: (1, 1);  forward: (1, 0);  reverse: (0, 1)
    """
    one = torch.ones_like(student)
    if rule == "entropy":
        vague = student > teacher  # the reverse divergence sharpens the student
        return torch.where(vague, 1.0, nu), torch.where(vague, nu, 1.0)
    if rule == "gap":
        reverse = 1 + nu * torch.sigmoid(student - teacher)
        return 2 + nu - reverse, reverse
    return one * (rule != "reverse"), one * (rule != "forward")


@method("BDKD", "BD-KD")
class BDKD(DML):
    """OUR definition of BD-KD: Balancing the Divergences for Online Knowledge Distillation (2022, arXiv 2212.12965).

    student: CE_WEIGHT * CE(z_s, y) + KD_WEIGHT * T^2 mean_i [f_i KL(p_t || p_s)_i + r_i KL(p_s || p_t)_i], p_t held
    teacher: as in DML. f_i and r_i follow from the entropies of p_s and p_t by RULE and carry no gradient.

    From the paper: both networks learn, online; the student's two divergences are weighted for each image. Ours, since
    we could not read them there: the rules, NU, T, all weights. RULE forward is DML; forward, reverse and jeffreys
    are the controls. The method's claim is calibration: read ECE and NLL beside top-1.
    """

    NODE = "BDKD"
    KEYS = (
        *mutual_keys("BDKD", 4.0),
        Key(
            "BDKD.RULE",
            "entropy",
            "weights (f, r) of KL(p_t||p_s) and KL(p_s||p_t). entropy: (1, NU) where the student is vaguer than the "
            "teacher, else (NU, 1); gap: r = 1 + NU sigmoid(H_s - H_t), f = 2 + NU - r; jeffreys: (1, 1); forward: "
            "(1, 0), DML; reverse: (0, 1)",
            choices=("entropy", "gap", "jeffreys", "forward", "reverse"),
        ),
        Key("BDKD.NU", 2.0, "weight of the favoured divergence", minimum=0.0, symbol="nu"),
    )
    FIGURES = ("student_entropy", "teacher_entropy", "student_vaguer")  # means of H_s, H_t and of H_s > H_t

    def student_divergence(self, logits, wanted):
        if self.node.RULE == "forward":
            return super().student_divergence(logits, wanted)
        temperature = self.node.TEMPERATURE
        weights = balance(*self.entropies(logits, wanted), self.node.RULE, self.node.NU)
        each = zip(weights, divergences(logits, wanted, temperature), strict=True)
        return sum(weight * divergence for weight, divergence in each).mean() * temperature**2

    @torch.no_grad()
    def entropies(self, logits, wanted):
        """(H_s, H_t) of each image."""
        return [entropy(each, self.node.TEMPERATURE) for each in (logits, wanted)]

    def teacher_losses(self, logits, wanted, target):
        student, teacher = self.entropies(logits, wanted)
        return super().teacher_losses(logits, wanted, target, student, teacher, student > teacher)
