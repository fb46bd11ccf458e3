"""torchvision's ImageNet ResNets, answering with their maps: stem and four stages, with and without the last ReLU.

Parameters, their names and their initial law are torchvision's, so its weights load; only the forward pass is ours.
The stem's map stands in "preact_feats" behind its ReLU, as in the small-image networks and in mdistiller.
No weights are downloaded: the file has to lie where torch.hub puts it, `checkpoints` in torch.hub.get_dir(), which
TORCH_HOME moves. It is read without executing any of it.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torchvision.models import ResNet18_Weights, ResNet34_Weights, ResNet50_Weights, ResNet101_Weights, resnet

from atsc_plugin.errors import PluginError

from ..cifar._parts import global_average


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


def _load_pretrained(network, weights):
    """`network` filled with a torchvision `Weights` entry, strictly. Returns it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not path.is_file():
        raise PluginError(
            f"pretrained=True, but there is no file {path}; expected torchvision's weights {weights}. Download "
            f"{weights.url} into {path.parent} (TORCH_HOME names another place), or name a checkpoint with "
            "DISTILLER.TEACHER_CKPT."
        )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a truncated zip, a pickle that runs code, another network: torch throws many kinds
        detail = " ".join(str(error).split())[:240]
        raise PluginError(
            f"{path} was not loaded ({type(error).__name__}: {detail}); expected torchvision's weights {weights} for a "
            f"network of 1000 classes. Download {weights.url} again, or name a checkpoint with DISTILLER.TEACHER_CKPT."
        ) from error
    return network


def _build(block, repeats, weights, pretrained=False, num_classes=1000):
    network = ResNet(block, repeats, num_classes)
    return _load_pretrained(network, weights) if pretrained else network


# The first of torchvision's weights for each network: mdistiller's teachers, whose published results rest on them.
resnet18 = partial(_build, BasicBlock, (2, 2, 2, 2), ResNet18_Weights.IMAGENET1K_V1)
resnet34 = partial(_build, BasicBlock, (3, 4, 6, 3), ResNet34_Weights.IMAGENET1K_V1)
resnet50 = partial(_build, Bottleneck, (3, 4, 6, 3), ResNet50_Weights.IMAGENET1K_V1)
resnet101 = partial(_build, Bottleneck, (3, 4, 23, 3), ResNet101_Weights.IMAGENET1K_V1)
