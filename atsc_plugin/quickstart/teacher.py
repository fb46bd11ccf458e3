"""The teacher that ships with the package, and how it is made anew.

teacher.safetensors is a deployed resnet20, trained on digits100 by the TEACHER node of configs/quickstart/kd.yaml: what
TEACHER.TRAIN_IF_MISSING trains there. teacher.json is its card, with the recipe, the seed, the accuracy, the versions
it was made with, the file's sha256 and the command. Another version of torch or another processor rounds otherwise:
the same recipe gave 91.15 % with torch 2.14.1, which is this file, and 88.58 % with torch 2.15.0.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atsc_plugin import __version__
from atsc_plugin.files import whole_file, write_json

SHIPPED = Path(__file__).with_name("teacher")  # without the endings .safetensors and .json
CONFIG = "configs/quickstart/kd.yaml"
COMMAND = "atsc-plugin quickstart --make-teacher FOLDER"


def copied(folder: str | Path, again: bool = False) -> Path:
    """The shipped teacher's tensors as a file in `folder`, the card beside it.

    A copy that is there stays, unless `again`: so the runs beside it have one teacher, wherever the package lies.
    """
    stem = Path(folder) / SHIPPED.name
    for ending in (".safetensors", ".json"):
        if again or not Path(f"{stem}{ending}").exists():
            stem.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(f"{stem}{ending}") as file:
                file.write(Path(f"{SHIPPED}{ending}").read_bytes())
    return Path(f"{stem}.safetensors")


def sha256_of(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def make(cfg: Any, folder: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Find or train the teacher of a configuration (CONFIG with `overrides`), write its two files; returns the card."""
    import torch

    from atsc_plugin import build, host, teachers
    from atsc_plugin.engine import checkpoint
    from atsc_plugin.engine.batches import device_of, place_module
    from atsc_plugin.engine.devices import processor_name
    from atsc_plugin.engine.evaluate import evaluate, in_eval_mode
    from atsc_plugin.networks.deployed import DeployedStudent, tensors_of

    device = device_of(cfg)
    data = build.data_of(cfg, device)
    (own,) = teachers.configs_by_teacher(cfg)
    network = teachers.new_teacher(own, data).to(device)
    teachers.load(teachers.find(own, data, network), own, network, data, build.Loaders(cfg, device, data).of)
    top1 = evaluate(in_eval_mode(place_module(network, device)), data.test, device)["top1"]
    deployed, stem = DeployedStudent(network), Path(folder) / SHIPPED.name
    stem.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_tensors(tensors_of(deployed), f"{stem}.safetensors")
    card = {
        "student": own.DISTILLER.TEACHER,
        "method": "NONE",
        "seed": own.TEACHER.SEED,
        "epochs": own.TEACHER.EPOCHS,
        "test_top1": round(top1, 2),
        "sha256": sha256_of(f"{stem}.safetensors"),
        "recipe": teachers.recipe(own, data),
        "command": " ".join([COMMAND, *overrides]),
        "versions": {
            "atsc_plugin": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": processor_name(),
            "host": f"{host.NAME} {host.VERSION}",
        },
        **data.facts(),
        **deployed.facts(),
    }
    write_json(card, f"{stem}.json")
    return card
