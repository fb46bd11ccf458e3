"""Run in a process of its own with the real mdistiller: one step of each method on both hosts, equal losses.

Not a test module: test_host.py starts it when MDISTILLER_PATH names a checkout.
"""

import importlib

import torch
from recorded import fill, image, labels

import atsc_plugin
from atsc_plugin import host
from atsc_plugin.engine.trainer import PluginTrainer

assert host.NAME == "mdistiller", host.FOLDER
atsc_plugin.register()
embedded = importlib.import_module("atsc_plugin.minidistiller.distillers").distiller_dict
models = importlib.import_module("atsc_plugin.minidistiller.models").cifar_model_dict
cfg = host.CFG.clone()


def step(kind, networks):
    """Losses before and after one SGD step of a freshly filled distiller."""
    student, teacher = networks["resnet8x4"][0](num_classes=100), networks["resnet32x4"][0](num_classes=100)
    distiller = kind(student, teacher, cfg)
    fill(distiller, 2), fill(teacher, 0), fill(student, 1)
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.001, momentum=0.9)
    distiller.train()
    values = []
    for _ in range(2):
        losses = distiller(image=image(4), target=labels(4), epoch=10, index=torch.arange(4))[1]
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        values += [part.item() for part in losses.values()]
    return values


for method in ("KD", "DKD", "REVIEWKD", "SIMKD"):
    real = step(host.distiller_dict[method], host.cifar_model_dict)
    own = step(embedded.get(method, host.distiller_dict[method]), models)
    assert all(abs(a - b) <= 1e-9 * abs(a) for a, b in zip(real, own, strict=True)), (method, real, own)
assert host.trainer_dict["plugin"] is PluginTrainer
print("equal losses on", host.NAME, host.VERSION)
