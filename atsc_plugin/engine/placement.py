"""Where tensors lie and in which memory layout: one rule for training and evaluation, so that they agree to a digit."""

import torch

from atsc_plugin.engine import distributed
from atsc_plugin.errors import PluginError

INPUTS = ("image", "target", "index", "contrastive_index")  # mdistiller's batch tuples, of two to four of these


def device_of(cfg):
    """EXPERIMENT.DEVICE as a torch device; a device that is not there is refused."""
    wanted = distributed.device_of(cfg.EXPERIMENT.DEVICE)
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise PluginError(f"EXPERIMENT.DEVICE is '{wanted}'; expected auto, cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PluginError(
            f"EXPERIMENT.DEVICE is '{wanted}', but torch sees {torch.cuda.device_count()} CUDA devices; "
            "use cpu, auto or one of those."
        )
    return device


def layout_of(device):
    """Channels-last on a CPU, where CIFAR ResNets train faster in it; torch's default elsewhere."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def place_module(module, device):
    """Move a module to its device and layout, in place."""
    return module.to(device).to(memory_format=layout_of(device))


def place(tensor, device):
    """Move a tensor; images (four dimensions) get the device's layout."""
    if tensor.dim() == 4:
        return tensor.to(device, memory_format=layout_of(device), non_blocking=True)
    return tensor.to(device, non_blocking=True)


def inputs_of(batch, device):
    """What a distiller is called with, by name, from one of mdistiller's batch tuples; all of it on the device."""
    if not 2 <= len(batch) <= len(INPUTS):
        raise PluginError(f"The loader gives batches of {len(batch)} entries; expected 2 to 4: {', '.join(INPUTS)}.")
    return {name: _placed(entry, device) for name, entry in zip(INPUTS, batch, strict=False)}


def _placed(entry, device):
    if isinstance(entry, (list, tuple)):  # forks with a weak and a strong view of each image
        return type(entry)(_placed(part, device) for part in entry)
    return place(entry, device)
