"""Deployed students with drawn weights, written as a run writes them, for tests that need no training."""

import torch

from atsc_plugin.engine.checkpoint import save_tensors
from atsc_plugin.host import cifar_model_dict
from atsc_plugin.networks.deployed import DeployedStudent, Head, drop_modules, tensors_of
from atsc_plugin.networks.maps import MapSource
from atsc_plugin.networks.projector import Projector


def card_of(**changes):
    """A complete card of a resnet8 for ten classes; `students.load` needs its heads, too."""
    facts = {"method": "SIMKD", "student": "resnet8", "dataset": "npz", "classes": 10, "image_size": 32}
    facts |= {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "class_names": [f"class {i}" for i in range(10)]}
    return {**facts, "heads": [], "ensemble": "logits", "unused": [], **changes}


def student(heads=1, seed=0, classes=10, name="resnet8", channels=24):
    """A DeployedStudent in eval mode whose BN statistics are not those of a new network; heads 0: a plain one."""
    torch.manual_seed(seed)
    backbone = cifar_model_dict[name][0](num_classes=classes)
    width = backbone.fc.in_features
    all_heads = [Head(8, Projector(width, 8, channels), torch.nn.Linear(channels, classes)) for _ in range(heads)]
    source, unused = (MapSource("feats"), ["fc"]) if heads else (None, [])
    module = DeployedStudent(backbone, source, all_heads, unused=unused).train()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(16, 3, 32, 32))
    drop_modules(backbone, unused)
    return module.eval()


def write_student(path, *, heads=1, seed=0, without=(), classes=10, name="resnet8", **changes):
    """Write the pair of files at `path`; the module that they hold."""
    module = student(heads, seed, classes, name)
    names = [f"{i:02}" if classes == 100 else f"class {i}" for i in range(classes)]  # digits100 has a hundred
    card = card_of(student=name, classes=classes, class_names=names) | module.facts() | changes
    save_tensors(tensors_of(module), path, {key: value for key, value in card.items() if key not in without})
    return module
