"""ATSC on tiny networks, its teacher away from theta_0."""

import torch
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.host import CFG, cifar_model_dict
from atsc_plugin.methods.atsc import ATSC

RELEASED = ["ATSC.UPDATE", "published", "ATSC.DRIFT.WEIGHT", 1.0]
EMA = ["ATSC.TEACHER.EMA", 0.9, "ATSC.TEACHER.LEARNS", "task"]


def atsc_config(*overrides):
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "ATSC", "SOLVER.TRAINER", "plugin", *overrides])
    return cfg


def net(name, classes=100):
    return cifar_model_dict[name][0](num_classes=classes)


def tiny_atsc(cfg, displacement=0.1):
    """An ATSC in double precision that has begun; what learns of the teacher is `displacement` away from theta_0."""
    torch.manual_seed(0)
    distiller = ATSC(TinyNet(width=4), TinyNet(width=6), cfg).double()
    distiller.begin()
    with torch.no_grad():
        for parameter in distiller.learning[0].parameters():
            parameter += displacement * torch.randn_like(parameter)
    return distiller.train()


def double_batch(count=6, seed=0):
    images, target = batch(count, seed=seed)
    return images.double(), target


def one_forward(distiller, epoch=1, seed=0):
    """(logits, losses) of one batch in training."""
    images, target = double_batch(seed=seed)
    return distiller(image=images, target=target, epoch=epoch)


def moved_by(distiller, term, epoch=1):
    """Names of the parameters that get a gradient other than zero from one loss term."""
    distiller.zero_grad()
    one_forward(distiller, epoch)[1][term].backward()
    return {name for name, p in distiller.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def names_of(module, prefix):
    """The names of a module's parameters in the distiller."""
    return {f"{prefix}.{name}" for name, _ in module.named_parameters()}


def trainer_of(distiller, cfg, batches=()):
    return PluginTrainer("trace", distiller, list(batches), list(batches), cfg, folder="unused")
