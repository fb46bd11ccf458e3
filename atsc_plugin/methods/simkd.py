"""SimKD: the student learns the teacher's last map and predicts through the teacher's classifier."""

import torch
import torch.nn.functional as F

from atsc_plugin.methods.shared_classifier import SharedClassifier
from atsc_plugin.methods.teacher_list import networks_of
from atsc_plugin.networks.deployed import ensemble_of
from atsc_plugin.networks.maps import pool, scale_gradient


def feature_loss(projected, target):
    """mse(P(F_s), F_t) = mean over images, channels and positions of (P(F_s) - F_t)^2"""
    return F.mse_loss(projected, target)


def part_name(name, number, count):
    """A loss part of one branch: plain when there is one, loss_feat_1, loss_feat_2, ... for several."""
    return name if count == 1 else f"{name}_{number + 1}"


class SimKD(SharedClassifier):
    """Knowledge Distillation with the Reused Teacher Classifier (Chen et al., CVPR 2022, arXiv 2203.14001).

    loss = FEAT_WEIGHT * mse(P(F_s), F_t), the larger map average-pooled to the smaller one's size;
    prediction = C_t(pool(P(F_s))). The teacher is frozen and in eval mode.

    Deviation from the released code: the student's own head, which no loss reaches, is frozen and not deployed; there
    it takes part with gradients of zero and so is changed by weight decay alone. The prediction does not differ.
    """

    def __init__(self, student, teacher, cfg, projectors=1):
        super().__init__(student, teacher, cfg, cfg.SIMKD, "SIMKD", projectors)
        self.feature_weight = cfg.SIMKD.LOSS.FEAT_WEIGHT
        self.freeze_unused()
        self.teacher.requires_grad_(False)

    def get_learnable_parameters(self):
        return self.student_parameters()

    def forward_train(self, image, target, **kwargs):
        _, feature_map = self.student_map(image)
        branches = self.branches()
        with torch.no_grad():
            maps = [
                facts.source(network, image)[1]
                for network, facts in zip(networks_of(self.teacher), self.maps, strict=True)
            ]
        losses, logits = {}, []
        for number, branch in enumerate(branches):
            projected = branch.project(scale_gradient(feature_map, 1 / len(branches)))
            loss = self.feature_weight * feature_loss(projected, branch.wanted(maps[branch.number]))
            losses[part_name("loss_feat", number, len(branches))] = loss
            with torch.no_grad():  # the prediction is only reported: no loss reaches it
                logits.append(branch.classifier(pool(projected)))
        return ensemble_of(logits, self.ensemble), losses
