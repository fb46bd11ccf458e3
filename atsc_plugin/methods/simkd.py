"""SimKD: the student learns the teacher's last map and predicts through the teacher's classifier."""

from __future__ import annotations

import torch

from atsc_plugin.losses import feature_loss, full, pool, scale_gradient
from atsc_plugin.methods.base import Key, method
from atsc_plugin.methods.shared_classifier import SharedClassifier, projector_keys, term_name
from atsc_plugin.networks.deployed import ensemble_of


@method("SIMKD", "SimKD")
class SimKD(SharedClassifier):
    """Knowledge Distillation with the Reused Teacher Classifier (Chen et al., CVPR 2022, arXiv 2203.14001).

    loss = FEAT_WEIGHT * mse(P(F_s), F_t), the larger map average-pooled to the smaller one's size;
    prediction = C_t(pool(P(F_s))). The teacher is frozen and in eval mode. Ours: networks whose C_t is more than one
    layer or is fed by a vector, and a projector without its last ReLU where F_t has values below zero.

    Deviation from the released code: the student's own head, which no loss reaches, is frozen and not deployed; there
    it takes part with gradients of zero and so is changed by weight decay alone. The prediction does not differ.
    """

    KEYS = (
        Key("SIMKD.LOSS.FEAT_WEIGHT", 1.0, "weight of mse(P(F_s), F_t)", minimum=0.0, symbol="beta (-b)"),
        *projector_keys("SIMKD"),
        Key(
            "SIMKD.PROJECTOR.COUNT",
            1,
            "projectors a teacher, each with its own initial weights, all behind that teacher's classifier: with one "
            "teacher the control for several (SIMKD_MULTI only)",
            minimum=1,
            maximum=64,
        ),
        Key(
            "SIMKD.ENSEMBLE",
            "logits",
            "SIMKD_MULTI's prediction: mean of the logits, or of the probs",
            choices=("logits", "probs"),
        ),
    )
    MULTI = "SIMKD_MULTI"
    GIVES_WAY = False

    @classmethod
    def problems(cls, cfg):
        count = cfg.SIMKD.PROJECTOR.COUNT
        if count == 1 or cls is not SimKD:
            return []
        return [f"SIMKD.PROJECTOR.COUNT is {count}, but SIMKD has one projector. Use 1 or DISTILLER.TYPE {cls.MULTI}."]

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg, projectors=cfg.SIMKD.PROJECTOR.COUNT)
        self.feature_weight = cfg.SIMKD.LOSS.FEAT_WEIGHT
        self.freeze_unused()
        self.teacher.requires_grad_(False)

    def get_learnable_parameters(self):
        return self.student_parameters()

    def forward_train(self, image, target, **kwargs):
        _, feature_map = self.read_student(image)
        with torch.no_grad():
            teacher_maps = [read(image)[1] for read in self.readers]
        losses, logits, count = {}, [], len(self.branches)
        for number, branch in enumerate(self.branches):
            projected = branch.project(scale_gradient(feature_map, 1 / count))
            loss = self.feature_weight * feature_loss(projected, branch.target(teacher_maps[branch.number]))
            losses[term_name("loss_feat", number, count)] = loss
            with torch.no_grad():  # the prediction is only reported: no loss reaches it
                logits.append(full(branch.classifier(pool(projected))))
        return ensemble_of(logits, self.ensemble), losses
