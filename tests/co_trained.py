"""Methods with networks that learn beside the student, on tiny networks."""

import torch
from runs import tiny_loader
from tiny import batch
from tiny_stages import TinyStages

import atsc_plugin
from atsc_plugin.contract import NONE
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.host import CFG, cifar_model_dict, distiller_dict
from atsc_plugin.methods.base import class_of


def co_trained_config(folder, monkeypatch, method, *pairs):
    """A run below `folder` of a student `small` and a teacher `tiny`, of two stages or three (`deep`)."""
    atsc_plugin.register()
    for name, sizes in {"small": {"width": 2}, "tiny": {}, "deep": {"stages": 3}}.items():
        monkeypatch.setitem(
            cifar_model_dict, name, (lambda num_classes, sizes=sizes: TinyStages(num_classes, **sizes), None)
        )
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", method, "DISTILLER.TEACHER", "tiny", "DISTILLER.STUDENT", "small"])
    cfg.merge_from_list(["DATASET.TYPE", "cifar100", "LOG.PREFIX", str(folder), "EXPERIMENT.NAME", "run"])
    cfg.merge_from_list(["SOLVER.TRAINER", "plugin", "SOLVER.LR", 0.05, "SOLVER.EPOCHS", 2, *pairs])
    return cfg


def network(name, seed):
    torch.manual_seed(seed)
    return cifar_model_dict[name][0](num_classes=10)


def distiller_of(cfg, student=None, teacher=None):
    """The distiller, the same every time."""
    kind = distiller_dict[cfg.DISTILLER.TYPE]
    student = student or network(cfg.DISTILLER.STUDENT, 1)
    if class_of(cfg.DISTILLER.TYPE).TEACHERS == NONE:
        return kind(student)
    teacher = teacher or network(cfg.DISTILLER.TEACHER, 2)
    torch.manual_seed(3)
    return kind(student, teacher, cfg)


def trainer_of(cfg, folder, **networks):
    loaders = tiny_loader(seed=5), tiny_loader(start=1)
    return PluginTrainer("run", distiller_of(cfg, **networks), *loaders, cfg, folder=folder)


def losses_of(distiller):
    images, target = batch()
    return distiller.train()(image=images, target=target)[1]


def logits_of(distiller):
    """(student's, teacher's) on that batch, by its statistics."""
    images, _ = batch()
    with torch.no_grad():
        return distiller.student(images)[0], distiller.teacher(images)[0]


def reached(distiller, loss):
    """The direct children to which a loss gives a gradient that is not zero."""
    distiller.zero_grad(set_to_none=True)
    if loss.requires_grad:
        loss.backward(retain_graph=True)
    moved = [name for name, p in distiller.named_parameters() if p.grad is not None and p.grad.any()]
    return {name.partition(".")[0] for name in moved}


def assert_same_losses(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
