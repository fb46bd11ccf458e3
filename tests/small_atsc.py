"""ATSC on tiny networks, away from its starting point."""

import torch
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.host import CFG, cifar_model_dict
from atsc_plugin.methods.atsc import ATSC

RELEASED = ["ATSC.UPDATE", "published", "ATSC.DRIFT.WEIGHT", 1.0, "ATSC.DRIFT.PARAMS", "kernels",
            "ATSC.CLASSIFIER.PARAMS", "bias", "SOLVER.TRAINER", "plugin"]  # fmt: skip
AVERAGED = ["ATSC.TEACHER.AVERAGE", 0.9, "ATSC.LOSS.FEAT_PULL", 0.0, "ATSC.LOSS.TRUNK_CE_WEIGHT", 1.0]


def atsc_config():
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "ATSC", "SOLVER.TRAINER", "plugin"])
    return cfg


def net(name, classes=100):
    return cifar_model_dict[name][0](num_classes=classes)


def tiny_atsc(cfg, **changes):
    torch.manual_seed(0)
    distiller = ATSC(TinyNet(width=4), TinyNet(width=6), cfg).double()
    with torch.no_grad():
        for parameter in distiller.teacher.parameters():  # away from theta_0, so that drift has a gradient
            parameter += 0.1 * torch.randn_like(parameter)
    return distiller.train()


def double_batch(count=6, seed=0):
    images, target = batch(count, seed=seed)
    return images.double(), target


def trainer_of(distiller, cfg, batches=()):
    return PluginTrainer("trace", distiller, list(batches), list(batches), cfg, folder="unused")
