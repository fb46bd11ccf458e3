"""The random states of a process: Python's, NumPy's, torch's and the device's, seeded, kept and put back together."""

import random

import numpy as np
import torch


def seed_all(seed):
    """Start every generator that layers, loaders and transforms draw from globally."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # the devices' too


def random_states(device):
    """All states as tensors, numbers and text, so that they load without executing anything."""
    name, keys, *rest = np.random.get_state()
    states = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore(states, device):
    """Put back what `random_states` gave; a device that was not there then keeps its seed."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
