"""The released ATSC step, repeated to rounding: for whoever doubts the fused one or studies the collapse."""

import torch.nn.functional as F

from atsc_plugin.methods.atsc import ATSC, drift_parameters, softened_divergence
from atsc_plugin.methods.simkd import feature_loss
from atsc_plugin.networks.maps import pool


class PublishedATSC(ATSC):
    """ATSC.UPDATE "published": two optimizer steps a batch, as random2314235/ATSC at 8bde1b2 makes them.

    Step one, over student, projector and the whole teacher: FEAT * mse(P(F_s), F_t) + DRIFT * sum ||theta - theta_0||^2
    + CE * CE(h_s, y) + KD * T^2 KL(z_t || h_s), where h_s are the student's OWN logits and z_t carries a gradient. At
    weights of zero CE and KD still enter, times zero: both heads receive zero gradients, hence weight decay.
    Step two, with an optimizer of its own: a second teacher forward in training mode with the updated weights, and a
    step of CE(z_t, y) on the teacher's last parameter alone, the classifier's bias.
    One thing is not repeated: the released validation scores h_s. Ours scores the prediction through C_t.
    """

    def prepare_parameters(self, cfg):
        last = [name for name, _ in self.teacher.named_parameters()][-1]
        self.drift_names = [[name for name in drift_parameters(self.teacher, cfg.ATSC.DRIFT.PARAMS) if name != last]]

    def get_learnable_parameters(self):
        return [*self.student.parameters(), *self.projector.parameters(), *self.teacher.parameters()]

    def forward_train(self, image, target, epoch=None, **kwargs):
        (branch,) = self.branches()
        own_logits, projected = self.projected(image)
        teacher_logits, teacher_map = branch.facts.source(branch.teacher, image)
        divergence = softened_divergence(own_logits, teacher_logits, self.weights.KD_TEMPERATURE)
        losses = {
            "loss_feat": self.weights.FEAT_WEIGHT * feature_loss(projected, branch.wanted(teacher_map)),
            "loss_drift": self.drift_loss(),
            "loss_ce": self.weights.CE_WEIGHT * F.cross_entropy(own_logits, target),
            "loss_kd": self.weights.KD_WEIGHT * divergence,
        }
        self.monitors[0].count(teacher_logits.detach(), target)
        return self.classifier(pool(projected)).detach(), losses

    def second_loss(self, image, target):
        """(parameters, loss by name) of the second step, after the first one has been made."""
        loss = self.weights.TEACHER_CE_WEIGHT * F.cross_entropy(self.teacher(image)[0], target)
        return [list(self.teacher.parameters())[-1]], {"loss_teacher_ce": loss}


def make_atsc(student, teacher, cfg):
    """The distiller that ATSC.UPDATE names; what stands in the registry under ATSC."""
    return (PublishedATSC if cfg.ATSC.UPDATE == "published" else ATSC)(student, teacher, cfg)
