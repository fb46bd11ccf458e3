"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016) without dropout: depth 6n+4, pre-activation blocks.

"feats" are the raw sums at the end of each stage; "preact_feats" the same maps behind the BatchNorm that reads them
next. The classifier's input is the last of these behind its ReLU, pooled.
"""

from collections import OrderedDict
from functools import partial

import torch.nn as nn
import torch.nn.functional as F

from ._parts import conv, global_average, init_fan_out


class PreactBlock(nn.Module):
    """BN-ReLU-conv twice. Where the width changes, the projected shortcut starts behind the first ReLU."""

    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = conv(c_in, c_out, 3, stride)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = conv(c_out, c_out, 3)
        self.convShortcut = None if c_in == c_out else conv(c_in, c_out, 1, stride)

    def forward(self, x):
        active = F.relu(self.bn1(x), inplace=True)
        skip = x if self.convShortcut is None else self.convShortcut(active)
        return skip + self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))


def _stage(c_in, c_out, stride, blocks):
    """The checkpoints say blockN.layer.i, hence the outer Sequential."""
    rest = (PreactBlock(c_out, c_out, 1) for _ in range(blocks - 1))
    return nn.Sequential(OrderedDict(layer=nn.Sequential(PreactBlock(c_in, c_out, stride), *rest)))


class WideResNet(nn.Module):
    def __init__(self, depth, widen_factor, num_classes):
        super().__init__()
        blocks = (depth - 4) // 6
        narrow, middle, wide = (width * widen_factor for width in (16, 32, 64))
        self.conv1 = conv(3, 16, 3)
        self.block1 = _stage(16, narrow, 1, blocks)
        self.block2 = _stage(narrow, middle, 2, blocks)
        self.block3 = _stage(middle, wide, 2, blocks)
        self.bn1 = nn.BatchNorm2d(wide)
        self.fc = nn.Linear(wide, num_classes)
        init_fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        feats = [self.conv1(x)]
        for block in (self.block1, self.block2, self.block3):
            feats.append(block(feats[-1]))
        pooled = global_average(F.relu(self.bn1(feats[-1]), inplace=True))
        # These BatchNorms have already seen the same maps above. In training mode the second call moves their running
        # statistics a second time a step, as mdistiller's do: sharing one call would be cheaper and change the numbers.
        readers = (self.block2.layer[0].bn1, self.block3.layer[0].bn1, self.bn1)
        preact_feats = [feats[0], *(bn(x) for bn, x in zip(readers, feats[1:], strict=True))]
        return self.fc(pooled), {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}


wrn_16_1 = partial(WideResNet, 16, 1)
wrn_16_2 = partial(WideResNet, 16, 2)
wrn_40_1 = partial(WideResNet, 40, 1)
wrn_40_2 = partial(WideResNet, 40, 2)
