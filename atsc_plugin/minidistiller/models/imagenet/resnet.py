"""torchvision's ImageNet ResNets, answering with their maps: stem and four stages, with and without the last ReLU.

Parameters, their names and their initial law are torchvision's, so its weights load; only the forward pass is ours.
The stem's map stands in "preact_feats" behind its ReLU, as in the small-image networks and in mdistiller.
"""

from functools import partial

import torch.nn.functional as F
from torchvision.models import ResNet18_Weights, ResNet34_Weights, ResNet50_Weights, ResNet101_Weights, resnet

from ..cifar._parts import global_average
from ._pretrained import load_pretrained


class BasicBlock(resnet.BasicBlock):
    """Returns its sum before the last ReLU."""

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(out)) + skip


class Bottleneck(resnet.Bottleneck):
    """Returns its sum before the last ReLU."""

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.bn3(self.conv3(out)) + skip


class ResNet(resnet.ResNet):
    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        feats, preact_feats = [x], [x]
        x = self.maxpool(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                before = block(x)
                x = F.relu(before)
            feats.append(x)
            preact_feats.append(before)
        pooled = global_average(x)
        return self.fc(pooled), {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}


def _build(block, repeats, weights, pretrained=False, num_classes=1000):
    network = ResNet(block, repeats, num_classes)
    return load_pretrained(network, weights) if pretrained else network


# The first of torchvision's weights for each network: mdistiller's teachers, whose published results rest on them.
resnet18 = partial(_build, BasicBlock, (2, 2, 2, 2), ResNet18_Weights.IMAGENET1K_V1)
resnet34 = partial(_build, BasicBlock, (3, 4, 6, 3), ResNet34_Weights.IMAGENET1K_V1)
resnet50 = partial(_build, Bottleneck, (3, 4, 6, 3), ResNet50_Weights.IMAGENET1K_V1)
resnet101 = partial(_build, Bottleneck, (3, 4, 23, 3), ResNet101_Weights.IMAGENET1K_V1)
