"""SWITOKD: mutual learning in which the teacher pauses while it is too far ahead of the student."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from atsc_plugin.contract import EAGER_STEP, IDLE_PARAMETERS
from atsc_plugin.engine import distributed
from atsc_plugin.methods.base import method
from atsc_plugin.methods.dml import DML, mutual_keys


def distances(logits: Tensor, wanted: Tensor, target: Tensor) -> Tensor:
    """(G, s, t) of each image: G = ||p_s - p_t||_1, s = ||p_s - y||_1, t = ||p_t - y||_1, p = softmax(z)"""
    student, teacher, labels = F.softmax(logits, 1), F.softmax(wanted, 1), F.one_hot(target, logits.shape[1])
    return torch.stack([(a - b).abs().sum(1) for a, b in ((student, teacher), (student, labels), (teacher, labels))])


def threshold(student: Tensor, teacher: Tensor) -> Tensor:
    """delta = s - exp(-t / (s + t)) * t"""
    return student - torch.exp(-teacher / (student + teacher)) * teacher


def pauses(gap: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """Whether the teacher pauses: G > delta, and t < s"""
    return (gap > threshold(student, teacher)) & (teacher < student)


@method("SWITOKD", "SwitOKD")
class SwitOKD(DML):
    """Switchable Online Knowledge Distillation (Qian et al., ECCV 2022; github.com/hfutqian/SwitOKD at a3f9623).

    DML, whose teacher is paused in every step in which G > delta and t < s, with the batch's means of G, s and t:
    G = ||p_s - p_t||_1, s = ||p_s - y||_1, t = ||p_t - y||_1, delta = s - exp(-t / (s + t)) * t, p = softmax(z).
    A paused teacher teaches and moves its BN statistics; its weights, momentum and weight decay rest. The condition
    t < s is of the released code, which has T 1 as well. The decision is the method's one wait for the device a step.

    Deviations: one optimizer (the released code has one a network), and the last epoch where it keeps the best on the
    test images. Several ranks decide together. Ours: TEACHER.INIT pretrained.
    """

    NODE = "SWITOKD"
    KEYS = mutual_keys("SWITOKD", 1.0)
    PER_IMAGE = False  # one decision a batch
    HARD_LABELS = True
    HOST_READS = 1  # the decision
    FIGURES = ("teacher_paused",)  # share of the images in whose batch the teacher paused

    @classmethod
    def needs(cls, cfg):
        pauses = "SWITOKD pauses its teacher in some steps"
        return {**super().needs(cfg), IDLE_PARAMETERS: pauses, EAGER_STEP: pauses}

    def forward_train(self, image, target, **kwargs):
        self.refuse_replicas("would decide apart")
        return super().forward_train(image, target, **kwargs)

    def teacher_losses(self, logits, wanted, target):
        """Of a paused teacher they are logged and have no gradient: a weight without gradient stays as it is."""
        paused = self.pauses(logits, wanted.detach(), target)
        losses = super().teacher_losses(logits, wanted, target, torch.full_like(target, paused))
        return {name: loss.detach() for name, loss in losses.items()} if paused else losses

    def pauses(self, logits: Tensor, wanted: Tensor, target: Tensor) -> bool:
        """One decision for the batch of all ranks."""
        sums = distributed.total(distances(logits, wanted, target).double().sum(1))
        return bool(pauses(*sums / (len(target) * distributed.world())))
