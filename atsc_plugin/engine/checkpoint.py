"""Checkpoints: written whole, read without running anything in them, from the layouts in use.

Every load is weights-only or safetensors: a pickle that would run code is refused, with the way out. What is saved
here carries a checksum over its values, which is verified before anybody uses them.
"""

import argparse
import hashlib
import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open

from atsc_plugin.engine.layouts import PLAIN_CLASSES, network_named_in, state_of_network
from atsc_plugin.errors import PluginError
from atsc_plugin.files import NUMPY_NUMBERS, whole_file, write_json
from atsc_plugin.networks.adapter import unwrapped
from atsc_plugin.untrusted import as_plugin_error, memory_limit, open_regular, printable

CHECKSUM = "checksum"
MOST_VALUES = 500_000  # of a checkpoint with a checksum, tensors counted as one
UNSAFE = "ATSC_UNSAFE_LOAD"  # environment: sha256 of the files that may execute what is in them


# ---- checksums ----


def digest(content):
    """A hash of values, not of bytes in a file: whatever reads the file, what is used is what was saved."""
    running = hashlib.blake2b(digest_size=16)
    _feed(running, content, [MOST_VALUES])
    return running.hexdigest()


def digest_of(network):
    """A hash of a network's weights and of all its buffers: those of its own normalisation are in no checkpoint."""
    return digest({**network.state_dict(), **dict(network.named_buffers())})


def _feed(running, value, left):
    """`left` holds how many more values there may be: lists that hold one another twice have 2 ** depth."""
    left[0] -= 1
    if left[0] < 0 or isinstance(value, (set, frozenset, argparse.Namespace)):
        raise ValueError(
            f"it has more than {MOST_VALUES:,} values" if left[0] < 0 else f"it has a {type(value).__name__}"
        )
    if isinstance(value, torch.Tensor):
        if value.is_meta or value.layout != torch.strided or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f"a tensor of {tuple(value.shape)} has no numbers of its own")  # a copy could be any size
        running.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        running.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, dict):
        running.update(f"dict {len(value)} ".encode())
        for key, entry in value.items():
            running.update(f"{key!r}: ".encode())
            _feed(running, entry, left)
    elif isinstance(value, (list, tuple)):
        running.update(f"list {len(value)} ".encode())
        for entry in value:
            _feed(running, entry, left)
    else:
        running.update(f"{type(value).__name__} {value!r} ".encode())


def _verified(content, path, required=False):
    """The content without its checksum; PluginError where it does not match, or is absent and required."""
    kept = content.pop(CHECKSUM, None) if isinstance(content, dict) else None
    if kept is None and not required:
        return content
    with as_plugin_error(
        f"{path} cannot be read as a checkpoint ({{}}); expected one written by a run. Use another one."
    ):
        found = digest(content)  # of self-references and nesting without end, too
    if kept != found:
        what = "has no checksum" if kept is None else "is damaged: its content does not match its checksum"
        raise PluginError(f"{path} {what}; expected a whole file written by a run. Use another one.")
    return content


# ---- writing ----


def save(state, path):
    """torch.save, whole, with a checksum beside the entries of `state`."""
    with whole_file(path) as file:
        try:
            torch.save({**state, CHECKSUM: digest(state)}, file)
        except RuntimeError as error:  # torch ends its zip file after a failed write and buries the cause
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def save_tensors(tensors, path, facts):
    """`path`.safetensors with the tensors and `path`.json with the facts to rebuild the module around them."""
    write_tensors(tensors, f"{path}.safetensors")
    write_json(facts, f"{path}.json")


def write_tensors(tensors, path):
    """A .safetensors file, whole, with a checksum in its header."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole_file(path) as file:
        file.write(safetensors.torch.save(plain, {CHECKSUM: digest(dict(sorted(plain.items())))}))


# ---- reading ----


def load_tensors(path):
    """{name: tensor} of a .safetensors file."""
    with as_plugin_error(f"{path} is not a readable safetensors file ({{}}); expected one written by a run."):
        open_regular(path).close()
        with safe_open(path, "pt") as file:
            kept = (file.metadata() or {}).get(CHECKSUM)
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    return _verified(tensors if kept is None else {**tensors, CHECKSUM: kept}, path)


def load(path, checked=False):
    """What torch.save wrote, on the CPU, without executing any of it; `checked`: only with a checksum of ours."""
    if not Path(path).is_file():
        raise PluginError(f"There is no checkpoint file {path}; expected one written by torch.save. Check the path.")
    if str(path).endswith(".safetensors"):
        return load_tensors(path)
    _refuse_bomb(path)
    with as_plugin_error(
        f"{path} cannot be read as a checkpoint ({{}}); expected a file written by torch.save. Fetch or write it again."
    ):
        try:
            with torch.serialization.safe_globals([*NUMPY_NUMBERS, *PLAIN_CLASSES]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            content = _trusted(path, error)
    return _verified(content, path, required=checked)


def _refuse_bomb(path):
    """torch.save compresses nothing, but torch.load unpacks what somebody else compressed, whatever its size."""
    with suppress(OSError, zipfile.BadZipFile, ValueError, NotImplementedError), zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > max(memory_limit(), os.path.getsize(path)):
            raise PluginError(f"{path} would unpack to {size:,} bytes, more than half of this machine's memory.")


def _trusted(path, error):
    """A file that would run code: refused, unless ATSC_UNSAFE_LOAD names the hash of exactly these bytes."""
    content = Path(path).read_bytes()
    name = hashlib.sha256(content).hexdigest()
    if name not in os.environ.get(UNSAFE, "").split(","):
        reasons = [line.strip()[:160] for line in str(error).splitlines() if "unsupported" in line.lower()]
        raise PluginError(
            f"{path} was not loaded: it is no plain checkpoint, and reading it might run code "
            f"({printable([*reasons, 'not a pickle of tensors'][0])}). Expected tensors, numbers and text only. If you "
            "trust its source, load it there and save its state_dict() again; or, to load it here and RUN WHAT IS IN "
            f"IT, put {UNSAFE}={name} into the environment."
        ) from error
    print(f"WARNING: {UNSAFE} names {path}: loading it RUNS WHATEVER CODE IT HOLDS.", file=sys.stderr, flush=True)
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)


def load_network(network, path, name, classes, new_head=False):
    """`fill` a network from a checkpoint file; the number of classes of a head that was left out, else None."""
    content = load(path)
    state = state_of_network(content, path)
    fill(network, state, path, name, classes, new_head, network_named_in(content))
    return head_of_others(network, state)[1]


def state_in(path):
    """The network's state_dict in a checkpoint file."""
    return state_of_network(load(path), path)


def head_of_others(network, state):
    """(tensors of the head, its number of classes) where the number of classes alone differs; else ([], None)."""
    own = unwrapped(network).state_dict()
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    if own.keys() != state.keys() or any(own[name].dim() != state[name].dim() for name in other):
        return [], None
    rows = {(len(own[name]), len(state[name])) for name in other}
    alike = all(own[name].shape[1:] == state[name].shape[1:] for name in other)
    return (other, rows.pop()[1]) if alike and len(rows) == 1 else ([], None)


def fill(network, state, origin, name, classes, new_head=False, says=""):
    """Fill `network` strictly; an error names keys, shapes and class counts. The names of what stays as it is.

    That is nothing, or with `new_head` a head of another number of classes. `says`: what the file calls the network.
    """
    inner = unwrapped(network)
    own, (head, others) = inner.state_dict(), head_of_others(network, state)
    missing = [key for key in own if key not in state]
    extra = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if head and not new_head:
        raise PluginError(
            f"{origin} holds a {name} for {others} classes; the data have {classes}. Use a checkpoint trained on these "
            "data."
        )
    if missing or extra or (shapes and not head):
        misfits = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for keys, what in ((missing, "missing"), (extra, "unknown"), (shapes, "of another shape"))
            if keys
        ]
        hint = f" The file says that it is a {says}." if says else ""
        raise PluginError(
            f"{origin} does not fit a {name}: {'; '.join(misfits)}.{hint} Name the network the file was made with."
        )
    with as_plugin_error(f"{origin} does not fit a {name} ({{}}). Name the network the file was made with."):
        load_bare(inner, {**state, **{key: own[key] for key in head}})  # or sparse, quantised, complex tensors
    return head


def load_bare(module, tensors):
    """Load tensors without the versions of layers, which torchvision's MNASNet demands: the module's own hold."""
    state = OrderedDict(tensors)
    state._metadata = module.state_dict()._metadata
    module.load_state_dict(state)
