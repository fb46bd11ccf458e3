"""VGG (Simonyan and Zisserman, ICLR 2015) with BatchNorm for small images: five groups of 3x3 convolutions.

A group ends before its last ReLU, so the map is there with and without it. The classifier is one linear layer on the
global average. Convolutions carry biases although a BatchNorm follows: the checkpoints have them.
"""

from functools import partial

import torch.nn as nn
import torch.nn.functional as F

from ._parts import global_average, init_fan_out, init_small_linear

_WIDTHS = (64, 128, 256, 512, 512)


def _group(c_in, width, convolutions):
    layers = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        c_in = width
    return nn.Sequential(*layers[:-1])


class VGG(nn.Module):
    def __init__(self, convolutions, num_classes):
        super().__init__()
        c_in = 3
        for number, (width, count) in enumerate(zip(_WIDTHS, convolutions, strict=True)):
            self.add_module(f"block{number}", _group(c_in, width, count))
            c_in = width
        self.classifier = nn.Linear(c_in, num_classes)
        init_fan_out(self)
        init_small_linear(self.classifier)

    def forward(self, x):
        # 32-pixel images are halved three times; 64-pixel ones once more, before the last group.
        halved_before = (1, 2, 3, 4) if x.shape[2] == 64 else (1, 2, 3)
        feats, preact_feats = [], []
        for number in range(len(_WIDTHS)):
            if number in halved_before:
                x = F.max_pool2d(x, 2)
            before = getattr(self, f"block{number}")(x)
            x = F.relu(before)
            feats.append(x)
            preact_feats.append(before if number else x)
        pooled = global_average(x)
        return self.classifier(pooled), {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}


vgg8_bn = partial(VGG, (1, 1, 1, 1, 1))
vgg11_bn = partial(VGG, (1, 1, 2, 2, 2))
vgg13_bn = partial(VGG, (2, 2, 2, 2, 2))
vgg16_bn = partial(VGG, (2, 2, 3, 3, 3))
vgg19_bn = partial(VGG, (2, 2, 4, 4, 4))
