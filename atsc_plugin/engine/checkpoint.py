"""Checkpoints: written whole, read without running anything in them, from the layouts in use.

Every load is weights-only or safetensors: a pickle that would run code is refused, with the way out.
"""

import pickle
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from atsc_plugin.errors import PluginError
from atsc_plugin.files import NUMPY_NUMBERS, whole_file, write_json

PREFIXES = ("module.student.", "student.", "module.")


def save(state, path):
    """torch.save, whole."""
    with whole_file(path) as file:
        torch.save(state, file)


def save_tensors(tensors, path, facts):
    """`path`.safetensors with the tensors and `path`.json with the facts to rebuild the module around them."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole_file(f"{path}.safetensors") as file:
        file.write(safetensors.torch.save(plain))
    write_json(facts, f"{path}.json")


def load_tensors(path):
    """{name: tensor} of a .safetensors file."""
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise PluginError(
            f"{path} is not a readable safetensors file ({error}); expected one written by a run."
        ) from error


def load(path):
    """What torch.save wrote, on the CPU, without executing any of it."""
    if not Path(path).is_file():
        raise PluginError(f"There is no checkpoint file {path}; expected one written by torch.save. Check the path.")
    if str(path).endswith(".safetensors"):
        return load_tensors(path)
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PluginError(
            f"{path} was not loaded: it is no plain checkpoint, and reading it might run code "
            f"({_first_line(error)}). Expected tensors, numbers and text only. If you trust its source, load it there "
            "and save its state_dict() again."
        ) from error
    except Exception as error:  # a truncated zip, a text file, a lost permission: torch throws many kinds
        raise PluginError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {_first_line(error)}); expected a file "
            "written by torch.save. Fetch or write it again."
        ) from error


def _first_line(error):
    return (str(error).splitlines() or ["no detail"])[0][:160]


def state_of_network(checkpoint, path):
    """A network's state_dict from the layouts in use: mdistiller, RepDistiller, bare, DataParallel, distiller."""
    for key in ("model", "state_dict"):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    tensors = isinstance(checkpoint, dict) and {k: v for k, v in checkpoint.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise PluginError(
            f"{path} holds no network weights; expected a state_dict, bare or under 'model' or 'state_dict'."
        )
    for prefix in PREFIXES:
        inside = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if inside:
            return inside
    return tensors


def load_network(network, path, name, classes):
    """Fill `network` from a checkpoint file, strictly; a misfit is told with names, shapes and class counts."""
    state = state_of_network(load(path), path)
    own = network.state_dict()
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    heads = [key for key in shapes if own[key].dim() == 2 and own[key].shape[1:] == state[key].shape[1:]]
    if (
        heads
        and not missing
        and not extra
        and {key.rpartition(".")[0] for key in shapes} == {heads[0].rpartition(".")[0]}
    ):
        raise PluginError(
            f"{path} holds a {name} for {state[heads[0]].shape[0]} classes; the data have {classes}. Use a checkpoint "
            "trained on these data."
        )
    if missing or extra or shapes:
        told = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for keys, what in ((missing, "missing"), (extra, "unknown"), (shapes, "of another shape"))
            if keys
        ]
        raise PluginError(f"{path} does not fit a {name}: {'; '.join(told)}. Name the network the file was made with.")
    network.load_state_dict(state)
    return network
