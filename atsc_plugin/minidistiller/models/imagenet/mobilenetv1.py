"""MobileNet (Howard et al., 2017) at full width for ImageNet: a strided 3x3, then 13 depthwise-separable blocks.

The maps handed out are those in front of each halving and the last one, from 128 to 1024 channels; the stem's is not
among them. Nobody offers weights for it, mdistiller and torchvision included, so it serves as a student.
"""

import torch.nn as nn
import torch.nn.functional as F

from atsc_plugin.errors import PluginError

from ..cifar._parts import active_layers, conv, global_average

_STEM = 32
# channels, stride of the depthwise convolution
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
_FEATURE_BLOCKS = (3, 5, 11, 13)


class MobileNetV1(nn.Module):
    def __init__(self, pretrained=False, num_classes=1000):
        if pretrained:
            raise PluginError(
                "pretrained=True, but there are no published weights for MobileNetV1 (torchvision has none, and "
                "mdistiller would hand out an untrained network). Use it as the student, or name a checkpoint with "
                "DISTILLER.TEACHER_CKPT."
            )
        super().__init__()
        blocks, c_in = [active_layers(conv(3, _STEM, 3, 2))], _STEM
        for c_out, stride in _BLOCKS:
            blocks.append(active_layers(conv(c_in, c_in, 3, stride, groups=c_in), conv(c_in, c_out, 1)))
            c_in = c_out
        # Without its last ReLU, which forward applies: so a map is there before and after it.
        self.model = nn.Sequential(*(nn.Sequential(*layers[:-1]) for layers in blocks))
        self.fc = nn.Linear(c_in, num_classes)

    def forward(self, x):
        feats, preact_feats = [], []
        for number, block in enumerate(self.model):
            before = block(x)
            x = F.relu(before, inplace=number not in _FEATURE_BLOCKS)
            if number in _FEATURE_BLOCKS:
                feats.append(x)
                preact_feats.append(before)
        pooled = global_average(x)
        return self.fc(pooled), {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
