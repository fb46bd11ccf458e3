"""Networks of a few parameters with mdistiller's outputs, for tests that need no real one."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


class TinyNet(nn.Module):
    """One convolution with BN and ReLU, global average, linear classifier: (logits, feats) like the real ones."""

    def __init__(self, num_classes=10, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, stride=4, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        feature_map = F.relu(self.bn(self.conv(x)))
        pooled = feature_map.mean(dim=(2, 3))
        return self.fc(pooled), {"feats": [feature_map], "preact_feats": [feature_map], "pooled_feat": pooled}


def add_tiny_networks(monkeypatch):
    """`tiny` and `tiny_teacher` among the host's networks, as long as the patch lasts; commands take them by name."""
    from atsc_plugin.host import cifar_model_dict

    for name, width in (("tiny", 4), ("tiny_teacher", 8)):
        monkeypatch.setitem(cifar_model_dict, name, (partial(TinyNet, width=width), None))


class MaxPoolNet(TinyNet):
    """Its classifier sees the maximum of the map: no map averages to the classifier's input."""

    def forward(self, x):
        feature_map = F.relu(self.bn(self.conv(x)))
        pooled = feature_map.amax(dim=(2, 3))
        return self.fc(pooled), {"feats": [feature_map], "pooled_feat": pooled}


class HeadlessNet(TinyNet):
    """Predicts through a convolution: there is no linear classifier to share."""

    def __init__(self, num_classes=10, width=4):
        super().__init__(num_classes, width)
        self.fc = nn.Conv2d(width, num_classes, 1)

    def forward(self, x):
        feature_map = F.relu(self.bn(self.conv(x)))
        return self.fc(feature_map).mean(dim=(2, 3)), {"feats": [feature_map]}


def batch(count=6, classes=10, size=32, seed=0):
    """(images, labels) from a generator of their own."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=draw), torch.arange(count) % classes
