"""What feature distillation needs to know of a network: its classifier, its last map, and the projector between two.

Pure torch, no host: the networks only have to return (logits, {"feats": [...], "preact_feats": [...]}), as mdistiller's
do. A network that cannot be served is refused by name when a distiller is built, never in the middle of a run.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from atsc_plugin.errors import ModelRefused
from atsc_plugin.networks.map_source import FEATS, PREACT, MapSource


def classifier_of(model, name="the network"):
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


def pool(feature_map):
    """N x C x H x W -> N x C, the mean over the map."""
    return feature_map.mean(dim=(2, 3))


def full(tensor):
    """A 16-bit tensor in fp32, any other as it is: sums over classes and images lose too much in 16 bits."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def align(feature_map, size):
    """Average-pool a map larger than `size` down to it; a smaller one is left as it is."""
    return F.adaptive_avg_pool2d(feature_map, size) if feature_map.shape[-1] > size else feature_map


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, factor):
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def scale_gradient(tensor, factor):
    """The tensor itself on the way forward; on the way back its gradient is multiplied by `factor`."""
    if factor == 1:
        return tensor
    return _ScaledGradient.apply(tensor, factor) if factor else tensor.detach()


class Projector(nn.Sequential):
    """SimKD's bottleneck C_s -> inner -> C_t: 1x1, 3x3, 1x1 convolutions without bias, each with BN and ReLU."""

    def __init__(self, channels_in, inner, channels_out):
        layers = []
        for before, after, kernel in ((channels_in, inner, 1), (inner, inner, 3), (inner, channels_out, 1)):
            layers.append(nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False))
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers)


def projector(channels_in, channels_out, factor, key):
    """A Projector whose inner width is C_t / factor; `key` is the config key that a refusal names."""
    check_factor(channels_out, factor, key)
    return Projector(channels_in, channels_out // factor, channels_out)


def check_factor(channels_out, factor, key):
    if not 1 <= factor <= channels_out:
        raise ModelRefused(
            f"{key} is {factor}, but the teacher's map has {channels_out} channels; expected 1 to {channels_out}."
        )


@dataclass(frozen=True)
class MapFacts:
    """A network's last map as a distiller needs it: how to read it, channels, side in pixels; and the classes."""

    source: MapSource
    channels: int
    size: int
    classes: int


def teacher_map(model, image_size, name):
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


def student_map(model, image_size, name):
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


def check_classes(student, teacher, student_name, teacher_name, because=""):
    """Refuse two networks, by their facts, that tell different numbers of classes apart."""
    if student.classes != teacher.classes:
        raise ModelRefused(
            f"{student_name} has {student.classes} classes, {teacher_name} {teacher.classes}; expected the "
            f"same{because}. Use a teacher of these data."
        )


def unused_parameters(model, source, image_size):
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


def outputs_of(model, image, name):
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


def probe_image(model, image_size):
    """Two fixed noise images where the network lives; a generator of its own, so that no run's draws are moved."""
    parameter = next(model.parameters())
    noise = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    return noise.to(parameter.device, parameter.dtype)


@contextmanager
def evaluating(model):
    """Eval mode for a probe, so that no running statistic moves; every module's own mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
