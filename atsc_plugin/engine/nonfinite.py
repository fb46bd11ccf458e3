"""NaN and infinity: noticed without waiting for the device, or stepped over at the cost of waiting."""

import math

import torch

from atsc_plugin.engine import distributed


class NotFinite(ArithmeticError):
    """A loss part, a gradient or a weight is NaN or infinite; the message names it."""


def all_finite(tensors):
    """Whether no entry of any tensor is NaN or infinite, as a tensor on their device: asking costs no wait."""
    tensors = [tensor.detach() for tensor in tensors if tensor.numel()]
    if not tensors:
        return torch.tensor(True)
    return torch.isfinite(torch.stack(torch._foreach_norm(tensors, math.inf))).all()


def gradients(parameters):
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


class SkippedSteps:
    """Leaves a step out when a loss part or a gradient of it is not finite: no weight and no running statistic moves.

    Costs a copy of the buffers (and of `moved_without_gradient()`, weights that a distiller moves in its forward pass)
    and a wait for the device in every step. Over several ranks all skip when one must.
    """

    def __init__(self, distiller):
        stored = distiller.state_dict(keep_vars=True)
        self.moving = [buffer for name, buffer in distiller.named_buffers() if name in stored]
        self.moving += getattr(distiller, "moved_without_gradient", list)()
        self.reason = None

    def remember(self):
        """Before the forward pass: what it may change."""
        self.kept = [tensor.detach().clone() for tensor in self.moving]

    def refuse(self, losses, parameters):
        """After the backward pass: True for a step not to be made; what its forward pass moved is then as it was."""
        parts = [torch.isfinite(part.detach()) for part in losses.values()]
        good = torch.stack([*parts, all_finite(gradients(parameters)).to(parts[0].device)]).int()
        distributed.total(good, least=True)
        names = [*(f"loss part '{name}'" for name in losses), "the gradient"]
        bad = [name for name, fine in zip(names, good.tolist(), strict=True) if not fine]
        if bad:
            self.reason = f"{bad[0]} was not finite"
            with torch.no_grad():
                for tensor, before in zip(self.moving, self.kept, strict=True):
                    tensor.copy_(before)
        return bool(bad)
