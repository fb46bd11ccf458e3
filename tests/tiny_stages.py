"""A network with a stem and stages, with mdistiller's outputs, for methods that look at every stage."""

import torch.nn.functional as F
from torch import nn


class TinyStages(nn.Module):
    """Stem of stride 4, then stages of stride 2, each a convolution with BN and ReLU; linear classifier."""

    def __init__(self, num_classes=10, width=4, stages=2, stem=3):
        super().__init__()
        self.conv = nn.Conv2d(3, stem, 3, padding=1, stride=4, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        widths = [stem, *(width * 2**number for number in range(stages))]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(after))
            for before, after in zip(widths, widths[1:], strict=False)
        )
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x):
        feats = [F.relu(self.bn(self.conv(x)))]
        for stage in self.stages:
            feats.append(F.relu(stage(feats[-1])))
        pooled = feats[-1].mean(dim=(2, 3))
        return self.fc(pooled), {"feats": feats, "preact_feats": feats, "pooled_feat": pooled}
