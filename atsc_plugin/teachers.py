"""Where a teacher's weights come from: a named file, the host's checkpoint folder, or training one here and keeping it.

A teacher trained here is cached under its network, the identity of its data, its recipe and its seed, so that a
one-epoch trial never passes for a teacher. It is written whole, under a lock, and writes no result.json.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from atsc_plugin import cards, host, students
from atsc_plugin.engine import checkpoint, distributed
from atsc_plugin.engine.batches import device_of
from atsc_plugin.engine.precision import precision_of
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import PluginError, wrapped
from atsc_plugin.files import key_of, only_writer
from atsc_plugin.keys import DEFAULTS
from atsc_plugin.methods.base import teacher_names
from atsc_plugin.networks import named
from atsc_plugin.networks.adapter import View
from atsc_plugin.networks.deployed_teacher import as_teacher
from atsc_plugin.seeds import stream
from atsc_plugin.untrusted import expand_user

IMAGE_KEYS = ("MEAN", "STD", "FLIP", "PADDING")


@dataclass(frozen=True)
class Source:
    """One way to a teacher: a file to load, or a file to train into; `text` is what people and about.json are told."""

    path: Path | None
    train: bool
    text: str
    ready: bool = False  # a deployed student, built with its weights


def configs_by_teacher(cfg):
    """One frozen configuration for each teacher, with its name, file and seed where a single teacher has them.

    Teacher k (from 0) has the seed TEACHER.SEED + k unless TEACHER.SEEDS says otherwise.
    """
    return configs_of(cfg, teacher_names(cfg), list(cfg.TEACHER.SEEDS))


def configs_of(cfg, names, seeds=()):
    """The same for networks and seeds that are given; DISTILLER.TEACHER_CKPTS counts where it has a file for each."""
    files = list(cfg.DISTILLER.TEACHER_CKPTS)
    if len(files) != len(names):
        files = [cfg.DISTILLER.TEACHER_CKPT, *[""] * len(names)][: len(names)]
    seeds = seeds or [cfg.TEACHER.SEED + number for number in range(len(names))]
    each = []
    for name, file, seed in zip(names, files, seeds, strict=True):
        own = cfg.clone()
        own.defrost()
        own.DISTILLER.TEACHER, own.DISTILLER.TEACHER_CKPT, own.TEACHER.SEED = name, file, seed
        own.freeze()
        each.append(own)
    return each


def recipe(cfg, data):
    """All that decides what a teacher trained here becomes."""
    node = cfg.TEACHER
    precision = precision_of("auto", device_of(cfg)).name  # what `_run` asks for
    return {
        "model": cfg.DISTILLER.TEACHER,
        "data": data.identity,
        "seed": node.SEED,
        "epochs": node.EPOCHS,
        "batch_size": node.BATCH_SIZE,
        "lr": node.LR,
        "lr_decay_stages": list(node.LR_DECAY_STAGES),
        "lr_decay_rate": node.LR_DECAY_RATE,
        "weight_decay": node.WEIGHT_DECAY,
        "momentum": cfg.SOLVER.MOMENTUM,
        # The defaults are left out, so that teachers trained before these were looked at keep their names.
        **({} if precision == "fp32" else {"precision": precision}),
        **{name: cfg.DATASET[name] for name in IMAGE_KEYS if cfg.DATASET[name] != DEFAULTS[f"DATASET.{name}"]},
    }


def cached_file(cfg, data):
    """The file of the teacher with this recipe, there or not."""
    network = re.sub(r"[/:]", "_", cfg.DISTILLER.TEACHER)
    name = f"{network}-{data.name}-{cfg.TEACHER.EPOCHS}ep-{key_of(recipe(cfg, data))}.pth"
    return Path(cfg.TEACHER.CACHE) / name


def find_all(configs, data):
    """A Source for each configuration; all that are missing are named together."""
    found, problems = [], []
    for own in configs:
        try:
            found.append(find(own, data, taken=found))
        except PluginError as error:
            problems.append(str(error))
    if problems:
        raise PluginError("\n".join(problems))
    return found


def load_all(configs, sources, networks, data, loaders):
    """Fill the networks from their sources: first all that are there, so that no misfit costs a training.

    `loaders(cfg)` makes loaders for a training on the way.
    """
    problems, each = [], list(zip(configs, sources, networks, strict=True))
    for own, source, network in each:
        if not source.train:
            try:
                load(source, own, network, data, loaders)
            except PluginError as error:
                problems.append(str(error))
    if problems:
        raise PluginError("\n".join(problems))
    for number, (own, source, network) in enumerate(each, 1):
        if source.train:
            if len(each) > 1:
                print(f"teacher {number} of {len(each)}, seed {own.TEACHER.SEED}:", flush=True)
            load(source, own, network, data, loaders)


def find(cfg, data, taken=()):
    """The first source there is; a PluginError that names every place when there is none.

    A file of the host's serves one teacher: a second one of the same network is another training, not a copy.
    """
    name = cfg.DISTILLER.TEACHER
    if cfg.DISTILLER.TEACHER_CKPT:
        path = expand_user(cfg.DISTILLER.TEACHER_CKPT)
        if stem := cards.deployed_stem(path):
            return Source(Path(f"{stem}.safetensors"), False, f"{stem}.safetensors (a deployed student)", ready=True)
        if cards.untrained_head(path):
            raise PluginError(
                f"DISTILLER.TEACHER_CKPT names {path}, the bare student of a run that predicts through a shared "
                f"classifier: its own head was never trained. Name the run, {path.parent}, or its deploy_* files."
            )
        if not path.is_file():
            raise PluginError(f"DISTILLER.TEACHER_CKPT names {path}, which is not there. Name an existing file.")
        return Source(path, False, str(path))
    if _pretrained_elsewhere(cfg):
        weights = named.weights_of(name)
        view = f"seen at {weights.size} px with mean {list(weights.mean)} and std {list(weights.std)}"
        return Source(None, False, f"{weights.text}, {view}")
    if data.name == "imagenet" and not named.is_foreign(name):
        return _pretrained(name, taken)
    stock = host.models_for(data.name).get(name, (None, None))[1] if data.name in host.host_datasets() else None
    if stock and Path(stock).is_file() and Path(stock) not in [source.path for source in taken]:
        return Source(Path(stock), False, str(stock))
    cached = cached_file(cfg, data)
    if cached.is_file():
        return Source(cached, False, f"{cached} (trained here before)")
    if cfg.TEACHER.TRAIN_IF_MISSING:
        return Source(cached, True, f"training it here for {cfg.TEACHER.EPOCHS} epochs into {cached}")
    raise PluginError(
        f"No weights for teacher {name}; looked for DISTILLER.TEACHER_CKPT (empty), {stock or 'no file of the host'}, "
        f"{cached}. Name a file with DISTILLER.TEACHER_CKPT, or set TEACHER.TRAIN_IF_MISSING True to train it here."
    )


def deployed(stem, classes):
    """A deployed student as a teacher network, with its weights."""
    module, card = students.load(stem)
    if card["classes"] != classes:
        raise PluginError(
            f"{stem}.safetensors is a student of {card['classes']} classes; the data have {classes}. Use one of these "
            "data."
        )
    return as_teacher(module)


def _pretrained(name, taken):
    source = Source(None, False, f"the host's pretrained {name}")
    if source in taken:
        raise PluginError(
            f"Two teachers are {name}, and the host has pretrained weights for one. Name files in "
            "DISTILLER.TEACHER_CKPTS, at least for the second."
        )
    return source


def new_teacher(cfg, data):
    """The network of a teacher, freshly initialised from its own random stream; a deployed student comes filled."""
    if stem := cards.deployed_stem(cfg.DISTILLER.TEACHER_CKPT):
        return deployed(stem, data.classes)  # its card and its tensors belong together
    torch.manual_seed(stream(cfg.TEACHER.SEED, "initialise", "TEACHER"))
    classes, view = data.classes, None
    if _pretrained_elsewhere(cfg):
        weights = named.weights_of(cfg.DISTILLER.TEACHER)
        classes, view = weights.classes, View(weights.size, (data.mean, data.std), (weights.mean, weights.std))
    return named.new_network(cfg.DATASET.TYPE, cfg.DISTILLER.TEACHER, classes, data.image_size, view=view)


def _pretrained_elsewhere(cfg):
    """Whether the teacher's weights are timm's or torchvision's; a file that is named comes first."""
    return cfg.DISTILLER.TEACHER_PRETRAINED and not cfg.DISTILLER.TEACHER_CKPT


def load(source, cfg, teacher, data, loaders):
    """Fill `teacher` in place with the source's weights, which are trained first where need be."""
    if source.ready:
        print(f"teacher {cfg.DISTILLER.TEACHER} from {source.path}", flush=True)
        return
    if _pretrained_elsewhere(cfg):
        print(f"teacher {cfg.DISTILLER.TEACHER}: {source.text}", flush=True)
        named.load_weights(teacher, cfg.DISTILLER.TEACHER)
        return
    if source.path is None:
        teacher.load_state_dict(host.imagenet_model_dict[cfg.DISTILLER.TEACHER](pretrained=True).state_dict())
        return
    if source.train:
        _train(source.path, cfg, data, loaders)
    print(f"teacher {cfg.DISTILLER.TEACHER} from {source.path}", flush=True)
    checkpoint.load_network(teacher, source.path, cfg.DISTILLER.TEACHER, data.classes)


def _train(path, cfg, data, loaders):
    """Train the teacher and put it at `path`; whoever waited for the lock finds it there and trains nothing."""
    with only_writer(path, "TEACHER.CACHE"):
        if path.is_file():
            return
        message = (
            f"no teacher {cfg.DISTILLER.TEACHER} for {data.name} found: training one for {cfg.TEACHER.EPOCHS} epochs "
            f"(TEACHER.TRAIN_IF_MISSING); it is kept in {path}"
        )
        print(wrapped(message), flush=True)
        scratch = path.with_name(f".teacher-{path.stem}")  # a training that was killed is resumed from there
        with distributed.alone():  # the other ranks wait for the lock, and find it done
            teacher = _run(cfg, loaders, scratch)
        state = {name: tensor.cpu() for name, tensor in teacher.state_dict().items()}
        checkpoint.save({"model": state, "recipe": recipe(cfg, data)}, path)
        shutil.rmtree(scratch, ignore_errors=True)


def _run(cfg, loaders, folder):
    """Cross-entropy training by our own trainer, on the recipe of the TEACHER node; the last epoch is the teacher."""
    own = cfg.clone()
    own.defrost()
    own.DISTILLER.TYPE, own.DISTILLER.STUDENT = "NONE", cfg.DISTILLER.TEACHER
    own.DISTILLER.STUDENT_ARGS = []
    own.EXPERIMENT.SEED = cfg.TEACHER.SEED
    for key in ("EPOCHS", "BATCH_SIZE", "LR", "LR_DECAY_STAGES", "LR_DECAY_RATE", "WEIGHT_DECAY"):
        own.SOLVER[key] = cfg.TEACHER[key]
    for key, plain in {"AMP": "auto", "COMPILE": "none", "ACCUMULATE": 1, "CLIP_NORM": 0.0}.items():
        own.SOLVER[key] = plain  # the engine's keys are the student's: a cached teacher must not depend on them
    own.freeze()
    data = loaders(own)
    teacher = new_teacher(cfg, data).to(device_of(cfg))
    distiller = host.distiller_dict["NONE"](teacher)
    PluginTrainer("teacher", distiller, data.train, data.val or data.test, own, folder=folder).fit()
    return teacher
