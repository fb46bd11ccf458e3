"""cfg -> data, teachers, student, distiller, trainer: the only place where the parts meet.

Reads top to bottom as a run is made: `prepare` builds the distiller on unfilled networks, so that what cannot work is
refused before a teacher is trained; fills the teachers in place; then calls the method's `start`. `trainer_of` hands
over. Nothing is written here but teachers that are missing, and what a method caches beside them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atsc_plugin import contract, host, teachers
from atsc_plugin.config import OWN_DATASETS, pair_settings
from atsc_plugin.contract import Contract
from atsc_plugin.data.datasets import Data, LoaderOptions, host_data, listed_folder, own_data
from atsc_plugin.engine import distributed, mixing, run_dir
from atsc_plugin.engine.batches import device_of
from atsc_plugin.engine.trainer import PluginTrainer, parameter_count
from atsc_plugin.errors import PluginError
from atsc_plugin.keys import changed, flatten
from atsc_plugin.methods.base import class_of
from atsc_plugin.networks import named
from atsc_plugin.networks.maps import evaluating
from atsc_plugin.seeds import stream

MANY = 2000  # pictures of a folder: looking into more takes longer than building the networks, seconds, once more


@dataclass
class Run:
    """Everything of one run, built and not yet started."""

    cfg: Any
    name: str
    folder: Path
    device: torch.device
    data: Data
    distiller: torch.nn.Module
    method: Contract
    teacher_from: str | list | None


def data_of(cfg, device) -> Data:
    """The data set of a configuration, with its loaders."""
    name, size = cfg.DATASET.TYPE, host.image_size(cfg.DATASET)
    ranks = distributed.rank(), distributed.world()
    options = LoaderOptions(cfg.SOLVER.BATCH_SIZE, cfg.DATASET.TEST.BATCH_SIZE, device, cfg.EXPERIMENT.SEED, *ranks)
    if name in OWN_DATASETS:
        return own_data(cfg.DATASET, options, size)
    return host_data(cfg, options, size)


class Loaders:
    """Loaders for something that is trained on the way, by one rank for all: loaders(cfg), or (batch size, seed)."""

    def __init__(self, cfg: Any, device: torch.device, data: Data) -> None:
        self.cfg, self.device, self.data = cfg, device, data

    def __call__(self, batch_size: int, seed: int) -> Data:
        return self.of(changed(self.cfg, {"EXPERIMENT.SEED": seed, "SOLVER.BATCH_SIZE": batch_size}))

    def of(self, cfg: Any) -> Data:
        """Undivided loaders of a configuration."""
        with distributed.alone():
            return data_of(cfg, self.device)


def student_of(cfg, classes):
    """The student, freshly initialised from its own random stream."""
    torch.manual_seed(stream(cfg.EXPERIMENT.SEED, "initialise", "STUDENT"))
    node = cfg.DISTILLER
    return named.new_network(cfg.DATASET.TYPE, node.STUDENT, classes, host.image_size(cfg.DATASET), node.STUDENT_ARGS)


def fitted(cfg, student, networks, data):
    """The configuration with what follows from the networks themselves."""
    derived = class_of(cfg.DISTILLER.TYPE).derived(cfg, student, networks, data.image_size)
    return changed(cfg, derived) if derived else cfg


def distiller_of(cfg, student, networks, data):
    """The configured distiller around its networks, with the arguments mdistiller gives it."""
    kind = host.distiller_dict[cfg.DISTILLER.TYPE]
    torch.manual_seed(stream(cfg.EXPERIMENT.SEED, "initialise", "distiller"))
    if not networks:
        return kind(student)
    asked = class_of(cfg.DISTILLER.TYPE)
    teacher = networks if asked.TEACHERS == contract.SEVERAL else networks[0]
    try:
        return kind(student, teacher, cfg, *asked.more_arguments(data.train_images))
    except (RuntimeError, AssertionError) as error:
        if torch.cuda.is_available() or not re.search("cuda|nvidia", str(error), re.IGNORECASE):
            raise
        raise PluginError(
            f"{cfg.DISTILLER.TYPE} of this host puts something on a GPU as it is built; there is none "
            "here. Use another method."
        ) from error


def check_trainer(cfg, device):
    """Refuse a trainer that cannot run here before a teacher is trained for it."""
    trainer, problems = cfg.SOLVER.TRAINER, []
    if trainer != "plugin" and cfg.LOG.WANDB:
        problems.append(
            f"SOLVER.TRAINER {trainer} would log to wandb (LOG.WANDB True), which this command does not start. Set "
            "LOG.WANDB False, or run the host's own script with `launch`."
        )
    if trainer != "plugin" and host.NAME == "mdistiller" and device.type != "cuda":
        problems.append(
            f"SOLVER.TRAINER {trainer} of mdistiller needs a GPU (it calls .cuda()); this run is on the CPU. Use "
            "SOLVER.TRAINER plugin."
        )
    if problems:
        raise PluginError("\n".join(problems))


def check_fit(cfg, distiller, method, data):
    """Refuse, by name, a network that does not turn the data's images into one row of logits each."""
    images = torch.zeros(2, 3, data.image_size, data.image_size)
    teachers_there = [network for network in method.networks() if network.name.startswith("teacher")]
    members = [("STUDENT", cfg.DISTILLER.STUDENT, distiller.student)]
    members += [("TEACHER", network.title, network.module) for network in teachers_there]
    problems = []
    for role, name, network in members:
        try:
            with evaluating(network), torch.no_grad():
                got = tuple(network(images)[0].shape)
        except RuntimeError as error:
            got = str(error).splitlines()[0]
        if isinstance(got, tuple) and len(got) == 2 and got[0] == 2 and got[1] != data.classes:
            if role == "STUDENT" or method.TEACHER_CLASSES:
                problems.append(
                    f"{name} tells {got[1]} classes apart, the data {data.classes}, and {cfg.DISTILLER.TYPE} uses its "
                    f"logits. Choose a DISTILLER.{role} that is built for num_classes. (For weights of one that is: "
                    "`teachers --fine-tune`.)"
                )
        elif got != (2, data.classes):
            problems.append(
                f"{name} cannot take {data.image_size}-pixel images: two of them gave {got}, expected "
                f"(2, {data.classes}). Choose another DISTILLER.{role}, or resize with DATASET.IMAGE_SIZE."
            )
    problems = problems or method.misfits(data.image_size)
    if problems:
        raise PluginError("\n".join(problems))


def place(cfg, overrides=()):
    """(name, run directory) of a configuration; nothing is created."""
    name = run_dir.experiment_name(cfg, overrides)
    return name, run_dir.run_directory(cfg, name)


def skeleton(cfg, data):
    """The distiller with unfilled weights, for a checkpoint that brings them all."""
    networks = [teachers.new_teacher(teacher_cfg, data) for teacher_cfg in teachers.configs_by_teacher(cfg)]
    student = student_of(cfg, data.classes)
    return distiller_of(fitted(cfg, student, networks, data), student, networks, data)


def prepare(cfg, overrides: Sequence[str] = (), dry: bool = False) -> Run:
    """Build all of a run. A missing teacher is trained here if the configuration says so, unless `dry`."""
    name, folder = place(cfg, overrides)
    device = device_of(cfg)
    check_trainer(cfg, device)
    if cfg.DATASET.TYPE == "folder" and cfg.DATASET.ROOT:
        listed = listed_folder(cfg.DATASET, host.image_size(cfg.DATASET))
        if listed.train_images > MANY:
            skeleton(cfg, listed)
    data = data_of(cfg, device)
    validation_and_test(cfg, data)  # what cannot work is refused here, before any teacher is trained or file deleted
    kind = class_of(cfg.DISTILLER.TYPE)
    configs = teachers.configs_by_teacher(cfg)
    networks = [teachers.new_teacher(teacher_cfg, data) for teacher_cfg in configs]
    student = student_of(cfg, data.classes)
    cfg = fitted(cfg, student, networks, data)
    distiller = distiller_of(cfg, student, networks, data)
    method = contract.of(distiller, cfg)
    check_fit(cfg, distiller, method, data)
    distiller.to(device)
    loaders, teacher_from = Loaders(cfg, device, data), None
    if configs and kind.teacher_weights(cfg) == "trained":
        sources = teachers.find_all(configs, data, networks)
        texts = [source.text for source in sources]
        teacher_from = texts if kind.TEACHERS == contract.SEVERAL else texts[0]
        if not dry:
            teachers.load_all(configs, sources, networks, data, loaders.of)
    if not dry:
        method.begin(loaders)
    return Run(cfg, name, folder, device, data, distiller, method, teacher_from)


def validation_and_test(cfg, data):
    """(validation loader of every epoch, test loader of the end or None), by EXPERIMENT.SELECT_ON."""
    select = cfg.EXPERIMENT.SELECT_ON
    if select == "val" and data.val is None:
        raise PluginError(f"EXPERIMENT.SELECT_ON is val, but {data.name} has no validation split; use auto or test.")
    return (data.test, None) if select == "test" or data.val is None else (data.val, data.test)


def trainer_of(run):
    """Our trainer, or one of the host's around DataParallel, as its own script builds it."""
    cfg = run.cfg
    val, test = validation_and_test(cfg, run.data)
    if cfg.SOLVER.TRAINER == "plugin":
        seen = {"data": run.data.identity, "test_data": run.data.test_identity}
        facts = {**run.data.facts(), **seen, "teacher_from": run.teacher_from}
        return PluginTrainer(
            run.name, run.distiller, run.data.train, val, cfg, test_loader=test, facts=facts, folder=run.folder
        )
    wrapped = torch.nn.DataParallel(run.distiller) if run.device.type == "cuda" else _Unwrapped(run.distiller)
    return host.trainer_dict[cfg.SOLVER.TRAINER](
        str(run.folder.relative_to(cfg.LOG.PREFIX)), wrapped, run.data.train, val, cfg
    )


class _Unwrapped(torch.nn.Module):
    """DataParallel's face (`.module`) where there is nothing to parallelise over."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


def plan(run: Run) -> list[tuple[str, str]]:
    """The resolved plan of a run as (label, text) pairs: what `train --dry-run` prints."""
    cfg, data, method = run.cfg, run.data, run.method
    steps = -(-data.train_images // cfg.SOLVER.BATCH_SIZE)
    learnable = list(method.get_learnable_parameters())
    student = {id(parameter) for parameter in method.student.parameters()}
    of_student = parameter_count(p for p in learnable if id(p) in student)
    kind = type(run.distiller)
    soft = ", ".join(f"{key} {cfg.SOLVER[key]:g}" for key in mixing.KEYS if cfg.SOLVER[key])
    pairs = [
        ("host", f"{host.TITLE} ({host.FOLDER})"),
        ("device", str(run.device)),
        (
            "data",
            f"{data.identity}: {data.train_images} training images, {data.classes} classes, {data.image_size} px"
            + (f", from {data.source}" if data.source else ""),
        ),
        *([("loader", data.loading)] if data.loading else []),
        ("method", f"{cfg.DISTILLER.TYPE} ({kind.__module__}.{kind.__name__})"),
        ("student", f"{cfg.DISTILLER.STUDENT}, {parameter_count(method.student.parameters()):,} parameters"),
    ]
    chosen = {name: value for name, value in pair_settings(cfg).items() if flatten(cfg)[name] == value}
    if chosen:
        pairs.append(("pair", ", ".join(f"{name} {value}" for name, value in chosen.items())))
    origins = run.teacher_from if isinstance(run.teacher_from, list) else [run.teacher_from]
    for network, origin in zip(method.networks(), origins, strict=False):
        size = parameter_count(network.module.parameters())
        pairs.append(("teacher", f"{network.title}, {size:,} parameters, from {origin or 'scratch'}"))
    return [
        *pairs,
        *method.plan(),
        *([("labels", f"soft, by SOLVER.{soft}")] if soft else []),
        ("trained", f"{parameter_count(learnable):,} parameters, {of_student:,} of them the student's"),
        (
            "trainer",
            f"{cfg.SOLVER.TRAINER}, {cfg.SOLVER.EPOCHS} epochs of {steps} steps of {cfg.SOLVER.BATCH_SIZE}, "
            f"{cfg.SOLVER.EPOCHS * steps:,} steps",
        ),
        ("run", str(run.folder)),
    ]


def check_place(folder):
    """Refuse a place that cannot be written before hours are spent; nothing is created."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        kind = "is a file" if not place.is_dir() else "cannot be written"
        raise PluginError(f"The run directory would be {folder}, but {place} {kind}. Choose another LOG.PREFIX.")
