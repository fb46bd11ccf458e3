"""What feature distillation needs to know of a network: its classifier, and its last map and where to read it.

Pure torch, no host: the networks only have to return (logits, {"feats": [...], "preact_feats": [...]}), as mdistiller's
do. A network that cannot be served is refused by name when a distiller is built, never in the middle of a run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atsc_plugin.errors import ModelRefused
from atsc_plugin.losses import pool


def classifier_of(model: nn.Module, name: str = "the network") -> nn.Linear:
    """The linear layer behind the pooled features: attribute fc, linear, classifier or classifier[0]."""
    if isinstance(getattr(model, "without_classifier", None), str):
        raise ModelRefused(f"{name} {model.without_classifier}")
    for attribute in ("fc", "linear", "classifier"):
        layer = getattr(model, attribute, None)
        if isinstance(layer, nn.Sequential) and len(layer):
            layer = layer[0]
        if isinstance(layer, nn.Linear):
            return layer
    raise ModelRefused(
        f"{name} has no nn.Linear called fc, linear, classifier or classifier[0]; the shared classifier is taken from "
        "there. Use another network or give it that attribute."
    )


@dataclass(frozen=True)
class MapSource:
    """Where a network's last map is read: 'feats', 'preact', or the path of one of its modules; then a ReLU or not."""

    place: str
    relu: bool = False

    def __call__(self, model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, map) of one forward pass."""
        logits, _, feature_map = self.read(model, image)
        return logits, feature_map

    def read(self, model: nn.Module, image: Tensor) -> tuple[Tensor, dict, Tensor]:
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


class MapReader:
    """image -> (logits, map) of a network.

    It is compiled as a whole: a compiled network would return all of its maps, and each costs zeros on the way back.
    """

    def __init__(self, network: nn.Module, source: MapSource) -> None:
        self.network, self.source = network, source
        self._compiled: Callable | None = None

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self._read(image) if self._compiled is None else self._compiled(image)

    def _read(self, image):
        return self.source(self.network, image)

    def compile(self, **options: Any) -> bool:
        """Compile, and whether that can be: a map read by a hook inside the network would be missed."""
        if self.source.place not in ("feats", "preact"):
            return False
        self._compiled = torch.compile(self._read, **options)
        return True

    def __deepcopy__(self, memo):
        return MapReader(copy.deepcopy(self.network, memo), self.source)


@dataclass(frozen=True)
class MapFacts:
    """A network's last map as a distiller needs it: how to read it, channels, side in pixels; and the classes."""

    source: MapSource
    channels: int
    size: int
    classes: int


def teacher_map(model: nn.Module, image_size: int, name: str) -> MapFacts:
    """The map F_t whose global average is the classifier's input; refused by name where there is none.

    Tried in this order: the last of `feats`, the ReLU of the last of `preact_feats` (WRNs take feats before their last
    BN), then every module's output (MobileNetV2 and ShuffleV2 have a convolution behind their last `feats`).
    """
    image = probe_image(model, image_size)
    with evaluating(model), torch.no_grad():
        pooled, feats = _classifier_input(model, image, name)
        for source in _sources(feats):
            if _averages_to(source(model, image)[1], pooled):
                return _facts(source, model, image)
        source = _search_modules(model, image, pooled)
        if source is not None:
            return _facts(source, model, image)
    raise ModelRefused(
        f"{name} cannot be the teacher here: none of its maps averages to its classifier's {pooled.shape[1]} inputs "
        f"(tried feats[-1], relu(preact_feats[-1]) and every module's output at {image_size} pixels), so the student "
        "could not predict through that classifier. Use a teacher with global average pooling before the classifier."
    )


def student_map(model: nn.Module, image_size: int, name: str) -> MapFacts:
    """The map F_s that is projected: the last of `feats`, or for WRNs the ReLU of the last pre-activation.

    A student needs no classifier of its own: one that predicts otherwise (Tiny-ImageNet's MobileNetV2) gives `feats`.
    """
    image = probe_image(model, image_size)
    with evaluating(model), torch.no_grad():
        try:
            classifier_of(model)
        except ModelRefused:
            return _facts(FEATS, model, image)
        pooled, feats = _classifier_input(model, image, name)
        matching = [source for source in _sources(feats) if _averages_to(source(model, image)[1], pooled)]
        return _facts(matching[0] if matching else FEATS, model, image)


def check_classes(student: Any, teacher: Any, student_name: str, teacher_name: str, because: str = "") -> None:
    """Refuse two networks, by their facts, that tell different numbers of classes apart."""
    if student.classes != teacher.classes:
        raise ModelRefused(
            f"{student_name} has {student.classes} classes, {teacher_name} {teacher.classes}; expected the "
            f"same{because}. Use a teacher of these data."
        )


def unused_parameters(model: nn.Module, source: MapSource, image_size: int) -> list[str]:
    """Names of the parameters that cannot move the map: the student's own head and whatever else lies behind it."""
    names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True)
    with evaluating(model), torch.enable_grad():
        total = source(model, probe_image(model, image_size))[1].sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


def _sources(feats):
    return [FEATS, PREACT] if feats.get("preact_feats") else [FEATS]


def _facts(source, model, image):
    logits, feature_map = source(model, image)
    return MapFacts(source, feature_map.shape[1], feature_map.shape[-1], logits.shape[1])


def _averages_to(feature_map, pooled):
    if feature_map.dim() != 4 or feature_map.shape[1] != pooled.shape[1]:
        return False
    return torch.allclose(pool(feature_map), pooled, rtol=1e-4, atol=1e-6)


def outputs_of(model: nn.Module, image: Tensor, name: str) -> tuple[Tensor, dict]:
    """(logits, feats) of a network in mdistiller's clothes; anything else is refused by name."""
    try:
        output = model(image)
    except RuntimeError as error:
        raise ModelRefused(
            f"{name} does not run on {image.shape[-1]}-pixel images: {error}. Choose a network made for this size."
        ) from error
    if not (isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], dict) and output[1].get("feats")):
        raise ModelRefused(
            f"{name} returns {type(output).__name__}; expected (logits, dict with 'feats'), as mdistiller's."
        )
    return output


def _classifier_input(model, image, name):
    inputs = []
    handle = classifier_of(model, name).register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    try:
        _, feats = outputs_of(model, image, name)
    finally:
        handle.remove()
    return inputs[-1], feats


def _search_modules(model, image, pooled):
    """The first module, in order of execution, whose output (or its ReLU) averages to the classifier's input."""
    found = []

    def look(path):
        def hook(_module, _inputs, output):  # compared at once: a later in-place ReLU would change the output
            if not found and isinstance(output, torch.Tensor):
                relus = [relu for relu in (False, True) if _averages_to(F.relu(output) if relu else output, pooled)]
                found.extend(MapSource(path, relu) for relu in relus[:1])

        return hook

    handles = [module.register_forward_hook(look(path)) for path, module in model.named_modules() if path]
    try:
        model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def probe_image(model: nn.Module, image_size: int) -> Tensor:
    """Two fixed noise images where the network lives; a generator of its own, so that no run's draws are moved."""
    parameter = next(model.parameters())
    noise = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return noise.to(parameter.device, parameter.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a probe, so that no running statistic moves; every module's own mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
