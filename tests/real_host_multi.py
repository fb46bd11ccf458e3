"""Run in a process of its own with the real mdistiller: several teachers under its own, unmodified "base" trainer.

Not a test module: test_multi_host.py starts it. What mdistiller's trainer calls of CUDA is made the identity first.
"""

import sys

import torch
from recorded import fill, image, labels

torch.Tensor.cuda = lambda self, *a, **k: self
torch.nn.Module.cuda = lambda self, *a, **k: self

import atsc_plugin  # noqa: E402
from atsc_plugin import host  # noqa: E402

assert host.NAME == "mdistiller", host.FOLDER
atsc_plugin.register()


def networks(*names):
    return [fill(host.cifar_model_dict[name][0](num_classes=100), number) for number, name in enumerate(names)]


def run(method, folder):
    """One epoch of two steps under the host's trainer; the state that its checkpoint holds."""
    cfg = host.CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", method, "SOLVER.TRAINER", "base", "SOLVER.EPOCHS", 1, "SOLVER.LR", 0.001])
    cfg.merge_from_list(["LOG.PREFIX", folder, "LOG.WANDB", False])
    student, *teachers = networks("resnet8", "resnet14", "vgg8")
    distiller = host.distiller_dict[method](student, teachers, cfg).float()  # its trainer turns images to fp32
    before = {name: tensor.clone() for name, tensor in distiller.state_dict().items()}
    train = [(image(4, seed=step), labels(4, shift=step), torch.arange(4)) for step in (1, 2)]
    wrapped = torch.nn.DataParallel(distiller)
    host.trainer_dict["base"](method, wrapped, train, [(image(4), labels(4))], cfg).train()
    state = torch.load(f"{folder}/{method}/latest", weights_only=True)["model"]
    return {name for name, tensor in before.items() if not torch.equal(tensor, state[f"module.{name}"])}


for method in ("ATSC_MULTI", "SIMKD_MULTI", "AVERKD", "DKD_MULTI"):
    moved = {".".join(name.split(".")[: 1 if name.startswith("student") else 2]) for name in run(method, sys.argv[1])}
    projectors = {"projector.0", "projector.1"} if method in ("ATSC_MULTI", "SIMKD_MULTI") else set()
    teachers = {"teacher.0", "teacher.1"} if method == "ATSC_MULTI" else set()
    assert moved == {"student"} | projectors | teachers, (method, moved)

for ours, theirs in (("DKD_MULTI", "DKD"), ("SIMKD_MULTI", "SIMKD")):
    values = []
    for method in (ours, theirs):
        distiller = host.distiller_dict[method](*networks("resnet8", "resnet14"), host.CFG.clone())
        if hasattr(distiller, "projector"):
            fill(distiller.projector, 2)
        distiller.double().train()
        values.append([part.item() for part in distiller(image=image(4), target=labels(4), epoch=5)[1].values()])
    assert values[0] == values[1], (ours, values)
print("several teachers under", host.NAME, host.VERSION)
