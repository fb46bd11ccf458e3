"""Knowledge review: student stages, fused from the deepest to the shallowest, imitate the teacher's stages.

The fusion modules (abfs.*) train with the student and are not needed afterwards. Which maps and sizes take part is
listed in cfg.REVIEWKD for each pair of networks: SHAPES and OUT_SHAPES deepest first, *_CHANNELS shallowest first.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from ._base import Distiller


def hcl_loss(student_maps, teacher_maps):
    """sum over stages of (mse(s, t) + sum_k 2^-k mse(pool_l(s), pool_l(t))) / (1 + sum_k 2^-k)

    l runs through those of 4, 2, 1 that are below the map's height, k counts them from 1; pool_l averages to l x l.
    """
    total = 0.0
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        levels = [level for level in (4, 2, 1) if level < student.shape[2]]
        weights = [0.5**k for k in range(len(levels) + 1)]
        distances = [F.mse_loss(student, teacher)] + [
            F.mse_loss(F.adaptive_avg_pool2d(student, level), F.adaptive_avg_pool2d(teacher, level)) for level in levels
        ]
        total = total + sum(w * d for w, d in zip(weights, distances, strict=True)) / sum(weights)
    return total


def _conv_bn(c_in, c_out, kernel):
    layer = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    return nn.Sequential(layer, nn.BatchNorm2d(c_out))


class ABF(nn.Module):
    """Attention-based fusion of a student map with what the deeper stages handed on; the deepest has none to fuse."""

    def __init__(self, c_in, c_mid, c_out, fuse):
        super().__init__()
        self.conv1 = _conv_bn(c_in, c_mid, 1)
        self.conv2 = _conv_bn(c_mid, c_out, 3)
        self.att_conv = nn.Sequential(nn.Conv2d(2 * c_mid, 2, 1), nn.Sigmoid()) if fuse else None

    def forward(self, x, deeper=None, size=None, out_size=None):
        """Returns (map to compare with the teacher's, map to hand to the next shallower stage)."""
        fused = self.conv1(x)
        if self.att_conv is not None:
            deeper = F.interpolate(deeper, (size, size), mode="nearest")
            attention = self.att_conv(torch.cat([fused, deeper], dim=1))
            fused = fused * attention[:, :1] + deeper * attention[:, 1:]
        if fused.shape[-1] != out_size:
            fused = F.interpolate(fused, (out_size, out_size), mode="nearest")
        return self.conv2(fused), fused


def _with_pooled(maps, features):
    return [*maps, features["pooled_feat"][:, :, None, None]]


class ReviewKD(Distiller):
    """Distilling Knowledge via Knowledge Review (Chen, Liu, Zhao, Jia, CVPR 2021, arXiv 2104.09044).

    The loss fades in linearly over the first WARMUP_EPOCHS epochs.
    """

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher)
        node = cfg.REVIEWKD
        self.sizes, self.out_sizes = node.SHAPES, node.OUT_SHAPES
        self.ce_weight, self.review_weight = node.CE_WEIGHT, node.REVIEWKD_WEIGHT
        self.warmup = node.WARMUP_EPOCHS
        self.student_maps = "preact_feats" if node.STU_PREACT else "feats"
        # mdistiller writes 512 here and ignores MAX_MID_CHANNEL; obeying it would change the parameters' shapes.
        c_mid = min(512, node.IN_CHANNELS[-1])
        stages = list(zip(node.IN_CHANNELS, node.OUT_CHANNELS, strict=True))
        self.abfs = nn.ModuleList(
            ABF(c_in, c_mid, c_out, fuse=depth > 0) for depth, (c_in, c_out) in enumerate(reversed(stages))
        )

    def get_learnable_parameters(self):
        return super().get_learnable_parameters() + list(self.abfs.parameters())

    def get_extra_parameters(self):
        return sum(parameter.numel() for parameter in self.abfs.parameters())

    def review(self, features):
        """The student's fused maps, shallowest first."""
        results, carried = [], None
        # There are more student maps than fusions: the shallowest ones take no part.
        deepest_first = _with_pooled(features[self.student_maps], features)[::-1][: len(self.abfs)]
        for x, fusion, size, out_size in zip(deepest_first, self.abfs, self.sizes, self.out_sizes, strict=True):
            result, carried = fusion(x, carried, size, out_size)
            results.insert(0, result)
        return results

    def forward_train(self, image, target, epoch, **kwargs):
        logits, features = self.student(image)
        with torch.no_grad():
            _, teacher = self.teacher(image)
        teacher_maps = _with_pooled(teacher["preact_feats"][1:], teacher)
        loss_review = hcl_loss(self.review(features), teacher_maps)
        return logits, {
            "loss_ce": self.ce_weight * F.cross_entropy(logits, target),
            "loss_kd": self.review_weight * min(epoch / self.warmup, 1.0) * loss_review,
        }
