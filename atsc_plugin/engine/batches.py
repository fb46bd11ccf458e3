"""From a loader's batch to a distiller's arguments: device, memory layout, names, the place in the epoch.

Training and evaluation place tensors by the same rule, so that they agree to the last digit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from atsc_plugin.engine import distributed
from atsc_plugin.errors import PluginError

INPUTS = ("image", "target", "index", "contrastive_index")  # mdistiller's batch tuples, of two to four of these


def device_of(cfg: Any) -> torch.device:
    """EXPERIMENT.DEVICE as a torch device, of several ranks each its own GPU; one that is not there is refused."""
    wanted = cfg.EXPERIMENT.DEVICE
    if dist.is_initialized() and wanted != "cpu" and torch.cuda.is_available():
        if wanted not in ("auto", "cuda"):
            raise PluginError(
                f"EXPERIMENT.DEVICE is '{wanted}' under torchrun; expected auto, cuda or cpu: one rank a GPU."
            )
        wanted = f"cuda:{os.environ['LOCAL_RANK']}"
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise PluginError(f"EXPERIMENT.DEVICE is '{wanted}'; expected auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PluginError(
            f"EXPERIMENT.DEVICE is '{wanted}', but torch sees {torch.cuda.device_count()} CUDA devices; "
            "use cpu, auto or one of those."
        )
    return device


@cache
def layout_of(device: torch.device) -> torch.memory_format:
    """Channels-last on a CPU, where CIFAR ResNets train faster in it, and on GPUs whose 16-bit kernels are made for it.

    Torch's default elsewhere.
    """
    last = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.channels_last if last else torch.contiguous_format


def place_module(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to its device and layout, in place."""
    return module.to(device).to(memory_format=layout_of(device))


def give_default_layout(networks: Iterable[nn.Module]) -> None:
    """Have networks give maps in torch's default layout, which `.view` asks for; a copy of each map in every step."""
    for network in networks:
        network.register_forward_hook(_in_default_layout)


def _in_default_layout(_module, _inputs, output):
    return _contiguous(output)


def _contiguous(output):
    if isinstance(output, Tensor):
        return output.contiguous()
    if isinstance(output, dict):
        return {name: _contiguous(entry) for name, entry in output.items()}
    if type(output) in (list, tuple):
        return type(output)(map(_contiguous, output))
    return output


def place(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor; images (four dimensions) get the device's layout."""
    if tensor.dim() == 4:
        return tensor.to(device, memory_format=layout_of(device), non_blocking=True)
    return tensor.to(device, non_blocking=True)


def inputs_of(batch: tuple | list, device: torch.device) -> dict[str, Any]:
    """What a distiller is called with, by name, from one of mdistiller's batch tuples; all of it on the device."""
    if not 2 <= len(batch) <= len(INPUTS):
        raise PluginError(f"The loader gives batches of {len(batch)} entries; expected 2 to 4: {', '.join(INPUTS)}.")
    return {name: _placed(entry, device) for name, entry in zip(INPUTS, batch, strict=False)}


def _placed(entry, device):
    if isinstance(entry, (list, tuple)):  # forks with a weak and a strong view of each image
        return type(entry)(_placed(view, device) for view in entry)
    return place(entry, device)


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell a loader the epoch; a plain DataLoader draws from torch's global generator and need not know."""
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)


def batches_from(loader: Any, done: int) -> Iterator:
    """The batches behind the first `done`. A loader that cannot start there draws and drops them at once."""
    if hasattr(loader, "batches_from"):
        return iter(loader.batches_from(done))
    batches = iter(loader)
    for _ in range(done):
        next(batches, None)
    return batches


def progress(batches: Iterable, label: str, total: int | None = None, done: int = 0) -> tqdm:
    """A bar on rank 0's terminal, nothing in a log file; `done` of the `total` batches are made already."""
    silent = None if distributed.first() else True
    return tqdm(batches, desc=label, total=total, initial=done, leave=False, disable=silent)
