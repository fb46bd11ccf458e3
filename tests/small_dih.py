"""DIH on tiny networks and a toy of 24 images."""

from types import SimpleNamespace

import torch
from runs import tiny_loader
from tiny_stages import TinyStages

import atsc_plugin
from atsc_plugin.host import CFG
from atsc_plugin.methods.dih import DIH


def dih_config(tmp_path):
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "DIH", "TEACHER.CACHE", str(tmp_path / "cache"), "DIH.HEADS.EPOCHS", 2])
    cfg.merge_from_list(["DIH.HEADS.LR", 0.01, "LOG.PREFIX", str(tmp_path), "EXPERIMENT.NAME", "run"])
    return cfg


def tiny_dih(cfg, trained=True, seed=0, **teacher):
    torch.manual_seed(seed)
    distiller = DIH(TinyStages(width=2), TinyStages(**teacher), cfg)
    if trained:
        for layer in distiller.heads.layers:
            torch.nn.init.normal_(layer.weight)
        distiller.heads.trained.fill_(1)
        distiller.begin()
    return distiller


class Unread:
    """A split that must not be looked at."""

    def __iter__(self):
        raise AssertionError("the test split was read")

    __len__ = __iter__


def tiny_data(val=True, **other):
    facts = {"name": "toy", "identity": "toy-24-abc", "mean": [0.5] * 3, "std": [0.25] * 3, "train_images": 24}
    loaders = {"train": tiny_loader(seed=5), "val": tiny_loader(start=1) if val else None, "test": Unread()}
    return SimpleNamespace(**{**facts, **loaders, **other})


def begun(distiller, data=None):
    """The distiller with its heads, from the cache or trained into it."""
    distiller.begin(loaders_of(data or tiny_data()))
    return distiller


def loaders_of(data):
    """What `build` hands over: loaders(batch size, seed), and the data themselves."""
    loaders = lambda batch_size, seed: data  # noqa: E731 - a function with an attribute
    loaders.data = data
    return loaders
