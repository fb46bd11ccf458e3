"""Run in a process of its own with a fork of mdistiller on the path: our methods under whatever habits it has.

Not a test module. test_host_forks.py starts it for every checkout of MDISTILLER_PATHS, test_host_habits.py for small
forks that are written on the spot. It prints one line at its end.
"""

import sys
import tempfile
from pathlib import Path

import torch
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin import host
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.methods.base import load_methods
from atsc_plugin.registration import TRAINERS

OURS = ("SIMKD", "ATSC")
METHODS = load_methods()
taken = [name for name in METHODS if name in host.distiller_dict]
taken += [name for name in TRAINERS if name in (host.trainer_dict or {})]
atsc_plugin.register(leave=taken)
assert all(host.distiller_dict[name] is not METHODS[name] for name in taken if name in METHODS)
# What a fork's tree may lack of the keys that a run reads; a value of its own is kept.
cfg = host.CFG.clone()
cfg.set_new_allowed(True)
wanted = {"DATASET.TYPE": "cifar100", "DISTILLER.TYPE": "SIMKD", "SOLVER.BATCH_SIZE": 6}
wanted |= {"DISTILLER.TEACHER": "tiny", "DISTILLER.STUDENT": "tiny"}
wanted |= {"SOLVER.EPOCHS": 1, "SOLVER.LR": 0.05, "SOLVER.LR_DECAY_STAGES": [10], "SOLVER.LR_DECAY_RATE": 0.1}
wanted |= {"SOLVER.WEIGHT_DECAY": 0.0005, "SOLVER.MOMENTUM": 0.9, "SOLVER.TRAINER": "plugin", "SOLVER.TYPE": "SGD"}
wanted |= {"LOG.SAVE_CHECKPOINT_FREQ": 40, "LOG.PREFIX": "out", "EXPERIMENT.PROJECT": "p", "EXPERIMENT.TAG": "t"}
for name, value in wanted.items():
    node = cfg
    *path, leaf = name.split(".")
    for part in path:
        if part not in node:
            node[part] = type(cfg)(new_allowed=True)
        node = node[part]
    node[leaf] = value

image, target = batch()
other = batch(seed=1)[0]


def networks():
    """The fork's own small networks where it has mdistiller's table, ours otherwise."""
    torch.manual_seed(0)
    table = host.cifar_model_dict
    if "resnet8" in table and "resnet20" in table:
        return table["resnet8"][0](num_classes=10), table["resnet20"][0](num_classes=10)
    return TinyNet(), TinyNet(width=6)


def name_of(kind):
    return next(name for name, entry in host.distiller_dict.items() if entry is kind)


def losses_of(kind, teacher_as, **inputs):
    """The losses before and after one SGD step, and the prediction's shape in eval mode."""
    student, teacher = networks()
    torch.manual_seed(1)
    cfg.DISTILLER.TYPE = name_of(kind)
    distiller = kind(student, teacher_as(teacher), cfg)
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.05, momentum=0.9)
    values = []
    for _ in range(2):
        distiller.train()
        losses = distiller(**inputs, target=target, epoch=1)[1]
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        values += [part.item() for part in losses.values()]
    distiller.eval()
    assert distiller(image=image).shape == (6, 10)
    assert isinstance(distiller, host.Distiller)
    return values


for name in OURS:
    if name in taken:
        continue
    kind = host.distiller_dict[name]
    plain = losses_of(kind, lambda teacher: teacher, image=image)
    assert plain[0] != plain[len(plain) // 2]  # the step moved something
    assert losses_of(kind, lambda teacher: [teacher], image=image) == plain, f"{name}: the teacher in a list"
    assert losses_of(kind, lambda teacher: teacher, image=(image, other)) == plain, f"{name}: a pair of views"
    named = {"image_weak": image, "image_strong": other}
    assert losses_of(kind, lambda teacher: teacher, **named) == plain, f"{name}: named views"


def loader(images):
    return [(images, target, torch.arange(6))]


def trained(kind, images):
    """The result of our trainer over one batch, from its own run directory."""
    student, teacher = networks()
    torch.manual_seed(1)
    folder, cfg.DISTILLER.TYPE = Path(tempfile.mkdtemp()), name_of(kind)
    trainer = PluginTrainer("x", kind(student, teacher, cfg), loader(images), [(image, target)], cfg, folder=folder)
    result = trainer.train()
    assert (folder / "deploy_last.safetensors").is_file()
    return result["top1_last"]


for name in OURS:
    if name not in taken:
        assert trained(host.distiller_dict[name], image) == trained(host.distiller_dict[name], [image, other])
for extra in sys.argv[1:]:  # a method of the fork's own, under our trainer, with pairs of views
    trained(host.distiller_dict[extra], (image, other))
print("fork fits:", host.FOLDER, "left to it:", taken)
