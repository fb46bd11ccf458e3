"""SOLVER.AMP and SOLVER.COMPILE: the number format of the networks, and their compilation.

Weights, losses and the optimizer stay fp32. Evaluation runs uncompiled, since its shapes and modes differ.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from atsc_plugin.contract import Contract
from atsc_plugin.engine.batches import layout_of
from atsc_plugin.errors import PluginError
from atsc_plugin.losses import full

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
RECORDS_GRAPHS = ("reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Precision:
    """The format of the step's networks (`dtype` None: as the weights are) and, for fp16, the scaler of its losses."""

    device: torch.device
    dtype: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    why: str = "asked for"

    @property
    def name(self) -> str:
        """What the run computes in, as result.json has it."""
        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]

    def autocast(self) -> torch.autocast:
        """The block in which a distiller's forward runs."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss):
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def overflows_always(self) -> bool:
        """Whether fp16's loss scale has fallen below 1: the gradients are infinite, scaled or not. Waits for the GPU.

        Single infinite gradients are how the scaler finds its scale: it leaves such a step out and halves the scale.
        """
        return self.scaler is not None and self.scaler.get_scale() < 1

    def move(self, optimizer, parameters, clip_norm):
        """The optimizer's step, the whole gradient clipped to clip_norm where that is positive; nothing waits."""
        if self.scaler is not None and clip_norm:
            self.scaler.unscale_(optimizer)
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()


def precision_of(wanted: str, device: torch.device, second_step: str = "") -> Precision:
    """SOLVER.AMP on this device; a format that the device cannot run is refused, and `auto` never is.

    `second_step` is the reason why a method makes two steps a batch, which are defined in fp32 only.
    """
    if wanted == "auto":
        hindrance = second_step or ("a CPU" if device.type != "cuda" else "" if _has_bf16() else "no bf16 units")
        if hindrance:
            return Precision(device, why=hindrance)
        return Precision(device, DTYPES["bf16"], why="fp32's range, and no scaler")
    if wanted == "none":
        return Precision(device)
    if second_step:
        raise PluginError(f"SOLVER.AMP is {wanted}, but {second_step}, defined in fp32 only. Use SOLVER.AMP none.")
    if wanted == "fp16" and device.type != "cuda":
        raise PluginError(f"SOLVER.AMP fp16 needs a CUDA device; this run is on {device}. Use bf16, auto or none.")
    if device.type == "cuda" and wanted == "bf16" and not _has_bf16():
        raise PluginError(f"{torch.cuda.get_device_name(device)} has no bf16. Use SOLVER.AMP fp16, auto or none.")
    return Precision(device, DTYPES[wanted], torch.amp.GradScaler(device.type) if wanted == "fp16" else None)


def _has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def chosen(precision: Precision) -> dict[str, str]:
    """{setting: value and reason} of what no key sets, as about.json and result.json have it; set in this process too.

    Convolutions in TF32 are torch's default, and products of matrices in fp32: nothing is changed there.
    """
    gpu = precision.device.type == "cuda"
    last = layout_of(precision.device) == torch.channels_last
    reason = (
        "faster here for CIFAR ResNets" if not gpu else "16-bit kernels are made for it" if last else "no bf16 units"
    )
    settings = {"layout": f"{'channels-last' if last else 'contiguous'}: {reason}"}
    settings["precision"] = f"{precision.name}: {precision.why}"
    if not gpu:
        return settings | {"cudnn_benchmark": "off: no GPU", "tf32": "off: no GPU"}
    torch.backends.cudnn.benchmark = True
    tf32 = "convolutions" if torch.backends.cudnn.allow_tf32 else "off"
    return settings | {
        "cudnn_benchmark": "on: a run has few shapes",
        "tf32": f"{tf32}: torch's own setting; classifiers and losses stay fp32",
    }


def keep_logits_full(networks: list[nn.Module], precision: Precision) -> None:
    """Have networks give their logits in fp32: on a CPU autocast leaves log-softmax in bf16."""
    if precision.dtype is not None:
        keep_full(*networks)


def keep_full(*networks: nn.Module) -> None:
    """The same under an autocast that only the loop knows of; a network has the hook once."""
    for network in networks:
        if _first_in_full not in network._forward_hooks.values():
            network.register_forward_hook(_first_in_full)


def _first_in_full(_module, _inputs, output):
    return (full(output[0]), *output[1:]) if isinstance(output, tuple) else output


# ---- compilation ----


def compile_method(method: Contract, mode: str, device: torch.device, **options) -> list[str]:
    """Have a method compile its networks in place; the names of those that were, [] for mode none."""
    if mode == "none":
        return []
    if mode in RECORDS_GRAPHS and device.type != "cuda":
        raise PluginError(f"SOLVER.COMPILE {mode} records CUDA graphs; this run is on {device}. Use default or none.")
    return method.compile_networks(mode=None if mode == "default" else mode, **options)


@contextmanager
def compiler_errors() -> Iterator[None]:
    """A compiler that fails inside the block ends in a message with the remedy."""
    try:
        yield
    except Exception as error:
        # The first compilation has loaded this module; until then nothing of the compiler can have failed.
        failures = sys.modules.get("torch._dynamo.exc")
        if failures is None or not isinstance(error, failures.TorchDynamoException):
            raise
        reason = " ".join(str(error).split())[:200]
        raise PluginError(
            f"SOLVER.COMPILE cannot compile here: {reason} ... It needs a C++ compiler (CPU) or Triton "
            "(GPU). Use SOLVER.COMPILE none."
        ) from error


def uncompiled(compiled: list[str]) -> AbstractContextManager:
    """The block in which compiled networks run as they were written."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
