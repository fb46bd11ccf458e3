"""MobileNetV2 (Sandler et al., CVPR 2018) at half width for small images, registered as "MobileNetV2".

The last "feats" map has 160 channels, the classifier's input 1280: a 1x1 convolution stands between them. There are no
"preact_feats", because the blocks end without a ReLU.
"""

from functools import partial

import torch.nn as nn

from ._parts import active_layers, conv, global_average, init_fan_out, init_small_linear

# expansion, channels at full width, blocks, stride of the first block
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_FEATURE_STAGES = (1, 2, 4, 6)


class InvertedResidual(nn.Module):
    def __init__(self, c_in, c_out, stride, expansion):
        super().__init__()
        inner = c_in * expansion
        self.conv = nn.Sequential(
            *active_layers(conv(c_in, inner, 1), conv(inner, inner, 3, stride, groups=inner)),
            conv(inner, c_out, 1),
            nn.BatchNorm2d(c_out),
        )
        self.adds_input = stride == 1 and c_in == c_out

    def forward(self, x):
        return x + self.conv(x) if self.adds_input else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, width, num_classes):
        super().__init__()
        c_in = int(32 * width)
        self.conv1 = nn.Sequential(*active_layers(conv(3, c_in, 3, 2)))
        self.blocks = nn.ModuleList()
        for expansion, channels, blocks, stride in _STAGES:
            c_out = int(channels * width)
            rest = (InvertedResidual(c_out, c_out, 1, expansion) for _ in range(blocks - 1))
            self.blocks.append(nn.Sequential(InvertedResidual(c_in, c_out, stride, expansion), *rest))
            c_in = c_out
        self.conv2 = nn.Sequential(*active_layers(conv(c_in, 1280, 1)))
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        init_fan_out(self)
        init_small_linear(self.classifier[0])

    def forward(self, x):
        x = self.conv1(x)
        feats = [x]
        for number, stage in enumerate(self.blocks):
            x = stage(x)
            if number in _FEATURE_STAGES:
                feats.append(x)
        pooled = global_average(self.conv2(x))
        return self.classifier(pooled), {"feats": feats, "pooled_feat": pooled}


mobile_half = partial(MobileNetV2, 0.5)
