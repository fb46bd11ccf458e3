"""torchvision's ImageNet weights from its local cache; used by resnet.py beside this file.

Nothing is downloaded: the file has to lie where torch.hub puts it, `checkpoints` in torch.hub.get_dir(), which
TORCH_HOME moves. It is read without executing any of it.
"""

from pathlib import Path

import torch

from atsc_plugin.errors import PluginError


def load_pretrained(network, weights):
    """`network` filled with a torchvision `Weights` entry, strictly. Returns it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if not path.is_file():
        raise PluginError(
            f"pretrained=True, but there is no file {path}; expected torchvision's weights {weights}. Download "
            f"{weights.url} into {path.parent} (TORCH_HOME names another place), or name a checkpoint with "
            "DISTILLER.TEACHER_CKPT."
        )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a truncated zip, a pickle that runs code, another network: torch throws many kinds
        detail = " ".join(str(error).split())[:240]
        raise PluginError(
            f"{path} was not loaded ({type(error).__name__}: {detail}); expected torchvision's weights {weights} for a "
            f"network of 1000 classes. Download {weights.url} again, or name a checkpoint with DISTILLER.TEACHER_CKPT."
        ) from error
    return network
