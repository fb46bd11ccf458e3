"""Every registered method on networks of a few parameters, for tests that hold of all of them."""

from types import SimpleNamespace

import torch
from runs import tiny_loader
from tiny_stages import TinyStages

import atsc_plugin
from atsc_plugin import contract, host
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.methods.base import class_of, load_methods

HOSTS = ("NONE", "KD", "DKD", "REVIEWKD")
NAMES = (*HOSTS, *load_methods())
# ATSC's other ways to train, which need more of an engine than its defaults do.
WAYS = {
    "published": ["ATSC.UPDATE", "published", "ATSC.DRIFT.WEIGHT", 1.0],
    "task": ["ATSC.TEACHER.LEARNS", "task"],
    "EMA": ["ATSC.TEACHER.LEARNS", "task", "ATSC.TEACHER.EMA", 0.9],
    "reverse": ["ATSC.TEACHER.LEARNS", "task", "ATSC.LOSS.REVERSE_KD_WEIGHT", 0.5, "ATSC.TEACHER.EVERY", 2],
    "LR_SCALE": ["ATSC.TEACHER.LR_SCALE", 0.5],
    "GUARD": ["ATSC.GUARD", "stop"],
}
# What ReviewKD has to be told of TinyStages of width 4: maps of 4 x 4 and 2 x 2, and the pooled features.
SIZES = {"SHAPES": [1, 2, 4], "OUT_SHAPES": [1, 2, 4], "IN_CHANNELS": [4, 8, 8], "OUT_CHANNELS": [4, 8, 8]}


def network(num_classes=10):
    return TinyStages(num_classes, width=4)


def config(name, folder, *overrides):
    """The configuration of a run of this method below `folder`; `network` has to be among the host's models."""
    atsc_plugin.register()
    cfg = host.CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", name, "DISTILLER.TEACHER", "tiny", "DISTILLER.STUDENT", "tiny"])
    cfg.merge_from_list(["DATASET.TYPE", "cifar100", "SOLVER.TRAINER", "plugin", "SOLVER.LR", 0.01])
    cfg.merge_from_list(["LOG.PREFIX", str(folder), "EXPERIMENT.NAME", "run", "TEACHER.CACHE", str(folder / "cache")])
    cfg.merge_from_list(["DIH.HEADS.EPOCHS", 1, "DIH.HEADS.LR", 0.01])
    cfg.REVIEWKD.merge_from_other_cfg(type(cfg)(SIZES))
    cfg.merge_from_list(list(overrides))
    return cfg


def distiller_of(cfg):
    """The distiller, the same every time."""
    torch.manual_seed(0)
    kind, asked, student = host.distiller_dict[cfg.DISTILLER.TYPE], class_of(cfg.DISTILLER.TYPE), network()
    if asked.TEACHERS == contract.NONE:
        return kind(student)
    teacher = [network(), network()] if asked.TEACHERS == contract.SEVERAL else network()
    return kind(student, teacher, cfg)


class Loaders:
    """Loaders as `build` hands them over, for a method that trains something first."""

    def __init__(self):
        facts = {"name": "cifar100", "identity": "toy-24", "mean": [0.5] * 3, "std": [0.25] * 3, "train_images": 24}
        self.data = SimpleNamespace(**facts, train=tiny_loader(seed=5), val=tiny_loader(start=1))

    def __call__(self, batch_size, seed):
        return self.data


def trainer_of(cfg, folder):
    """A run of ours that has begun, as `build` leaves it."""
    distiller = distiller_of(cfg)
    contract.of(distiller, cfg).begin(Loaders())
    loaders = tiny_loader(seed=5), tiny_loader(start=1)
    return PluginTrainer("run", distiller, *loaders, cfg, test_loader=tiny_loader(start=2), folder=folder)
