"""The small model that leaves the run: a backbone and, for shared-classifier methods, projectors and classifiers.

`forward(image)` gives logits and needs nothing of a teacher's trunk. What the backbone has behind the projected map
(its own head) is absent: replaced by Identity, not stored, not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from atsc_plugin.contract import Contract
from atsc_plugin.losses import align, pool
from atsc_plugin.networks.maps import FEATS, MapSource
from atsc_plugin.networks.projector import Projection
from atsc_plugin.networks.tail import Tail


def ensemble_of(logits: list[Tensor], rule: str) -> Tensor:
    """One prediction from K: the mean of the logits, or the logarithm of the mean of the probabilities; K = 1: as is.

    logits: z = 1/K sum_k z_k;  probs: z = log(1/K sum_k softmax(z_k))
    """
    if len(logits) == 1:
        return logits[0]
    stacked = torch.stack(logits)
    if rule == "logits":
        return stacked.mean(0)
    return torch.logsumexp(F.log_softmax(stacked, dim=2), dim=0) - math.log(len(logits))


@dataclass(frozen=True)
class Head:
    """One way from the backbone's map to logits: pooled to `map_size`, projected, averaged, classified."""

    map_size: int
    projector: Projection
    classifier: nn.Module  # the teacher's tail


class DeployedStudent(nn.Module):
    """Logits of a student: C(pool(P(align(F_s)))), an ensemble over several such heads, or the backbone's own logits.

    The modules are called projector, classifier, projector_2, classifier_2, ...; a classifier that several heads share
    is there once, under the number of the first. `unused` names the backbone's modules behind the projected map: they
    are not stored.
    """

    def __init__(
        self,
        backbone: nn.Module,
        source: MapSource = FEATS,
        heads: Sequence[Head] = (),
        ensemble: str = "logits",
        unused: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.backbone, self.source, self.ensemble, self.unused = backbone, source, ensemble, list(unused)
        self.map_sizes = [head.map_size for head in heads]
        owners = [id(head.classifier) for head in heads]
        self.owners = [owners.index(owner) for owner in owners]  # for each head, the first that has its classifier
        for number, head in enumerate(heads):
            self.add_module(name_of("projector", number), head.projector)
            if self.owners[number] == number:
                self.add_module(name_of("classifier", number), head.classifier)

    def heads(self) -> list[Head]:
        """The heads, first to last."""
        return [Head(*parts) for parts in self._parts()]

    def _parts(self):
        """(map size, projector, classifier) of each head: no Head is made where the compiler looks."""
        return [
            (size, getattr(self, name_of("projector", number)), getattr(self, name_of("classifier", owner)))
            for number, (size, owner) in enumerate(zip(self.map_sizes, self.owners, strict=True))
        ]

    def forward(self, image: Tensor) -> Tensor:
        if not self.map_sizes:
            return self.backbone(image)[0]
        feature_map = self.source(self.backbone, image)[1]
        logits = [tail(pool(projector(align(feature_map, size)))) for size, projector, tail in self._parts()]
        return ensemble_of(logits, self.ensemble)

    def facts(self) -> dict[str, Any]:
        """What must be known beside the tensors to build this module again."""
        return {
            "unused": self.unused,
            "ensemble": self.ensemble,
            "heads": [self._head_facts(*each) for each in zip(self.heads(), self.owners, strict=True)],
        }

    def _head_facts(self, head: Head, owner: int) -> dict[str, Any]:
        channels_in, inner, channels_out = head.projector.channels
        facts = {
            "map_place": self.source.place,
            "map_relu": self.source.relu,
            "map_size": head.map_size,
            "channels_in": channels_in,
            "channels_out": channels_out,
            "channels_inner": inner,
            "classifier": owner,
        }
        if self.source.layout != "nchw":
            facts["map_layout"] = self.source.layout
        if head.projector.kind != "bottleneck":
            facts["projector"] = head.projector.kind
        if isinstance(head.classifier, Tail):
            facts["tail"] = {**head.classifier.origin, "steps": head.classifier.steps}
        return facts


def name_of(module: str, number: int) -> str:
    """The first head's modules carry no number."""
    return module if number == 0 else f"{module}_{number + 1}"


def deployed_of(method: Contract) -> DeployedStudent:
    """The module that predicts, of any method: its own, or the student as it is."""
    return method.deployed() or DeployedStudent(method.student)


def modules_of(names: Iterable[str], network: nn.Module) -> list[str]:
    """The modules that own the named parameters and no others, none in another: 'fc.weight', 'fc.bias' -> ['fc']."""
    names = set(names)
    others = [f"{name}." for name, _ in network.named_parameters() if name not in names]
    owners = {name.rpartition(".")[0] for name in names}
    owners = {owner for owner in owners if owner and not any(name.startswith(f"{owner}.") for name in others)}
    return sorted(owner for owner in owners if not any(owner.startswith(f"{other}.") for other in owners))


def tensors_of(deployed: DeployedStudent) -> dict[str, Tensor]:
    """The state that is stored: everything but the backbone's unused modules.

    A classifier that the teacher parametrizes (weight_norm, spectral_norm) is stored as it is applied: a plain one
    takes its place when the student is opened.
    """
    dropped = [f"backbone.{module}." for module in deployed.unused]
    applied: dict[str, Tensor] = {}
    for name, layer in deployed.named_children():
        if name.startswith("classifier") and parametrize.is_parametrized(layer):
            dropped.append(f"{name}.parametrizations.")
            weights = [weight for weight, _ in layer.get_submodule("parametrizations").named_children()]
            applied |= {f"{name}.{weight}": getattr(layer, weight).detach() for weight in weights}
    kept = {name: tensor for name, tensor in deployed.state_dict().items() if not name.startswith(tuple(dropped))}
    return kept | applied


def drop_modules(backbone: nn.Module, names: Iterable[str]) -> nn.Module:
    """Replace the named modules by Identity, in place: what is left is the network up to the projected map."""
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(backbone.get_submodule(parent), leaf, nn.Identity())
    return backbone
