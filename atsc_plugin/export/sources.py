"""What is exported, and the real images that the export is compared on."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from atsc_plugin import build, students
from atsc_plugin.data import pictures
from atsc_plugin.engine import checkpoint
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import PluginError
from atsc_plugin.methods.teacher_list import teacher_names
from atsc_plugin.networks.deployed import DeployedStudent, deployed_of, tensors_of


def of_checkpoint(path, cfg, data):
    """(module, card) of the student inside a checkpoint: a whole distiller, or the bare student of a plain method."""
    content = checkpoint.load(path)
    distiller = whole_distiller(content, path, cfg, data)
    if distiller is None:
        module, unused = DeployedStudent(bare_student(path, cfg, data)), []
    else:
        module, unused = deployed_of(distiller)
    own = {"method": cfg.DISTILLER.TYPE, "student": cfg.DISTILLER.STUDENT, "dataset": cfg.DATASET.TYPE}
    card = {**PluginTrainer.host_facts, **own, **data.facts(), **module.facts(), "unused": unused}
    if isinstance(content.get("epoch"), int):
        card["epoch"] = content["epoch"]
    with tempfile.TemporaryDirectory() as folder:  # through the files, so that what comes out is what files would give
        stem = Path(folder) / "student"
        checkpoint.save_tensors(tensors_of(module, unused), stem, card)
        return students.load(f"{stem}.json")


def whole_distiller(content, path, cfg, data):
    """The configured distiller with a checkpoint's weights, None where the checkpoint holds a bare network."""
    state = content.get("model", content) if isinstance(content, dict) else content
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()} if isinstance(state, dict) else {}
    if not any(name.startswith("student.") for name in plain):
        return None
    distiller = build.skeleton(cfg, data)
    try:
        distiller.load_state_dict(plain)
    except RuntimeError as error:
        raise PluginError(
            f"{path} does not fit a {cfg.DISTILLER.TYPE} of {', '.join(teacher_names(cfg))} and "
            f"{cfg.DISTILLER.STUDENT}: {str(error).splitlines()[-1].strip()} Name its own configuration with --cfg."
        ) from error
    return distiller


def bare_student(path, cfg, data):
    """The student network alone, refused where its own head was never trained."""
    if cfg.DISTILLER.TYPE != "NONE" and hasattr(build.skeleton(cfg, data), "deployed"):
        raise PluginError(
            f"{path} holds the bare student; under {cfg.DISTILLER.TYPE} it predicts through the teacher's classifier, "
            "and its own head was never trained. Use the run directory, its deploy_* files or `latest` instead."
        )
    network = build.network(cfg, "STUDENT", data.classes, 0)
    return checkpoint.load_network(network, path, cfg.DISTILLER.STUDENT, data.classes)


def test_pixels(data, card, count):
    """The first `count` test images of a data set as uint8 N x H x W x 3."""
    if data.classes != card["classes"]:
        raise PluginError(
            f"{data.name} has {data.classes} classes, the student tells {card['classes']} apart; expected the data it "
            "was trained on. Name them with --cfg, or other images with --images PATH."
        )
    facts, found, have = data.facts(), [], 0
    for batch in data.test:
        found.append(pictures.pixels_of(batch[0].cpu().numpy(), facts))
        have += len(found[-1])
        if have >= count:
            break
    return np.concatenate(found)[:count]


def pixels_of_files(path, card, count):
    """The first `count` images of a file or folder as uint8 N x H x W x 3; none may be unreadable."""
    files = pictures.find([path])[:count]
    try:
        return np.stack([pictures.read(file, card) for file in files])
    except pictures.Unreadable as error:
        raise PluginError(f"--images {path}: an image cannot be read ({error}). Repair or remove it.") from error


def data_of(cfg):
    """The configuration's data set on the CPU, where exports are made and compared."""
    return build.data_of(cfg, torch.device("cpu"))
