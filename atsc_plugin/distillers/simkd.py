"""SimKD: the student learns the teacher's last map and predicts through the teacher's classifier."""

import torch
import torch.nn.functional as F

from atsc_plugin.distillers.parts import align, pool
from atsc_plugin.distillers.shared_classifier import SharedClassifier


def feature_loss(projected, target):
    """mse(P(F_s), F_t) = mean over images, channels and positions of (P(F_s) - F_t)^2"""
    return F.mse_loss(projected, target)


class SimKD(SharedClassifier):
    """Knowledge Distillation with the Reused Teacher Classifier (Chen et al., CVPR 2022, arXiv 2203.14001).

    loss = FEAT_WEIGHT * mse(P(F_s), F_t), the larger map average-pooled to the smaller one's size;
    prediction = C_t(pool(P(F_s))). The teacher is frozen and in eval mode.

    Deviation from the released code: the student's own head, which no loss reaches, is frozen and not deployed; there
    it takes part with gradients of zero and so is changed by weight decay alone. The prediction does not differ.
    """

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg, cfg.SIMKD.PROJECTOR.FACTOR, "SIMKD.PROJECTOR.FACTOR")
        self.feature_weight = cfg.SIMKD.LOSS.FEAT_WEIGHT
        self.freeze_unused()
        teacher.requires_grad_(False)

    def get_learnable_parameters(self):
        return self.student_parameters()

    def forward_train(self, image, target, **kwargs):
        _, projected = self.projected(image)
        with torch.no_grad():
            teacher_features = self.teacher_facts.source(self.teacher, image)[1]
        loss = self.feature_weight * feature_loss(projected, align(teacher_features, self.map_size))
        with torch.no_grad():  # the prediction is only reported: no loss reaches it
            logits = self.classifier(pool(projected))
        return logits, {"loss_feat": loss}
