"""DKD from several teachers: the mean of the host's decoupled losses."""

import torch
import torch.nn.functional as F

from atsc_plugin import host
from atsc_plugin.errors import HostError
from atsc_plugin.methods.averkd import FrozenTeachers
from atsc_plugin.methods.base import method
from atsc_plugin.methods.host_methods import DKD


@method("DKD_MULTI", "DKD, several teachers")
class DKDMulti(FrozenTeachers):
    """Decoupled Knowledge Distillation (Zhao et al., CVPR 2022, arXiv 2203.08679) from K teachers; the mean is ours.

    loss = CE_WEIGHT * CE(z_s, y) + min(epoch / WARMUP, 1) * 1/K sum_k DKD(z_s, z_k, y), with the host's own loss and
    its keys DKD.CE_WEIGHT, ALPHA, BETA, T and WARMUP. With one teacher it is the host's DKD.
    """

    HARD_LABELS = True  # the host's loss splits the classes into the label's and the others

    def __init__(self, student, teacher, cfg):
        if host.dkd_loss is None:
            raise HostError(f"This mdistiller ({host.FOLDER}) has no distillers.DKD.dkd_loss. {host.WAY_OUT}.")
        super().__init__(student, teacher, cfg)
        self.node = cfg.DKD

    @classmethod
    def nodes(cls):
        return ("DKD",)

    @classmethod
    def problems(cls, cfg):
        return DKD.problems(cfg)

    def phase(self, epoch):
        return min(epoch, self.node.WARMUP)

    def forward_train(self, image, target, epoch, **kwargs):
        logits, _ = self.student(image)
        node = self.node
        each = [
            host.dkd_loss(logits, wanted, target, node.ALPHA, node.BETA, node.T)
            for wanted in self.teacher_logits(image)
        ]
        return logits, {
            "loss_ce": node.CE_WEIGHT * F.cross_entropy(logits, target),
            "loss_kd": min(epoch / node.WARMUP, 1.0) * torch.stack(each).mean(),
        }
