"""cfg -> data, teacher, student, distiller, trainer: the only place where the parts meet.

Reads top to bottom as a run is made: `prepare` builds, `trainer_of` hands over. Nothing but a missing teacher is
written here.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from atsc_plugin import host, teachers
from atsc_plugin.config import OWN_DATASETS
from atsc_plugin.data import host_images
from atsc_plugin.data.splits import Data, LoaderFacts, memory_data
from atsc_plugin.engine import distributed, run_files
from atsc_plugin.engine.placement import device_of
from atsc_plugin.engine.teacher_files import deployed_stem
from atsc_plugin.engine.trainer import PluginTrainer, parameter_count, unwrap
from atsc_plugin.errors import PluginError
from atsc_plugin.methods.review_checks import review_problems
from atsc_plugin.methods.teacher_list import configs_by_teacher, networks_of, takes_several, teacher_names
from atsc_plugin.seeds import stream


@dataclass
class Run:
    """Everything of one run, built and not yet started."""

    cfg: object
    name: str
    folder: Path
    device: torch.device
    data: Data
    distiller: torch.nn.Module
    teacher_from: str | list | None


def data_of(cfg, device):
    """The data set of a configuration, with its loaders."""
    name, size = cfg.DATASET.TYPE, host.image_size(cfg.DATASET)
    ranks = distributed.rank(), distributed.world()
    facts = LoaderFacts(cfg.SOLVER.BATCH_SIZE, cfg.DATASET.TEST.BATCH_SIZE, device, cfg.EXPERIMENT.SEED, *ranks)
    if name in OWN_DATASETS:
        return memory_data(cfg.DATASET, facts, size)
    found = host.get_dataset(cfg)
    host_images.check(found, cfg.DATASET, size, cfg.DISTILLER.TYPE)
    found = host_images.loaders(found, cfg.DATASET, facts, cfg.SOLVER.TRAINER)
    train, val, test, images, classes, names = found
    mean, std = host.NORMALISATION[name]
    named = names if len(names) == classes else []
    return Data(name, f"{name}-{images}", classes, size, train, val, test, images, list(mean), list(std), named)


def data_of_its_own(cfg, device):
    """Loaders for something trained on the way, by one rank for all: undivided."""
    with distributed.alone():
        return data_of(cfg, device)


def network(cfg, role, classes, seed):
    """The student or teacher network, freshly initialised from its own random stream."""
    torch.manual_seed(stream(seed, "initialise", role))
    if role == "TEACHER" and (stem := deployed_stem(cfg.DISTILLER.TEACHER_CKPT)):
        return teachers.deployed(stem, classes)  # filled already: its card and its tensors belong together
    return host.new_network(cfg.DATASET.TYPE, cfg.DISTILLER[role], classes)


def distiller_of(cfg, student, teacher, data):
    """The configured distiller around its networks, with the arguments mdistiller gives it."""
    kind = host.distiller_dict[cfg.DISTILLER.TYPE]
    torch.manual_seed(stream(cfg.EXPERIMENT.SEED, "initialise", "distiller"))
    if teacher is None:
        return kind(student)
    return (
        kind(student, teacher, cfg, data.train_images) if cfg.DISTILLER.TYPE == "CRD" else kind(student, teacher, cfg)
    )


def skeleton(cfg, data):
    """The distiller with unfilled weights, for a checkpoint that brings them all."""
    student = network(cfg, "STUDENT", data.classes, cfg.EXPERIMENT.SEED)
    teacher = None
    if cfg.DISTILLER.TYPE != "NONE":
        networks = [network(own, "TEACHER", data.classes, 0) for own in configs_by_teacher(cfg)]
        teacher = as_the_method_takes_it(cfg, networks)
    return distiller_of(cfg, student, teacher, data)


def as_the_method_takes_it(cfg, each):
    """The list of what each teacher has, for a method that learns from several, else the only entry."""
    return each if takes_several(cfg) else each[0]


def check_trainer(cfg, device):
    """Refuse a trainer that cannot run here before a teacher is trained for it."""
    if cfg.SOLVER.TRAINER != "plugin" and cfg.LOG.WANDB:
        raise PluginError(
            f"SOLVER.TRAINER {cfg.SOLVER.TRAINER} would log to wandb (LOG.WANDB True), which this command does not "
            "start. Set LOG.WANDB False, or run the host's own script with `launch`."
        )
    if cfg.SOLVER.TRAINER != "plugin" and host.NAME == "mdistiller" and device.type != "cuda":
        raise PluginError(
            f"SOLVER.TRAINER {cfg.SOLVER.TRAINER} of mdistiller needs a GPU (it calls .cuda()); this run is on the CPU."
            " Use SOLVER.TRAINER plugin."
        )


def check_fit(cfg, distiller, data):
    """Refuse, by name, a network that does not turn the data's images into one row of logits each."""
    images = torch.zeros(2, 3, data.image_size, data.image_size)
    members = [("STUDENT", cfg.DISTILLER.STUDENT, distiller.student)]
    if isinstance(getattr(distiller, "teacher", None), torch.nn.Module):
        members += [
            ("TEACHER", *pair) for pair in zip(teacher_names(cfg), networks_of(distiller.teacher), strict=False)
        ]
    problems = []
    for role, name, network in members:
        try:
            with torch.no_grad():
                got = tuple(network.eval()(images)[0].shape)
        except RuntimeError as error:
            got = str(error).splitlines()[0]
        if got != (2, data.classes):
            problems.append(
                f"{name} cannot take {data.image_size}-pixel images: two of them gave {got}, expected "
                f"(2, {data.classes}). Choose another DISTILLER.{role}, or resize with DATASET.IMAGE_SIZE."
            )
    if cfg.DISTILLER.TYPE == "REVIEWKD" and not problems:
        problems += review_problems(cfg.REVIEWKD, distiller.teacher, data.image_size, cfg.DISTILLER.TEACHER)
    if problems:
        raise PluginError("\n".join(problems))


def place(cfg, overrides=()):
    """(name, run directory) of a configuration; nothing is created."""
    name = run_files.experiment_name(cfg, overrides)
    return name, run_files.run_directory(cfg, name)


def prepare(cfg, overrides=(), dry=False):
    """Build all of a run. A missing teacher is trained here if the configuration says so, unless `dry`."""
    name, folder = place(cfg, overrides)
    device = device_of(cfg)
    check_trainer(cfg, device)
    data = data_of(cfg, device)
    loaders(cfg, data)  # what cannot work is refused here, before any teacher is trained or file deleted
    check_fit(cfg, skeleton(cfg, data), data)
    teacher, teacher_from = None, None
    if cfg.DISTILLER.TYPE != "NONE":
        found = teachers.find_all(cfg, data)
        networks = [network(own, "TEACHER", data.classes, own.TEACHER.SEED).to(device) for own, _ in found]
        if not dry:
            teachers.load_all(found, networks, data, lambda own: data_of_its_own(own, device))
        teacher = as_the_method_takes_it(cfg, networks)
        teacher_from = as_the_method_takes_it(cfg, [source.text for _, source in found])
    student = network(cfg, "STUDENT", data.classes, cfg.EXPERIMENT.SEED)
    distiller = distiller_of(cfg, student.to(device), teacher, data).to(device)
    if not dry and hasattr(distiller, "prepare"):  # what a method learns before its student, e.g. DIH's heads
        distiller.prepare(data, lambda own: data_of_its_own(own, device))
    return Run(cfg, name, folder, device, data, distiller, teacher_from)


def loaders(cfg, data):
    """(validation loader of every epoch, test loader of the end or None), by EXPERIMENT.SELECT_ON."""
    select = cfg.EXPERIMENT.SELECT_ON
    if select == "val" and data.val is None:
        raise PluginError(f"EXPERIMENT.SELECT_ON is val, but {data.name} has no validation split; use auto or test.")
    return (data.test, None) if select == "test" or data.val is None else (data.val, data.test)


def trainer_of(run):
    """Our trainer, or one of the host's around DataParallel, as its own script builds it."""
    cfg = run.cfg
    val, test = loaders(cfg, run.data)
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


def plan(run):
    """The resolved plan of a run as (label, text) pairs: what `train --dry-run` prints."""
    cfg, data = run.cfg, run.data
    distiller = unwrap(run.distiller)
    steps = -(-data.train_images // cfg.SOLVER.BATCH_SIZE)
    learnable = list(distiller.get_learnable_parameters())
    extra = distiller.get_extra_parameters() if hasattr(distiller, "get_extra_parameters") else 0
    pairs = [
        ("host", f"{host.NAME} {host.VERSION} ({host.FOLDER})"),
        ("device", str(run.device)),
        ("data", f"{data.identity}: {data.train_images} training images, {data.classes} classes, {data.image_size} px"),
        ("method", f"{cfg.DISTILLER.TYPE} ({type(distiller).__module__}.{type(distiller).__name__})"),
        ("student", f"{cfg.DISTILLER.STUDENT}, {parameter_count(distiller.student.parameters()):,} parameters"),
    ]
    if run.teacher_from:
        origins = run.teacher_from if takes_several(cfg) else [run.teacher_from]
        for name, net, origin in zip(teacher_names(cfg), networks_of(distiller.teacher), origins, strict=True):
            pairs.append(("teacher", f"{name}, {parameter_count(net.parameters()):,} parameters, from {origin}"))
    if hasattr(distiller, "preparation"):
        pairs.append(distiller.preparation())
    return [
        *pairs,
        ("trained", f"{parameter_count(learnable):,} parameters, {extra:,} of them the method's own"),
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
