"""SimKD: the student learns the teacher's last map and predicts through the teacher's classifier."""

import torch
import torch.nn.functional as F

from atsc_plugin.distillers.deployed import DeployedStudent, modules_of
from atsc_plugin.distillers.parts import (
    align,
    classifier_of,
    pool,
    projector,
    student_map,
    teacher_map,
    unused_parameters,
)
from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import Distiller, image_size


def feature_loss(projected, target):
    """mse(P(F_s), F_t) = mean over images, channels and positions of (P(F_s) - F_t)^2"""
    return F.mse_loss(projected, target)


class SimKD(Distiller):
    """Knowledge Distillation with the Reused Teacher Classifier (Chen et al., CVPR 2022, arXiv 2203.14001).

    loss = FEAT_WEIGHT * mse(P(F_s), F_t), the larger map average-pooled to the smaller one's size;
    prediction = C_t(pool(P(F_s))). The teacher is frozen and in eval mode.

    Deviation from the released code: the student's own head, which no loss reaches, is frozen and not deployed; there
    it takes part with gradients of zero and so is changed by weight decay alone. The prediction does not differ.
    """

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        size = image_size(cfg.DATASET.TYPE)
        self.feature_weight = cfg.SIMKD.LOSS.FEAT_WEIGHT
        self.teacher_facts = teacher_map(teacher, size, f"teacher {cfg.DISTILLER.TEACHER}")
        self.student_facts = student_map(student, size, f"student {cfg.DISTILLER.STUDENT}")
        self.map_size = min(self.teacher_facts.size, self.student_facts.size)
        if classifier_of(student).out_features != self.classifier.out_features:
            raise ModelRefused(
                f"student {cfg.DISTILLER.STUDENT} has {classifier_of(student).out_features} classes, teacher "
                f"{cfg.DISTILLER.TEACHER} {self.classifier.out_features}; expected the same, since the student "
                "predicts through the teacher's classifier. Use a teacher of the same data."
            )
        self.projector = projector(
            self.student_facts.channels,
            self.teacher_facts.channels,
            cfg.SIMKD.PROJECTOR.FACTOR,
            "SIMKD.PROJECTOR.FACTOR",
        )
        self.unused = unused_parameters(student, self.student_facts.source, size)
        for name in self.unused:
            student.get_parameter(name).requires_grad_(False)
        teacher.requires_grad_(False)

    @property
    def classifier(self):
        """The teacher's classifier, which is the student's as well."""
        return classifier_of(self.teacher)

    def get_learnable_parameters(self):
        used = [p for name, p in self.student.named_parameters() if name not in self.unused]
        return used + list(self.projector.parameters())

    def get_extra_parameters(self):
        return sum(p.numel() for p in self.projector.parameters())

    def forward_train(self, image, target, **kwargs):
        student_features = self.student_facts.source(self.student, image)[1]
        with torch.no_grad():
            teacher_features = self.teacher_facts.source(self.teacher, image)[1]
        projected = self.projector(align(student_features, self.map_size))
        loss = self.feature_weight * feature_loss(projected, align(teacher_features, self.map_size))
        with torch.no_grad():  # the prediction is only reported: no loss reaches it
            logits = self.classifier(pool(projected))
        return logits, {"loss_feat": loss}

    def forward_test(self, image):
        return self.deployed()(image)

    def deployed(self):
        """The student as it leaves: it shares its modules with this distiller."""
        return DeployedStudent(self.student, self.student_facts.source, self.map_size, self.projector, self.classifier)

    def unused_modules(self):
        """The student's modules behind the projected map, absent from what is stored for deployment."""
        return modules_of(self.unused)
