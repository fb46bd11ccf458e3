"""Pieces the networks are put together from; used by the files beside this one and by those of ../imagenet.

The names conv1, bn1, layer1, ... are fixed by the checkpoints, which is why layers are registered by number.
A ReLU works in place only directly behind a BatchNorm inside a block: a map that is handed out as a feature is never
overwritten later, neither before nor after its ReLU.
"""

import torch.nn as nn
import torch.nn.functional as F


def conv(c_in, c_out, kernel, stride=1, groups=1):
    """Convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


def active_layers(*convolutions, relu=nn.ReLU):
    """Conv, BN, ReLU for each convolution given, flat: the checkpoints number them so."""
    return [part for layer in convolutions for part in (layer, nn.BatchNorm2d(layer.out_channels), relu(inplace=True))]


def global_average(x):
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def init_fan_out(network):
    """He's normal law over the fan-out for every convolution, zero for its bias; the rest keeps torch's defaults."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_small_linear(layer):
    """N(0, 0.01) weights and zero bias, the law of the VGG and MobileNet classifiers."""
    nn.init.normal_(layer.weight, 0, 0.01)
    nn.init.zeros_(layer.bias)


class NumberedPairs(nn.Module):
    """Convolutions conv1, conv2, ..., each with its BatchNorm bn1, bn2, ... behind it."""

    def __init__(self, *convolutions):
        super().__init__()
        for number, layer in enumerate(convolutions, 1):
            self.add_pair(number, layer)

    def add_pair(self, number, layer):
        self.add_module(f"conv{number}", layer)
        self.add_module(f"bn{number}", nn.BatchNorm2d(layer.out_channels))

    def pair(self, number, x):
        return getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x))

    def active_pair(self, number, x):
        return F.relu(self.pair(number, x), inplace=True)


class Stage(nn.Sequential):
    """Blocks that return their sum before its ReLU. Returns (last map, the same map before its ReLU)."""

    def forward(self, x):
        for block in self:
            before = block(x)
            x = F.relu(before)
        return x, before


class StagedNet(NumberedPairs):
    """conv1-bn1-ReLU, layer1 .. layerN, global average, one linear classifier.

    A subclass registers the classifier under the name it gives in `head`, after whatever else stands before it.
    """

    head = "linear"

    def __init__(self, stem, stages):
        super().__init__(stem)
        # Names, not modules: a list of modules would escape DataParallel's replicas.
        self.stage_names = [f"layer{number}" for number in range(1, len(stages) + 1)]
        for name, stage in zip(self.stage_names, stages, strict=True):
            self.add_module(name, stage)

    def before_pooling(self, x):
        return x

    def forward(self, x):
        x = self.active_pair(1, x)
        feats, preact_feats = [x], [x]
        for name in self.stage_names:
            x, before = getattr(self, name)(x)
            feats.append(x)
            preact_feats.append(before)
        pooled = global_average(self.before_pooling(x))
        logits = getattr(self, self.head)(pooled)
        return logits, {"feats": feats, "preact_feats": preact_feats, "pooled_feat": pooled}
