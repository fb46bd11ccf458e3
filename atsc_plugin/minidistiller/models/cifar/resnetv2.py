"""ResNet-18 and ResNet-50 for small images: ImageNet's four stages behind a 3x3 stem that does not halve the map.

Same block as in .resnet; the shortcut and the classifier have other names in the checkpoints.
"""

from functools import partial

import torch.nn as nn

from ._parts import StagedNet, conv, init_fan_out
from .resnet import residual_stages

_WIDTHS = (64, 128, 256, 512)
_BASIC = [((3, width), (3, width)) for width in _WIDTHS]
_BOTTLENECK = [((1, width), (3, width), (1, 4 * width)) for width in _WIDTHS]


class ResNet(StagedNet):
    def __init__(self, shapes, repeats, num_classes):
        super().__init__(conv(3, 64, 3), residual_stages(64, shapes, repeats, "shortcut"))
        self.linear = nn.Linear(shapes[-1][-1][1], num_classes)
        init_fan_out(self)


ResNet18 = partial(ResNet, _BASIC, (2, 2, 2, 2))
ResNet50 = partial(ResNet, _BOTTLENECK, (3, 4, 6, 3))
