"""Formulas that more than one method uses. Pure torch; each has its equation in the docstring."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def full(tensor: Tensor) -> Tensor:
    """A 16-bit tensor in fp32, any other as it is: sums over classes and images lose too much in 16 bits."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def hard_labels(target: Tensor) -> Tensor:
    """The class of each image; of soft labels N x C the class with the largest share."""
    return target.argmax(1) if target.dim() == 2 else target


def pool(feature_map: Tensor) -> Tensor:
    """N x C x H x W -> N x C, the mean over the map."""
    return feature_map.mean(dim=(2, 3))


def align(feature_map: Tensor, size: int) -> Tensor:
    """Average-pool a map larger than `size` down to it; a smaller one is left as it is."""
    return F.adaptive_avg_pool2d(feature_map, size) if feature_map.shape[-1] > size else feature_map


def softened_divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(wanted / T) || softmax(logits / T)), mean over images"""
    log_p, q = F.log_softmax(full(logits) / temperature, dim=1), F.softmax(full(wanted) / temperature, dim=1)
    return F.kl_div(log_p, q, reduction="batchmean") * temperature**2


def feature_loss(projected: Tensor, target: Tensor) -> Tensor:
    """mse(P(F_s), F_t) = mean over images, channels and positions of (P(F_s) - F_t)^2"""
    return F.mse_loss(projected, target)


def through_frozen(classifier: nn.Module, pooled: Tensor) -> Tensor:
    """C(pooled) without a gradient for C: what a student's own losses see of a shared classifier or tail."""
    held = {name: parameter.detach() for name, parameter in classifier.named_parameters()}
    return full(torch.func.functional_call(classifier, {**held, **_copies_of_buffers(classifier)}, (pooled,)))


def through_again(classifier: nn.Module, pooled: Tensor) -> Tensor:
    """C(pooled) of a batch that C's own batch norms have taken in already: their statistics stay."""
    buffers = _copies_of_buffers(classifier)
    return full(torch.func.functional_call(classifier, buffers, (pooled,)) if buffers else classifier(pooled))


def _copies_of_buffers(module):
    """What batch norm moves in training mode, so that the network's own forward alone moves the real ones."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, factor):
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The tensor itself on the way forward; on the way back its gradient is multiplied by `factor`."""
    return tensor if factor == 1 else _ScaledGradient.apply(tensor, factor)
