"""ShuffleNetV2 at width 1 (Ma et al., ECCV 2018) for small images: a 1x1 stem, three stages, a 1x1 to 1024 channels.

"feats" are the shuffled maps of 116, 232 and 464 channels, "preact_feats" the last unit's halves side by side, not yet
shuffled: its untouched half has been through a ReLU long ago. The classifier reads the 1024 channels behind them.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from atsc_plugin.errors import PluginError

from ._parts import NumberedPairs, StagedNet, conv
from .ShuffleNetv1 import shuffle

_STEM, _LAST = 24, 1024
_STAGES = ((116, 3), (232, 7), (464, 3))


class HalvingUnit(NumberedPairs):
    """Two branches at stride 2, each giving half of the channels: pairs 1-2 on the left, 3-5 on the right."""

    def __init__(self, c_in, c_out):
        half = c_out // 2
        super().__init__(
            conv(c_in, c_in, 3, 2, groups=c_in),
            conv(c_in, half, 1),
            conv(c_in, half, 1),
            conv(half, half, 3, 2, groups=half),
            conv(half, half, 1),
        )

    def forward(self, x):
        left = self.active_pair(2, self.pair(1, x))
        right = self.active_pair(5, self.pair(4, self.active_pair(3, x)))
        return shuffle(torch.cat([left, right], 1), 2)


class SplitUnit(NumberedPairs):
    """Leaves the first half of the channels alone. Returns (that half, the worked half before its ReLU)."""

    def __init__(self, channels):
        half = channels // 2
        super().__init__(conv(half, half, 1), conv(half, half, 3, groups=half), conv(half, half, 1))

    def forward(self, x):
        kept, worked = x.chunk(2, 1)
        return kept, self.pair(3, self.pair(2, self.active_pair(1, worked)))


class ShuffleStage(nn.Sequential):
    """A halving unit, then split units. Returns (last map, its halves before the last ReLU and shuffle)."""

    def __init__(self, c_in, c_out, split_units):
        super().__init__(HalvingUnit(c_in, c_out), *(SplitUnit(c_out) for _ in range(split_units)))

    def forward(self, x):
        halving, *split_units = self
        x = halving(x)
        for unit in split_units:
            kept, worked = unit(x)
            x = shuffle(torch.cat([kept, F.relu(worked)], 1), 2)
        return x, torch.cat([kept, worked], 1)


class ShuffleV2(StagedNet):
    def __init__(self, num_classes):
        widths = [_STEM, *(width for width, _ in _STAGES)]
        stages = [ShuffleStage(widths[i], width, units) for i, (width, units) in enumerate(_STAGES)]
        super().__init__(conv(3, _STEM, 1), stages)
        self.add_pair(2, conv(widths[-1], _LAST, 1))
        self.linear = nn.Linear(_LAST, num_classes)

    def before_pooling(self, x):
        return self.active_pair(2, x)


def shufflev2_tinyimagenet(num_classes):
    """Refuses: the network above would run, but there is nothing of mdistiller's that its numbers could agree with."""
    raise PluginError(
        f"ShuffleV2 with {num_classes} classes was asked for on tiny_imagenet, but it cannot be used at 64 pixels: "
        "mdistiller's fails there (it pools the 8x8 map by 4x4 and hands 4096 numbers to a classifier that expects "
        "1024), so no result could be compared with it. Take MobileNetV2 or ResNet18."
    )
