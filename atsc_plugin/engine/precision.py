"""SOLVER.AMP: the number format in which the networks compute. Weights, losses and the optimizer stay fp32."""

from dataclasses import dataclass

import torch

from atsc_plugin.errors import PluginError
from atsc_plugin.methods.teacher_list import networks_of
from atsc_plugin.networks.maps import full

NAMES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The format of the step's networks (`dtype` None: as the weights are) and, for fp16, the scaler of its losses."""

    device: torch.device
    dtype: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None

    @property
    def name(self):
        return {None: "none", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]

    def autocast(self):
        """The block in which a distiller's forward runs."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss):
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def overflows_always(self):
        """Whether fp16's loss scale has fallen below 1: the gradients are infinite, scaled or not. Waits for the device.

        Single infinite gradients are how the scaler finds its scale: it leaves such a step out and halves the scale.
        """
        return self.scaler is not None and self.scaler.get_scale() < 1

    def move(self, optimizer, parameters, clip_norm):
        """The optimizer's step, the whole gradient cut to clip_norm where that is positive; nothing waits."""
        if self.scaler is not None and clip_norm:
            self.scaler.unscale_(optimizer)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()


def precision_of(wanted, device, second_step=False):
    """SOLVER.AMP on this device; a format that the device cannot run is refused, and `auto` never is."""
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and _has_bf16() and not second_step else "none"
    if wanted == "none":
        return Precision(device)
    if second_step:
        raise PluginError(
            f"SOLVER.AMP is {wanted}, but the distiller makes a second step a batch, which is defined in fp32 only "
            "(ATSC.UPDATE published). Use SOLVER.AMP none, or ATSC.UPDATE fused."
        )
    if wanted == "fp16" and device.type != "cuda":
        raise PluginError(f"SOLVER.AMP fp16 needs a CUDA device; this run is on {device}. Use bf16, auto or none.")
    if device.type == "cuda" and wanted == "bf16" and not _has_bf16():
        raise PluginError(f"{torch.cuda.get_device_name(device)} has no bf16. Use SOLVER.AMP fp16, auto or none.")
    return Precision(device, NAMES[wanted], torch.amp.GradScaler(device.type) if wanted == "fp16" else None)


def _has_bf16():
    return torch.cuda.is_bf16_supported(including_emulation=False)


def keep_logits_full(distiller, precision):
    """Have student and teacher give their logits in fp32: on a CPU autocast leaves log-softmax in bf16."""
    if precision.dtype is None:
        return
    for name in ("student", "teacher"):
        for network in networks_of(getattr(distiller, name, None)):
            if isinstance(network, torch.nn.Module):
                network.register_forward_hook(_first_in_full)


def _first_in_full(_module, _inputs, output):
    return (full(output[0]), *output[1:]) if isinstance(output, tuple) else output
