"""MobileNetV2 (Sandler et al., CVPR 2018) at full width for 64-pixel images, registered for Tiny-ImageNet only.

Another network than mobilenetv2.py's: convolutions carry biases, ReLUs stop at 6, the padded 1x1 stem gives 66 pixels,
and the classifier is a 1x1 convolution. Its input, "pooled_feat", keeps its 1x1 map; the last of "feats" is what is
pooled. There are no "preact_feats", because the blocks end without a ReLU.
"""

import torch.nn as nn
import torch.nn.functional as F

from ._parts import active_layers

_STEM, _LAST = 32, 1280
# expansion, channels, blocks, stride of the first block
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 1), (6, 320, 1, 1))
_FEATURE_STAGES = (2, 3, 4)


class BiasedInvertedResidual(nn.Module):
    def __init__(self, c_in, c_out, stride, expansion):
        super().__init__()
        inner = c_in * expansion
        widen, depthwise = nn.Conv2d(c_in, inner, 1), nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner)
        self.residual = nn.Sequential(
            *active_layers(widen, depthwise, relu=nn.ReLU6), nn.Conv2d(inner, c_out, 1), nn.BatchNorm2d(c_out)
        )
        self.adds_input = stride == 1 and c_in == c_out

    def forward(self, x):
        return self.residual(x) + x if self.adds_input else self.residual(x)


class TinyImageNetMobileNetV2(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.pre = nn.Sequential(*active_layers(nn.Conv2d(3, _STEM, 1, padding=1), relu=nn.ReLU6))
        c_in = _STEM
        for number, (expansion, c_out, blocks, stride) in enumerate(_STAGES, 1):
            first = BiasedInvertedResidual(c_in, c_out, stride, expansion)
            rest = (BiasedInvertedResidual(c_out, c_out, 1, expansion) for _ in range(blocks - 1))
            # The checkpoints count the blocks only where a stage has several.
            self.add_module(f"stage{number}", first if blocks == 1 else nn.Sequential(first, *rest))
            c_in = c_out
        self.conv1 = nn.Sequential(*active_layers(nn.Conv2d(c_in, _LAST, 1), relu=nn.ReLU6))
        self.conv2 = nn.Conv2d(_LAST, num_classes, 1)

    def forward(self, x):
        x = self.pre(x)
        feats = [x]
        for number in range(1, len(_STAGES) + 1):
            x = getattr(self, f"stage{number}")(x)
            if number in _FEATURE_STAGES:
                feats.append(x)
        feats.append(self.conv1(x))
        pooled = F.adaptive_avg_pool2d(feats[-1], 1)
        return self.conv2(pooled).flatten(1), {"feats": feats, "pooled_feat": pooled}
