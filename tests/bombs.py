"""Files whose reading by plain pickle would run code."""

import os

import torch


class Bomb:
    """A pickle that would run code: unpickling it makes a file."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def plant_bomb(path, trace):
    """A checkpoint as torch.save writes it, whose loading by plain pickle would run code."""
    torch.save({"model": {"weight": torch.ones(1)}, "extra": Bomb(trace)}, path)
    return path
