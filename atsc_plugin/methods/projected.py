"""Baselines of equal architecture: the network that SimKD and ATSC deploy, with a classifier of its own.

A gain of SimKD over KD may come from the projector's depth alone. These say what the same backbone, projector and
classifier reach when they are trained plainly, or by KD.
"""

import torch
import torch.nn.functional as F

from atsc_plugin.losses import full, pool, softened_divergence
from atsc_plugin.methods.base import method
from atsc_plugin.methods.shared_classifier import SharedClassifier


@method("PROJECTED_VANILLA", "projected vanilla")
class ProjectedVanilla(SharedClassifier):
    """loss = CE(C(pool(P(F_s))), y) with C a fresh linear layer of the shape of the teacher's. Ours, a control.

    The teacher only gives the projector's and the classifier's widths and the map's side; it teaches nothing and is not
    run. The projector is SimKD's, by SIMKD.PROJECTOR.FACTOR; the student's own head is frozen and not deployed.
    """

    @classmethod
    def problems(cls, cfg):
        count = cfg.SIMKD.PROJECTOR.COUNT
        return [] if count == 1 else [f"SIMKD.PROJECTOR.COUNT is {count}, but a projected student has one. Use 1."]

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg, own_classifier=True)
        self.freeze_unused()
        self.teacher.requires_grad_(False)

    def get_learnable_parameters(self):
        return self.student_parameters() + list(self.head.parameters())

    def student_logits(self, image):
        """C(pool(P(F_s)))"""
        (branch,) = self.branches
        return full(branch.classifier(pool(branch.project(self.read_student(image)[1]))))

    def forward_train(self, image, target, **kwargs):
        logits = self.student_logits(image)
        return logits, {"loss_ce": F.cross_entropy(logits, target)}


@method("PROJECTED_KD", "projected KD")
class ProjectedKD(ProjectedVanilla):
    """loss = CE_WEIGHT * CE(z, y) + KD_WEIGHT * T^2 KL(softmax(z_t / T) || softmax(z / T)), z = C(pool(P(F_s))).

    Distilling the Knowledge in a Neural Network (Hinton et al., 2015, arXiv 1503.02531) with the host's KD keys,
    on the projected student.
    """

    @classmethod
    def nodes(cls):
        return (cls.NODE, "KD")

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.weights, self.temperature = cfg.KD.LOSS, cfg.KD.TEMPERATURE

    def forward_train(self, image, target, **kwargs):
        logits = self.student_logits(image)
        with torch.no_grad():
            teacher_logits, _ = self.teacher(image)
        return logits, {
            "loss_ce": self.weights.CE_WEIGHT * F.cross_entropy(logits, target),
            "loss_kd": self.weights.KD_WEIGHT * softened_divergence(logits, teacher_logits, self.temperature),
        }
