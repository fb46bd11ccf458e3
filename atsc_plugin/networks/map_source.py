"""Where a network's last map is read; pure torch."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch.nn.functional as F


@dataclass(frozen=True)
class MapSource:
    """Where a network's last map is read: 'feats', 'preact', or the path of one of its modules; then a ReLU or not."""

    place: str
    relu: bool = False

    def __call__(self, model, image):
        """(logits, map) of one forward pass."""
        logits, _, feature_map = self.read(model, image)
        return logits, feature_map

    def read(self, model, image):
        """(logits, the network's own dict of maps, map) of one forward pass."""
        if self.place in ("feats", "preact"):
            logits, feats = model(image)
            feature_map = feats["feats" if self.place == "feats" else "preact_feats"][-1]
        else:
            with _recording(model.get_submodule(self.place)) as seen:
                logits, feats = model(image)
            feature_map = seen[-1]
        return logits, feats, F.relu(feature_map) if self.relu else feature_map


FEATS, PREACT = MapSource("feats"), MapSource("preact", relu=True)


@contextmanager
def _recording(module):
    seen = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()
