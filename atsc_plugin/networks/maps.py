"""What feature distillation needs to know of a network: its target, and the tail that leads from there to the logits.

The target is the map whose mean feeds the tail, or the vector itself where no map's mean does (CLS token, attention
pooling); a vector is handed on as a map of one pixel. Pure torch, no host: the networks return (logits, {"feats":
[...], "preact_feats": [...]}), as mdistiller's do; adapter.py adapts others. tail(pool(target(x))) == network(x), else
a network is refused by name when a distiller is built, never in the middle of a run.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atsc_plugin.errors import ModelRefused
from atsc_plugin.losses import pool
from atsc_plugin.networks.tail import Step, Tail, tail_steps, vector_of, without_zeros


@dataclass(frozen=True)
class MapSource:
    """Where a network's map is read: 'feats', 'preact', or the path of one of its modules; then a ReLU or not.

    `layout` is that of the module's output: nchw, nhwc, or tokens+P behind P prefix tokens; "vector" is its input.
    """

    place: str
    relu: bool = False
    layout: str = "nchw"

    def __call__(self, model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, map) of one forward pass."""
        logits, _, feature_map = self.read(model, image)
        return logits, feature_map

    def read(self, model: nn.Module, image: Tensor) -> tuple[Tensor, dict, Tensor]:
        """(logits, the network's own dict of maps, map) of one forward pass."""
        if self.place in ("feats", "preact"):
            logits, feats = model(image)
            return logits, feats, self.shaped(feats["feats" if self.place == "feats" else "preact_feats"][-1])
        with recording(model, [self]) as seen:
            logits, feats = model(image)
        return logits, feats, seen[self]

    def shaped(self, output: Tensor) -> Tensor:
        """N x C x h x w of what the module gave or, for a vector, got."""
        feature_map = as_map(output, self.layout)
        return F.relu(feature_map) if self.relu else feature_map


FEATS, PREACT = MapSource("feats"), MapSource("preact", relu=True)


def as_map(output: Tensor, layout: str) -> Tensor:
    """N x C x h x w of a tensor in one of MapSource's layouts; tokens lie on a square grid, row by row."""
    if layout == "nchw":
        return output
    if layout == "nhwc":
        return output.permute(0, 3, 1, 2)
    if layout == "vector":
        return output.flatten(1)[:, :, None, None]
    patches = output[:, int(layout.removeprefix("tokens+")) :].transpose(1, 2)
    return patches.unflatten(2, (math.isqrt(patches.shape[2]), -1))


def layouts_of(output: Any, prefixes: Sequence[int]) -> list[str]:
    """The layouts that a tensor's shape allows, the likeliest first; `prefixes` are the numbers of prefix tokens."""
    if not isinstance(output, Tensor) or output.dim() not in (3, 4):
        return []
    if output.dim() == 3:
        counts = [(prefix, output.shape[1] - prefix) for prefix in prefixes]
        return [f"tokens+{prefix}" for prefix, count in counts if count > 0 and math.isqrt(count) ** 2 == count]
    _, first, second, third = output.shape
    possible = {"nchw": second == third, "nhwc": first == second}
    return [layout for layout, square in possible.items() if square]


@contextmanager
def recording(model: nn.Module, sources: Sequence[MapSource]) -> Iterator[dict[MapSource, Tensor]]:
    """{source: map} of the last forward pass within, to be read behind the block.

    A hook only keeps the output. What it computed inside a block that checkpoints its activations
    (use_reentrant=False) would be missing when that block is run again on the way back, and torch refuses that.
    """
    seen: dict[MapSource, Tensor] = {}

    def listen(source):
        module = model.get_submodule(source.place)
        if source.layout == "vector":
            return module.register_forward_pre_hook(lambda _m, args: seen.update({source: args[0]}))
        return module.register_forward_hook(lambda _m, _i, output: seen.update({source: output}))

    handles = [listen(source) for source in sources]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    seen.update({source: source.shaped(output) for source, output in seen.items()})


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
    """A network's map as a distiller needs it: how to read it, channels, side in pixels; the classes; and the tail.

    `vector`: the target is a vector, of which the map is the one pixel. `signed`: it has values below zero. `tail`:
    its steps; () where none was looked for.
    """

    source: MapSource
    channels: int
    size: int
    classes: int
    vector: bool = False
    signed: bool = False
    tail: tuple[Step, ...] = ()

    def tail_of(self, model: nn.Module) -> nn.Module:
        """vector -> logits: the network's own modules; its nn.Linear itself where there is no other."""
        return Tail.of(model, self.tail)


def teacher_map(model: nn.Module, image_size: int, name: str) -> MapFacts:
    """The target F_t and the tail behind it; refused by name where a network has none.

    Tried in this order: the last of `feats`, the ReLU of the last of `preact_feats` (WRNs take feats before their last
    BN), then every module's output (MobileNetV2 and ShuffleV2 have a convolution behind their last `feats`).
    """
    image = probe_image(model, image_size)
    with evaluating(model), torch.no_grad(), without_zeros(model):
        logits, feats = outputs_of(model, image, name)
        target = find_target(model, image, logits, feats)
        if target is None:
            raise ModelRefused(
                f"{name} has no layers, such as an nn.Linear, between a pooled vector and its logits, so the student "
                "could not predict through them. Use another network, or a method that learns from logits (KD)."
            )
        source, tail = target
        facts = _facts(source, model, image, tail)
        again = facts.tail_of(model)(pool(source(model, image)[1]))
        if again.shape != logits.shape or not torch.allclose(again, logits, rtol=1e-4, atol=1e-5):
            raise ModelRefused(
                f"{name} cannot be the teacher here: its layers {', '.join(path for path, _ in tail)} on the mean of "
                f"its map at {source.place} do not give its logits, so the student could not predict through them. Use "
                "another network, or a method that learns from logits (KD)."
            )
        return facts


def find_target(
    model: nn.Module, image: Tensor, logits: Tensor, feats: dict, prefixes: Sequence[int] = range(3)
) -> tuple[MapSource, tuple[Step, ...]] | None:
    """(target, steps of the tail) of a network in eval mode; None where no module leads from a vector to the logits.

    A network that has looked for them itself (adapter.py) says so by its attribute `target`.
    """
    if "target" in vars(model):
        return vars(model)["target"]
    steps, vectors = tail_steps(model, image, logits)
    if not steps:
        return None
    for source, key in ((FEATS, "feats"), (PREACT, "preact_feats")):
        for number, vector in enumerate(vectors if feats.get(key) else ()):
            if _averages_to(source.shaped(feats[key][-1]), vector):
                return source, steps[number:]
    if found := _search_modules(model, image, vectors, prefixes):
        source, number = found
        return source, steps[number:]
    return MapSource(steps[0][0], layout="vector"), steps


def student_map(model: nn.Module, image_size: int, name: str, vector: bool = False) -> MapFacts:
    """The map F_s that is projected: the last of `feats`, or for WRNs the ReLU of the last pre-activation.

    A student needs no tail of its own: one that predicts otherwise gives `feats`. With `vector`, where a vector is
    projected, a student whose own target is a vector (a ViT's CLS token) gives that.
    """
    image = probe_image(model, image_size)
    with evaluating(model), torch.no_grad(), without_zeros(model):
        logits, feats = outputs_of(model, image, name)
        source, _ = find_target(model, image, logits, feats) or (FEATS, ())
        usable = source in (FEATS, PREACT) or (vector and source.layout == "vector")
        return _facts(source if usable else FEATS, model, image)


def classes_of(model: nn.Module, image_size: int, name: str) -> int:
    """How many classes a network tells apart, by its logits alone: it need not have maps."""
    with evaluating(model), torch.no_grad():
        return _run(model, probe_image(model, image_size), name)[0].shape[1]


def check_classes(student: int, teacher: int, student_name: str, teacher_name: str, because: str = "") -> None:
    """Refuse two networks that tell different numbers of classes apart."""
    if student != teacher:
        raise ModelRefused(
            f"{student_name} has {student} classes, {teacher_name} {teacher}; expected the same{because}. Use a "
            "teacher of these data."
        )


def unused_parameters(
    model: nn.Module, source: Callable[[nn.Module, Tensor], tuple[Any, Tensor]], image_size: int
) -> list[str]:
    """Names of the parameters that cannot move the map: the student's own head and whatever else lies behind it.

    source(model, image) gives (anything, the map), as a MapSource does.
    """
    names, parameters = zip(*[(n, p) for n, p in model.named_parameters() if p.requires_grad], strict=True)
    with evaluating(model), torch.enable_grad():
        total = source(model, probe_image(model, image_size))[1].sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]


def _facts(source, model, image, tail=()):
    logits, feature_map = source(model, image)
    signed = bool((feature_map < 0).any())
    channels, size = feature_map.shape[1], feature_map.shape[-1]
    return MapFacts(source, channels, size, logits.shape[1], source.layout == "vector", signed, tail)


def _averages_to(feature_map, vector):
    if feature_map.dim() != 4 or feature_map.shape[1] != vector.shape[1]:
        return False
    return torch.allclose(pool(feature_map), vector, rtol=1e-4, atol=1e-6)


def _run(model, image, name):
    try:
        return model(image)
    except RuntimeError as error:
        raise ModelRefused(
            f"{name} does not run on {image.shape[-1]}-pixel images: {error}. Choose a network made for this size."
        ) from error


def outputs_of(model: nn.Module, image: Tensor, name: str) -> tuple[Tensor, dict]:
    """(logits, feats) of a network with mdistiller's outputs; anything else is refused by name."""
    output = _run(model, image, name)
    has_maps = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], dict)
    if has_maps and output[1].get("feats") == []:
        raise ModelRefused(
            f"{name} has no feature map (N x C x h x w, or tokens of a square); expected one. Use another network, or "
            "a method that learns from logits (KD)."
        )
    if not (has_maps and output[1].get("feats")):
        raise ModelRefused(
            f"{name} returns {type(output).__name__}; expected (logits, dict with 'feats'), as mdistiller's."
        )
    return output


def _search_modules(model, image, vectors, prefixes):
    """(source, number of the vector) of the first module whose output (or its ReLU) averages to one of the vectors."""
    found = []

    def matches(output):  # compared at once: a later in-place ReLU would change the output
        for layout in layouts_of(output, prefixes):
            feature_map = as_map(output, layout)
            for number, vector in enumerate(vectors):
                for relu in (False, True) if feature_map.shape[1] == vector.shape[1] else ():
                    if _averages_to(F.relu(feature_map) if relu else feature_map, vector):
                        return relu, layout, number
        return None

    def look(path):
        def hook(_module, _inputs, output):
            if not found and vector_of(output) is None and (match := matches(output)):
                relu, layout, number = match
                found.append((MapSource(path, relu, layout), number))

        return hook

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if path:
                hooks.enter_context(module.register_forward_hook(look(path)))
        model(image)
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
