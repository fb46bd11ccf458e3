"""A deployed student with the outputs of a network, so that it can teach the next one: chains of distillation.

A student with one head becomes the network whose last map is P(F_s) and whose classifier `fc` is the shared one: what
SimKD and ATSC look for in a teacher. One with several heads has neither; it teaches by its logits.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from atsc_plugin.losses import align, pool
from atsc_plugin.networks.deployed import DeployedStudent


def as_teacher(deployed: DeployedStudent) -> nn.Module:
    """The network to teach with; a plain student's is its backbone, unchanged."""
    heads = deployed.heads()
    if not heads:
        return deployed.backbone
    return ProjectedNetwork(deployed) if len(heads) == 1 else EnsembleNetwork(deployed)


class ProjectedNetwork(nn.Module):
    """forward(x) = (C(pool(P(F_s))), maps): the backbone's stages with P(F_s) in the place of the last one.

    The stages keep their number, so that methods which list them (ReviewKD) find as many as the backbone has; the last
    has the channels of P. Its pre-activation is what P has before its last ReLU.
    """

    def __init__(self, deployed: DeployedStudent) -> None:
        super().__init__()
        head = deployed.heads()[0]
        self.source, self.map_size = deployed.source, head.map_size
        self.backbone, self.projector, self.fc = deployed.backbone, head.projector, head.classifier

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        _, maps, feature_map = self.source.read(self.backbone, x)
        before = align(feature_map, self.map_size)
        relu = isinstance(self.projector[-1], nn.ReLU)
        for layer in list(self.projector)[: -1 if relu else None]:  # its ReLU is in place, and would overwrite `before`
            before = layer(before)
        projected = F.relu(before) if relu else before
        pooled = pool(projected)
        feats = {**maps, "feats": [*maps["feats"][:-1], projected], "pooled_feat": pooled}
        if maps.get("preact_feats"):
            feats["preact_feats"] = [*maps["preact_feats"][:-1], before]
        return self.fc(pooled), feats


class EnsembleNetwork(nn.Module):
    """forward(x) = (the ensemble's logits, the backbone's maps): for methods that learn from logits."""

    def __init__(self, deployed: DeployedStudent) -> None:
        super().__init__()
        self.deployed = deployed

    def forward(self, x: Tensor) -> tuple[Tensor, dict]:
        maps = {}
        with self.deployed.backbone.register_forward_hook(lambda _module, _inputs, output: maps.update(output[1])):
            return self.deployed(x), maps
