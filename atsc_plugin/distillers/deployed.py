"""The small model that leaves the run: a backbone and, for shared-classifier methods, projector and classifier.

`forward(image)` gives logits and needs nothing of the teacher's trunk. What the backbone has behind the projected map
(its own head) is absent: replaced by Identity, not stored, not counted.
"""

from torch import nn

from atsc_plugin.distillers.parts import align, pool


class DeployedStudent(nn.Module):
    """Logits of a student: C_t(pool(P(align(F_s)))) with a shared classifier, the backbone's own logits without."""

    def __init__(self, backbone, source=None, map_size=None, projector=None, classifier=None):
        super().__init__()
        self.backbone, self.projector, self.classifier = backbone, projector, classifier
        self.source, self.map_size = source, map_size

    def forward(self, image):
        if self.projector is None:
            return self.backbone(image)[0]
        feature_map = self.source(self.backbone, image)[1]
        return self.classifier(pool(self.projector(align(feature_map, self.map_size))))

    def facts(self):
        """What must be known beside the tensors to build this module again."""
        if self.projector is None:
            return {"head": None}
        first = self.projector[0]
        return {
            "head": {
                "map_place": self.source.place,
                "map_relu": self.source.relu,
                "map_size": self.map_size,
                "channels_in": first.in_channels,
                "channels_out": self.classifier.in_features,
                "channels_inner": first.out_channels,
            }
        }


def modules_of(names):
    """The modules that own the named parameters: 'fc.weight', 'fc.bias' -> ['fc']."""
    return sorted({name.rpartition(".")[0] for name in names})


def tensors_of(deployed, unused_modules):
    """The state that is stored: everything but the backbone's unused modules."""
    dropped = tuple(f"backbone.{module}." for module in unused_modules)
    return {name: tensor for name, tensor in deployed.state_dict().items() if not name.startswith(dropped)}


def drop_modules(backbone, names):
    """Replace the named modules by Identity, in place: what is left is the network up to the projected map."""
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(backbone.get_submodule(parent), leaf, nn.Identity())
    return backbone
