"""The CIFAR ResNets of He et al. (Deep Residual Learning, CVPR 2016, section 4.2): depth 6n+2, three stages.

The "x4" variants are four times as wide from the first stage on, with a stem of 32 channels.
resnetv2 builds its deeper-staged networks from the same Residual block.
"""

from functools import partial

import torch.nn as nn

from ._parts import NumberedPairs, Stage, StagedNet, conv, init_fan_out


class Residual(NumberedPairs):
    """Conv-BN pairs with ReLUs between them, plus a shortcut that is projected where the shape changes.

    `shape` lists (kernel, channels) pair by pair; the stride sits on the first 3x3. Returns the sum before its ReLU.
    """

    def __init__(self, c_in, shape, stride, shortcut):
        strided = [kernel for kernel, _ in shape].index(3)
        widths = [c_in, *(channels for _, channels in shape)]
        super().__init__(
            *(
                conv(widths[i], channels, kernel, stride if i == strided else 1)
                for i, (kernel, channels) in enumerate(shape)
            )
        )
        self.pairs, self.shortcut_name = len(shape), shortcut
        projected = stride != 1 or c_in != widths[-1]
        projection = [conv(c_in, widths[-1], 1, stride), nn.BatchNorm2d(widths[-1])] if projected else []
        self.add_module(shortcut, nn.Sequential(*projection))

    def forward(self, x):
        out = x
        for number in range(1, self.pairs):
            out = self.active_pair(number, out)
        return self.pair(self.pairs, out) + getattr(self, self.shortcut_name)(x)


def residual_stages(c_in, shapes, repeats, shortcut):
    """One Stage per entry of `shapes`, each after the first halving the map."""
    stages = []
    for number, (shape, blocks) in enumerate(zip(shapes, repeats, strict=True)):
        c_out = shape[-1][1]
        first = Residual(c_in, shape, 1 if number == 0 else 2, shortcut)
        stages.append(Stage(first, *(Residual(c_out, shape, 1, shortcut) for _ in range(blocks - 1))))
        c_in = c_out
    return stages


class ResNet(StagedNet):
    head = "fc"

    def __init__(self, depth, num_classes, stem=16, widths=(16, 32, 64)):
        shapes = [((3, width), (3, width)) for width in widths]
        blocks = (depth - 2) // 6
        super().__init__(conv(3, stem, 3), residual_stages(stem, shapes, [blocks] * 3, "downsample"))
        self.fc = nn.Linear(widths[-1], num_classes)
        init_fan_out(self)


_WIDE = {"stem": 32, "widths": (64, 128, 256)}

resnet8 = partial(ResNet, 8)
resnet14 = partial(ResNet, 14)
resnet20 = partial(ResNet, 20)
resnet32 = partial(ResNet, 32)
resnet44 = partial(ResNet, 44)
resnet56 = partial(ResNet, 56)
resnet110 = partial(ResNet, 110)
resnet8x4 = partial(ResNet, 8, **_WIDE)
resnet32x4 = partial(ResNet, 32, **_WIDE)
