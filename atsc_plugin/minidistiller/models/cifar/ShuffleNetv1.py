"""ShuffleNet (Zhang et al., CVPR 2018) with three groups for small images: a 1x1 stem, three stages.

The first block of a stage halves the map and concatenates its pooled input, so it computes only the missing channels.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

from ._parts import NumberedPairs, Stage, StagedNet, conv

_STEM, _GROUPS = 24, 3
_STAGES = ((240, 4), (480, 8), (960, 4))


def shuffle(x, groups):
    """Interleave the channel groups: channel i of group g goes to place i * groups + g."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(NumberedPairs):
    """1x1, shuffle, depthwise 3x3, 1x1, with grouped 1x1s. Returns the joined map before its ReLU."""

    def __init__(self, c_in, c_out, stride):
        own = c_out - c_in if stride == 2 else c_out
        inner = own // 4
        # Behind the stem the channels are too few to be split.
        groups = 1 if c_in == _STEM else _GROUPS
        super().__init__(
            conv(c_in, inner, 1, groups=groups),
            conv(inner, inner, 3, stride, groups=inner),
            conv(inner, own, 1, groups=_GROUPS),
        )
        self.stride, self.groups = stride, groups

    def forward(self, x):
        out = shuffle(self.active_pair(1, x), self.groups)
        out = self.pair(3, self.active_pair(2, out))
        if self.stride == 2:
            return torch.cat([out, F.avg_pool2d(x, 3, 2, 1)], 1)
        return out + x


class ShuffleV1(StagedNet):
    def __init__(self, num_classes):
        stages, c_in = [], _STEM
        for c_out, blocks in _STAGES:
            rest = (ShuffleUnit(c_out, c_out, 1) for _ in range(blocks - 1))
            stages.append(Stage(ShuffleUnit(c_in, c_out, 2), *rest))
            c_in = c_out
        super().__init__(conv(3, _STEM, 1), stages)
        self.linear = nn.Linear(c_in, num_classes)
