"""Where a teacher's weights come from: a named file, a library, the host's folder, or training here and keeping them.

A teacher trained here is cached under its network, the identity of its data, its recipe and its seed, so that a
one-epoch trial never passes for a teacher. It is written whole, under a lock, and writes no result.json. So is one that
`teachers --fine-tune` gives a new head; its recipe has the hash of the weights it starts from.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atsc_plugin import cards, host, students
from atsc_plugin.contract import NONE, Contract
from atsc_plugin.engine import checkpoint, distributed, mixing
from atsc_plugin.engine.batches import device_of
from atsc_plugin.engine.precision import precision_of
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import PluginError, same_arguments, wrapped
from atsc_plugin.files import key_of, only_writer
from atsc_plugin.keys import DEFAULTS, RECIPE, changed
from atsc_plugin.methods.base import class_of, teacher_names
from atsc_plugin.networks import named
from atsc_plugin.networks.adapter import View, unwrapped
from atsc_plugin.networks.deployed_teacher import as_teacher
from atsc_plugin.seeds import stream
from atsc_plugin.untrusted import expand_user

IMAGE_KEYS = ("MEAN", "STD", "FLIP", "PADDING", "CROP", "EVAL_CROP", "AUGMENT", "ERASING")
MORE_KEYS = (*RECIPE, *mixing.KEYS)  # of the recipe, like those of the student


@dataclass(frozen=True)
class Source:
    """One way to a teacher: a file to load, or a file to train into; `text` is what people and about.json are told."""

    path: Path | None
    train: bool
    text: str
    ready: bool = False  # the network has these weights already
    fine_tune: bool = False  # whether what is trained starts from weights of other classes


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
    return [
        changed(cfg, {"DISTILLER.TEACHER": name, "DISTILLER.TEACHER_CKPT": file, "TEACHER.SEED": seed})
        for name, file, seed in zip(names, files, seeds, strict=True)
    ]


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
        **({"args": list(cfg.DISTILLER.TEACHER_ARGS)} if cfg.DISTILLER.TEACHER_ARGS else {}),
        # The defaults are left out, so that teachers trained before these were looked at keep their names.
        **({} if precision == "fp32" else {"precision": precision}),
        **{name: cfg.DATASET[name] for name in IMAGE_KEYS if cfg.DATASET[name] != DEFAULTS[f"DATASET.{name}"]},
        **{name.lower(): node[name] for name in MORE_KEYS if node[name] != DEFAULTS[f"TEACHER.{name}"]},
    }


def cached_file(cfg, data):
    """The file of the teacher with this recipe, there or not."""
    return Path(cfg.TEACHER.CACHE) / f"{_stem(cfg, data)}-{cfg.TEACHER.EPOCHS}ep-{key_of(recipe(cfg, data))}.pth"


def _stem(cfg, data):
    return f"{re.sub(r'[/:]', '_', cfg.DISTILLER.TEACHER)}-{data.name}"


def find_all(configs, data, networks, fine_tune=False):
    """A Source for each configuration and its unfilled network; all that are missing are named together.

    `fine_tune`: weights of other classes may be given a new head here, which is else asked for.
    """
    found, problems = [], []
    for teacher_cfg, network in zip(configs, networks, strict=True):
        try:
            found.append(find(teacher_cfg, data, network, found, fine_tune))
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
    for teacher_cfg, source, network in each:
        if not source.train:
            try:
                load(source, teacher_cfg, network, data, loaders)
            except PluginError as error:
                problems.append(str(error))
    if problems:
        raise PluginError("\n".join(problems))
    for number, (teacher_cfg, source, network) in enumerate(each, 1):
        if source.train:
            if len(each) > 1:
                print(f"teacher {number} of {len(each)}, seed {teacher_cfg.TEACHER.SEED}:", flush=True)
            load(source, teacher_cfg, network, data, loaders)


def find(cfg, data, network, taken=(), fine_tune=False):
    """The first source there is for a network; a PluginError that names every place when there is none.

    A file that the configuration names is read here, to see whether it fits, and so it fills the network.
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
        others = checkpoint.load_network(network, path, name, data.classes, new_head=True)
        return _of_these_classes(cfg, data, Source(path, False, str(path), ready=True), others, fine_tune)
    if pretrained_elsewhere(cfg):
        weights = named.weights_of(name)
        view = f"seen at {weights.size} px with mean {list(weights.mean)} and std {list(weights.std)}"
        source = Source(None, False, f"{weights.text}, {view}")
        if source in taken:
            raise PluginError(
                f"Two teachers are {name} with the same weights: they would be one. Name files in "
                "DISTILLER.TEACHER_CKPTS, at least for the second."
            )
        return _of_these_classes(cfg, data, source, weights.classes, fine_tune)
    if data.name == "imagenet" and not named.is_foreign(name):
        return _pretrained(name, taken)
    stock = host.models_for(data.name).get(name, (None, None))[1] if data.name in host.CONTENT else None
    if stock and Path(stock).is_file() and Path(stock) not in [source.path for source in taken]:
        return Source(Path(stock), False, str(stock))
    cached = cached_file(cfg, data)
    if cached.is_file():
        return Source(cached, False, f"{cached} (trained here before)")
    if cfg.TEACHER.TRAIN_IF_MISSING:
        return Source(cached, True, f"training it here for {cfg.TEACHER.EPOCHS} epochs into {cached}")
    raise PluginError(
        f"No weights for teacher {name}; looked for DISTILLER.TEACHER_CKPT (empty), "
        f"{Path(stock).resolve() if stock else 'no file of the host'}, {cached}. Name a file with "
        "DISTILLER.TEACHER_CKPT, or set TEACHER.TRAIN_IF_MISSING True to train it here."
    )


def _uses_classes(cfg):
    """Whether the method uses the teacher's logits or its classifier."""
    return class_of(cfg.DISTILLER.TYPE).TEACHER_CLASSES


def _of_these_classes(cfg, data, source, classes, fine_tune):
    """The source, or the teacher that `teachers --fine-tune` makes of it where its classes are others and are used."""
    if classes in (None, data.classes):
        return source
    if not _uses_classes(cfg):
        return replace(source, text=f"{source.text}, which tells {classes} other classes apart")
    epochs = cfg.TEACHER.FINE_TUNE_EPOCHS
    kept = f"{_stem(cfg, data)}-fine-tuned-{epochs}ep"
    if fine_tune or any(Path(cfg.TEACHER.CACHE).glob(f"{kept}-*.pth")):  # else the weights need not be there to say no
        tuning_cfg = fine_tuning(cfg)
        path = Path(cfg.TEACHER.CACHE) / f"{kept}-{key_of(fine_tuned_recipe(tuning_cfg, data))}.pth"
        if path.is_file():
            return Source(path, False, f"{path} ({source.text}; fine-tuned here for {epochs} epochs)")
        if fine_tune:
            return Source(path, True, f"fine-tuning {source.text} for {epochs} epochs into {path}", fine_tune=True)
    raise PluginError(
        f"{cfg.DISTILLER.TEACHER} tells {classes} classes apart, the data {data.classes}, and {cfg.DISTILLER.TYPE} "
        f"uses its logits. It is {source.text}. Name weights of {data.classes} classes; or give these a new head, "
        f"trained for TEACHER.FINE_TUNE_EPOCHS {epochs}, by\n  {same_arguments('teachers --fine-tune')}\nand run this "
        "again."
    )


def fine_tuning(cfg):
    """The configuration whose TEACHER node is the recipe of a fine-tuning, shrunk to its epochs."""
    node, epochs = cfg.TEACHER, cfg.TEACHER.FINE_TUNE_EPOCHS
    shrunk = {
        "TEACHER.EPOCHS": epochs,
        "TEACHER.LR_DECAY_STAGES": [round(stage * epochs / node.EPOCHS) for stage in node.LR_DECAY_STAGES],
        "TEACHER.WARMUP_EPOCHS": round(node.WARMUP_EPOCHS * epochs / node.EPOCHS),
    }
    return changed(cfg, shrunk)


def fine_tuned_recipe(cfg, data):
    """`recipe`, and what is fine-tuned, as it sees its images; `cfg` comes from `fine_tuning`."""
    start = checkpoint.digest(dict(sorted(_start(cfg).items())))
    view = named.weights_of(cfg.DISTILLER.TEACHER) if pretrained_elsewhere(cfg) else None
    seen = {"view": [view.size, list(view.mean), list(view.std)]} if view else {}
    return {**recipe(cfg, data), "lr_scale": cfg.TEACHER.FINE_TUNE_LR_SCALE, "from": start, **seen}


def _start(cfg):
    """The state_dict of other classes that a fine-tuning begins with."""
    if pretrained_elsewhere(cfg):
        return named.pretrained(cfg.DISTILLER.TEACHER)
    return checkpoint.state_in(expand_user(cfg.DISTILLER.TEACHER_CKPT))


def deployed(stem, data):
    """A deployed student as a teacher network, with its weights."""
    module, card = students.load(stem)
    if card["classes"] != data.classes:
        raise PluginError(
            f"{stem}.safetensors is a student of {card['classes']} classes; the data have {data.classes}. Use one of "
            "these data."
        )
    students.check_names(stem, card, data)
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
        return deployed(stem, data)  # its card and its tensors belong together
    torch.manual_seed(stream(cfg.TEACHER.SEED, "initialise", "TEACHER"))
    node, view = cfg.DISTILLER, None
    if pretrained_elsewhere(cfg):
        weights = named.weights_of(node.TEACHER)
        view = View(weights.size, (data.mean, data.std), (weights.mean, weights.std))
    return named.new_network(cfg.DATASET.TYPE, node.TEACHER, data.classes, data.image_size, node.TEACHER_ARGS, view)


def pretrained_elsewhere(cfg):
    """Whether the teacher's weights are timm's or torchvision's; a file that is named comes first."""
    return cfg.DISTILLER.TEACHER_PRETRAINED and not cfg.DISTILLER.TEACHER_CKPT


def load(source, cfg, teacher, data, loaders):
    """Fill `teacher` in place with the source's weights, which are trained first where need be."""
    name = cfg.DISTILLER.TEACHER
    if source.train:
        _train(source, cfg, data, loaders)
    print(f"teacher {name} from {source.path or source.text}", flush=True)
    if source.ready:
        return
    new_head = not _uses_classes(cfg)  # then a head of other classes stays as it was drawn
    if source.path is not None:
        checkpoint.load_network(teacher, source.path, name, data.classes, new_head)
    elif pretrained_elsewhere(cfg):
        checkpoint.fill(teacher, named.pretrained(name), source.text, name, data.classes, new_head)
    else:
        teacher.load_state_dict(host.imagenet_model_dict[name](pretrained=True).state_dict())


def _train(source, cfg, data, loaders):
    """Train the teacher and put it where it is kept; whoever waited for the lock finds it there and trains nothing."""
    path, teacher_cfg = source.path, fine_tuning(cfg) if source.fine_tune else cfg
    with only_writer(path, "TEACHER.CACHE"):
        if path.is_file():
            return
        message = (
            f"teacher {cfg.DISTILLER.TEACHER}: {source.text}"
            if source.fine_tune
            else f"no teacher {cfg.DISTILLER.TEACHER} for {data.name} found: training one for {cfg.TEACHER.EPOCHS} "
            f"epochs (TEACHER.TRAIN_IF_MISSING); it is kept in {path}"
        )
        print(wrapped(message), flush=True)
        scratch = path.with_name(f".teacher-{path.stem}")  # a training that was killed is resumed from there
        with distributed.alone():  # the other ranks wait for the lock, and find it done
            state = _run(teacher_cfg, loaders, scratch, source.fine_tune)
        facts = fine_tuned_recipe(teacher_cfg, data) if source.fine_tune else recipe(teacher_cfg, data)
        checkpoint.save({"model": state, "recipe": facts}, path)
        shutil.rmtree(scratch, ignore_errors=True)


def _run(cfg, loaders, folder, fine_tune):
    """Cross-entropy training by our own trainer, on the recipe of the TEACHER node; the state after the last epoch."""
    names = ("EPOCHS", "BATCH_SIZE", "LR", "LR_DECAY_STAGES", "LR_DECAY_RATE", "WEIGHT_DECAY", *MORE_KEYS)
    values = {
        "DISTILLER.TYPE": "NONE",
        "DISTILLER.STUDENT": cfg.DISTILLER.TEACHER,
        "DISTILLER.STUDENT_ARGS": list(cfg.DISTILLER.TEACHER_ARGS),
        "EXPERIMENT.SEED": cfg.TEACHER.SEED,
        **{f"SOLVER.{name}": cfg.TEACHER[name] for name in names},
        # The engine's keys are the student's: a cached teacher must not depend on them.
        **{f"SOLVER.{name}": DEFAULTS[f"SOLVER.{name}"] for name in ("AMP", "COMPILE", "ACCUMULATE", "CLIP_NORM")},
    }
    run_cfg = changed(cfg, values)
    data = loaders(run_cfg)
    teacher = new_teacher(cfg, data)
    if fine_tune:
        name = cfg.DISTILLER.TEACHER
        head = checkpoint.fill(teacher, _start(cfg), f"what {name} starts from", name, data.classes, new_head=True)
        distiller = FineTuning(teacher, head, cfg.TEACHER.FINE_TUNE_LR_SCALE)
    else:
        distiller = host.distiller_dict["NONE"](teacher)
    distiller.to(device_of(cfg))
    trainer = PluginTrainer("teacher", distiller, data.train, data.val or data.test, run_cfg, folder=folder)
    trainer.fit()
    with trainer.step.averaged():
        return {name: tensor.cpu() for name, tensor in teacher.state_dict().items()}


class FineTuning(Contract, nn.Module):
    """loss = CE(z, y) of a network with a new head, named by its tensors; the trunk's rate is `scale` times the head's.

    With a scale of 0 the trunk is frozen and stays in eval mode, its BN statistics included.
    """

    TEACHERS = NONE

    def __init__(self, network: nn.Module, head: Sequence[str], scale: float) -> None:
        super().__init__()
        self.student, self.scale = network, scale
        named_parameters = dict(unwrapped(network).named_parameters())
        self.head = [parameter for name, parameter in named_parameters.items() if name in head]
        self.trunk = [parameter for name, parameter in named_parameters.items() if name not in head]
        for parameter in self.trunk:
            parameter.requires_grad_(scale > 0)

    def train(self, mode: bool = True) -> FineTuning:
        super().train(mode)
        self.student.train(mode and self.scale > 0)
        return self

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return [*self.head, *(self.trunk if self.scale else ())]

    def param_groups(self, cfg: Any) -> list[dict[str, Any]]:
        trunk = [{"params": self.trunk, "lr_scale": self.scale}] if self.scale else []
        return [{"params": self.head}, *trunk]

    def forward(self, image: Tensor, target: Tensor | None = None, **rest: Any) -> Any:
        logits, _ = self.student(image)
        return (logits, {"loss_ce": F.cross_entropy(logits, target)}) if self.training else logits
