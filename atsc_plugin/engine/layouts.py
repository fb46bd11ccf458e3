"""Where a network's weights lie in a checkpoint: the layouts of the tools whose files people have.

| tool | layout |
|---|---|
| mdistiller, and this plugin | {"model": state}, bare, or a distiller's "module.student.*" with its teacher beside it |
| RepDistiller | {"model": state, "best_acc", "opt": argparse.Namespace} |
| SimKD's and ATSC's released code | the same; a distilled student has its projector beside it under "proj" |
| timm | {"state_dict": state, "state_dict_ema": state, "arch", "args": argparse.Namespace}; EMA first |
| torchvision's references | {"model": state, "model_ema": state}; the same |
| DataParallel, torch.compile | "module.*", "_orig_mod.*" |
| deploy files of this plugin | "backbone.*" and nothing else |

A student that predicts through somebody else's classifier is refused by name: its own head was never trained.
"""

import argparse

import torch

from atsc_plugin.errors import PluginError

# What option parsers leave in a file: attributes and no code.
PLAIN_CLASSES = [argparse.Namespace]
STATES = ("state_dict_ema", "model_ema", "model", "state_dict")
PREFIXES = ("module.", "_orig_mod.", "student.")
WAY_OUT = "Use its deploy_* files (DISTILLER.TEACHER_CKPT takes them), or a network trained on its own."


def state_of_network(checkpoint, path):
    """A network's state_dict from any of the layouts."""
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get("proj"), dict):
        raise PluginError(
            f"{path} holds a student of SimKD's released code: its projector lies beside it under 'proj', and it "
            "predicts through its teacher's classifier, which is not in the file. Its own head was never trained. "
            "Use a network trained on its own."
        )
    tensors = _tensors(checkpoint)
    if not tensors:
        raise PluginError(
            f"{path} holds no network weights; expected a state_dict, bare or under {', '.join(map(repr, STATES))}."
        )
    names = [name.removeprefix("module.") for name in tensors]
    projected = any(name.startswith("projector") for name in names)
    if projected and any(name.startswith(("student.", "backbone.")) for name in names):
        raise PluginError(
            f"{path} holds a student that predicts through a projector and a classifier not its own; its own head was "
            f"never trained. {WAY_OUT}"
        )
    for prefix in PREFIXES:
        inside = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        tensors = inside or tensors
    for prefix in ("backbone.", "network."):  # of a deployed student, of a network in an adapter
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _tensors(checkpoint):
    if not isinstance(checkpoint, dict):
        return {}
    state = next((checkpoint[key] for key in STATES if isinstance(checkpoint.get(key), dict)), checkpoint)
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


def network_named_in(checkpoint):
    """What a file says its network is called: timm's "arch", or "model" of a Namespace; empty where it says nothing."""
    if not isinstance(checkpoint, dict):
        return ""
    if isinstance(checkpoint.get("arch"), str):
        return checkpoint["arch"]
    for key in ("opt", "args"):
        if isinstance(checkpoint.get(key), argparse.Namespace):
            options = vars(checkpoint[key])
            name = options.get("model_s") or options.get("model")
            return name if isinstance(name, str) else ""
    return ""
