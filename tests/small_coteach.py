"""COTEACH on tiny networks."""

import torch
from tiny import batch
from tiny_stages import TinyStages

import atsc_plugin
from atsc_plugin.host import CFG, cifar_model_dict
from atsc_plugin.methods.coteach import COTEACH


def coteach_config(folder, monkeypatch):
    """COTEACH on networks of this folder of tests; its runs go below `folder`."""
    atsc_plugin.register()
    for name, net in {"tiny": TinyStages, "wide": lambda num_classes: TinyStages(num_classes, width=8)}.items():
        monkeypatch.setitem(cifar_model_dict, name, (net, None))
    monkeypatch.setitem(cifar_model_dict, "otherstem", (lambda num_classes: TinyStages(num_classes, stem=5), None))
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "COTEACH", "DISTILLER.TEACHER", "tiny", "DISTILLER.STUDENT", "small"])
    cfg.merge_from_list(["LOG.PREFIX", str(folder), "EXPERIMENT.NAME", "run", "COTEACH.LOSS.LOGITS_WEIGHT", 0.5])
    return cfg


def tiny_coteach(cfg, student=None, **expert):
    torch.manual_seed(0)
    return COTEACH(student or TinyStages(width=2), TinyStages(**expert), cfg)


def losses_of(distiller):
    images, target = batch()
    return distiller.train()(image=images, target=target)[1]
