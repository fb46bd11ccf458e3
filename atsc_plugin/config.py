"""The way from a YAML file and overrides to one frozen configuration.

`load_cfg` is what the commands call: it reads, checks everything and reports all mistakes at once, before any work.
The keys themselves stand in keys.py and in the methods' files.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable
from typing import Any

from yacs.config import CfgNode

from atsc_plugin.cards import CARD, name_deployed
from atsc_plugin.contract import NONE, SECOND_STEP, SEVERAL
from atsc_plugin.engine import mixing
from atsc_plugin.engine.run_dir import read_tree
from atsc_plugin.errors import ConfigError
from atsc_plugin.host import CFG, CONTENT, FORKS_COSINE, distiller_dict, trainer_dict, warmup_epochs
from atsc_plugin.keys import DEFAULTS, RECIPE, Key, did_you_mean, find, flatten, names_in, unknown_name
from atsc_plugin.methods.base import METHODS, class_of, constructor_problems, teacher_names
from atsc_plugin.networks import named
from atsc_plugin.registration import all_keys
from atsc_plugin.shipped import config_file
from atsc_plugin.untrusted import printable, short_repr

MOST_PROBLEMS = 40  # a file with more is none of ours, and each costs a search for a similar name
OWN_DATASETS = ("digits100", "npz", "folder", "cifar10")
# The host's own keys that would only fail after work has begun: (lowest, highest) value.
HOST_BOUNDS = {
    "SOLVER.BATCH_SIZE": (1, 10**6),
    "SOLVER.EPOCHS": (1, 10**6),
    "SOLVER.LR": (0.0, 1e6),
    "SOLVER.LR_DECAY_RATE": (0.0, 1e6),
    "SOLVER.WEIGHT_DECAY": (0.0, 1e6),
    "SOLVER.MOMENTUM": (0.0, 1.0),
    "DATASET.TEST.BATCH_SIZE": (1, 10**6),
    "DATASET.NUM_WORKERS": (0, 1024),
    "LOG.SAVE_CHECKPOINT_FREQ": (1, 10**6),
}
# Students that every published CIFAR-100 table trains at a fifth of the usual rate.
LIGHT_STUDENTS, LIGHT_RATE = ("MobileNetV2", "ShuffleV1", "ShuffleV2"), 0.01
# Keys of SOLVER with the values at which they do nothing. These no second step knows,
NEUTRAL_SECOND = {"AMP": ("auto", "none")}
NEUTRAL_SECOND |= {
    key: (DEFAULTS[f"SOLVER.{key}"],) for key in ("COMPILE", "ACCUMULATE", "CLIP_NORM", "SYNC_BN", "NONFINITE")
}
# and these no trainer of a host.
NEUTRAL = NEUTRAL_SECOND | {key: (DEFAULTS[f"SOLVER.{key}"],) for key in (*RECIPE, *mixing.KEYS)}
# Keys of DATASET that only some of its TYPEs follow, with the value at which they do nothing.
AUGMENTED = ("folder", "npz", "cifar10", "digits100", "cifar100")
FOLLOWED = {
    "CROP": ("pad", ("folder",)),
    "EVAL_CROP": (0.0, ("folder",)),
    "AUGMENT": ("none", AUGMENTED),
    "ERASING": (0.0, AUGMENTED),
    "FLIP": ("auto", OWN_DATASETS),
    "PADDING": (DEFAULTS["DATASET.PADDING"], OWN_DATASETS),
    "MEAN": ([], OWN_DATASETS),
    "STD": ([], OWN_DATASETS),
}
BY_WORKERS = ("CROP", "AUGMENT", "ERASING")  # of these, what a device loader does not do


def load_cfg(path, overrides=()) -> CfgNode:
    """A frozen configuration from the host's defaults, a YAML file and `KEY VALUE ...`; all mistakes in one error."""
    cfg = CFG.clone()
    cfg.defrost()
    problems = []
    values = flatten(read_tree(config_file(path), " Name one, e.g. --cfg configs/quickstart/simkd.yaml."))
    named = {*values, *overrides[::2]}
    for name, value in values.items():
        problems += set_key(cfg, name, value, strict=True)
        if len(problems) >= MOST_PROBLEMS:
            raise ConfigError([*problems, "... and perhaps more: the rest of the file was not looked at."])
    if len(overrides) % 2:
        problems.append(f"overrides come as KEY VALUE pairs; '{overrides[-1]}' has no value. Add one.")
    for name, text in zip(overrides[::2], overrides[1::2], strict=False):
        problems += set_key(cfg, name, text, strict=False)
    problems += name_deployed(cfg, overrides[::2])
    for name, value in pair_settings(cfg).items():
        if name not in named:
            problems += set_key(cfg, name, value, strict=True)
    problems += _wandb_problems(cfg, "LOG.WANDB" in named)
    problems += check(cfg)
    if problems:
        raise ConfigError(problems)
    cfg.LOG.PREFIX, cfg.TEACHER.CACHE = map(os.path.expanduser, (cfg.LOG.PREFIX, cfg.TEACHER.CACHE))
    cfg.freeze()
    return cfg


def pair_settings(cfg: CfgNode) -> dict[str, Any]:
    """{key: value} published for this method on this pair of networks; of keys that nobody names, these hold."""
    student, teachers = cfg.DISTILLER.STUDENT, [name for name in teacher_names(cfg) if isinstance(name, str)]
    rate = {"SOLVER.LR": LIGHT_RATE} if student in LIGHT_STUDENTS else {}
    return rate | class_of(cfg.DISTILLER.TYPE).HYPER.get((*teachers[:1], student), {})


def _wandb_problems(cfg, named):
    """Our trainer does not log to wandb: a wish is refused; the host's own default True becomes False."""
    if cfg.SOLVER.TRAINER != "plugin" or not cfg.LOG.get("WANDB", False):
        return []
    if named:
        return [
            "LOG.WANDB is True, but SOLVER.TRAINER plugin logs to log.jsonl and TensorBoard (train.events), not to "
            "wandb. Set LOG.WANDB False, or use SOLVER.TRAINER base by `launch`."
        ]
    cfg.LOG.WANDB = False
    return []


def set_key(cfg: CfgNode, name: str, value: Any, strict: bool) -> list[str]:
    """Set one key; a list of zero or one problems. Strict: the exact type, as the host's merge demands of a file."""
    node, leaf = find(cfg, name)
    if node is None or isinstance(node[leaf], CfgNode):
        if moved := _old_key(name):
            return [moved]
        kind = "is a group of keys, not a key" if node is not None else "is no key"
        return [f"{name} {kind}{did_you_mean(name, flatten(cfg)) or '.'}"]
    old = node[leaf]
    if isinstance(value, str) and printable(value, keep="\n\t") != value:
        return [
            f"{name}: got {short_repr(value)}, which has control characters or bytes that are not UTF-8. Rename it."
        ]
    if not strict:
        value = _decode(value, old)
    if isinstance(old, (list, tuple)) and isinstance(value, (list, tuple)):
        kinds = {type(entry) for entry in old}
        if kinds and any(type(entry) not in kinds for entry in value):
            return [f"{name}: got {short_repr(value)}, expected entries of type {'/'.join(k.__name__ for k in kinds)}."]
        value = type(old)(value)
    if type(value) is not type(old):
        hint = f" Write {float(value)}." if type(old) is float and type(value) is int else ""
        if type(old) is float and isinstance(value, str) and "e" in value.lower():
            hint = " YAML reads 1e-4 as text: write 1.0e-4 or 0.0001."
        got = f"{short_repr(value)} ({type(value).__name__})"
        example = f"[{value}]" if isinstance(old, list) and isinstance(value, str) and value[:1] != "[" else repr(old)
        return [f"{name}: got {got}, expected {type(old).__name__}, e.g. {example}.{hint}"]
    node[leaf] = value
    return []


def _old_key(name):
    """What to write in place of a key of an earlier edition; None for any other."""
    for kind in METHODS.values():
        if name in kind.OLD_KEYS:
            return f"{name} is gone: {kind.OLD_KEYS[name]}"
    return None


def _decode(text, old):
    """The value that a text of the command line means: the key's own type decides."""
    if isinstance(old, str):
        return text
    if isinstance(old, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return names_in(text) if isinstance(old, list) else text
    return float(value) if isinstance(old, float) and type(value) is int else value


def datasets():
    """Every DATASET.TYPE this installation knows."""
    return (*OWN_DATASETS, *CONTENT)


def value_problems(cfg: CfgNode, keys: Iterable[Key]) -> list[str]:
    """Values that are none of a key's choices, or outside its bounds."""
    problems, values = [], flatten(cfg)
    for key in keys:
        value = values[key.name]
        if key.choices and value not in key.choices:
            problems.append(unknown_name(key.name, value, key.choices))
        problems += _out_of_bounds(key.name, value, key.minimum, key.maximum)
    return problems


def check(cfg: CfgNode) -> list[str]:
    """Mistakes in values that have the right type: unknown names, numbers out of range, what does not go together."""
    problems, values = value_problems(cfg, all_keys()), flatten(cfg)
    for name, bounds in HOST_BOUNDS.items():
        if name in values:
            problems += _out_of_bounds(name, values[name], *bounds)
    if not cfg.DATASET.VAL_SPLIT < 1:
        problems.append(f"DATASET.VAL_SPLIT: got {cfg.DATASET.VAL_SPLIT}, expected a share below 1, e.g. 0.1.")
    for key in ("MEAN", "STD"):
        decimals = list(cfg.DATASET[key])
        fit = all(isinstance(value, float) and 0 <= value <= 1 for value in decimals)
        if not fit or not CARD[key.lower()].test(decimals):
            above = "above 0 and up to 1" if key == "STD" else "in 0..1"
            problems.append(
                f"DATASET.{key}: got {short_repr(decimals)}, expected three decimals {above}, as of pixels / 255, e.g. "
                "[0.5, 0.5, 0.5], or []."
            )
    problems += _recipe_problems(cfg, "TEACHER")
    if cfg.SOLVER.TRAINER == "plugin":
        problems += _recipe_problems(cfg, "SOLVER")
    kind = class_of(cfg.DISTILLER.TYPE)
    problems += _data_problems(cfg)
    return problems + _name_problems(cfg) + _teacher_problems(cfg, kind) + _method_problems(cfg, kind)


def _recipe_problems(cfg, name):
    """What does not go together in the recipe of a run (SOLVER) or of a teacher trained here (TEACHER)."""
    node, problems = cfg[name], []
    if not node.EMA < 1:
        problems.append(f"{name}.EMA is {node.EMA:g}; expected below 1, e.g. 0.999, or 0 for no average.")
    if 0 < node.EPOCHS <= warmup_epochs(node):
        problems.append(
            f"{name}.WARMUP_EPOCHS is {node.WARMUP_EPOCHS} and {name}.EPOCHS {node.EPOCHS}, so the rate would never "
            f"reach {name}.LR. Lower WARMUP_EPOCHS."
        )
    if node.SCHEDULE == "steps" and node.MIN_LR and FORKS_COSINE not in node:
        problems.append(
            f"{name}.MIN_LR is {node.MIN_LR:g}, where SCHEDULE cosine ends; {name}.SCHEDULE is steps. Use cosine, or 0."
        )
    if node.SCHEDULE == "cosine" and node.MIN_LR > node.LR:
        problems.append(f"{name}.MIN_LR is {node.MIN_LR:g}; expected at most {name}.LR, {node.LR:g}.")
    if node.TYPE == "AdamW" and not cfg.SOLVER.MOMENTUM < 1:
        problems.append(f"SOLVER.MOMENTUM is {cfg.SOLVER.MOMENTUM:g}, AdamW's beta 1; expected below 1, e.g. 0.9.")
    return problems


def _out_of_bounds(name, value, low, high):
    if low is not None and not value >= low:  # `not >=` also catches nan
        return [f"{name}: got {value}, expected at least {low}."]
    if high is not None and not value <= high:
        return [f"{name}: got {value}, expected at most {high:,}."]
    return []


def _data_problems(cfg):
    """Keys that this DATASET.TYPE or DATASET.LOADER does not follow."""
    node, problems = cfg.DATASET, []
    for key, (neutral, types) in FOLLOWED.items():
        if node[key] == neutral or node.TYPE not in datasets():
            continue
        asked = f"DATASET.{key} is {node[key]}"
        if node.TYPE not in types:
            problems.append(
                f"{asked}, which {node.TYPE} does not follow; expected with one of {', '.join(types)}. Use {neutral}, "
                "or DATASET.TYPE folder for image files."
            )
        elif key in BY_WORKERS and node.LOADER not in (("auto",) if node.TYPE == "cifar100" else ("auto", "host")):
            problems.append(f"{asked}, which DATASET.LOADER {node.LOADER} does not know. Use auto.")
    if node.EVAL_CROP and not node.IMAGE_SIZE:
        problems.append(f"DATASET.EVAL_CROP is {node.EVAL_CROP}, but DATASET.IMAGE_SIZE is 0; expected a side.")
    padding = DEFAULTS["DATASET.PADDING"]
    if node.CROP == "resized" and padding != node.PADDING:
        problems.append(f"DATASET.PADDING is {node.PADDING}, but DATASET.CROP resized pads nothing. Leave it out.")
    return problems


def _name_problems(cfg):
    problems = []
    method, data = cfg.DISTILLER.TYPE, cfg.DATASET.TYPE
    if method not in distiller_dict:
        problems.append(unknown_name("DISTILLER.TYPE", method, distiller_dict))
    if cfg.SOLVER.TRAINER not in (trainer_dict or {"plugin": None}):
        problems.append(unknown_name("SOLVER.TRAINER", cfg.SOLVER.TRAINER, trainer_dict or {"plugin": None}))
    if data not in datasets():
        return [*problems, unknown_name("DATASET.TYPE", data, datasets())]
    names = [("DISTILLER.STUDENT", cfg.DISTILLER.STUDENT)]
    several = class_of(method).TEACHERS == SEVERAL and cfg.DISTILLER.TEACHERS
    role = "DISTILLER.TEACHERS" if several else "DISTILLER.TEACHER"
    names += [(role, name) for name in teacher_names(cfg) if isinstance(name, str)]
    arguments = {"DISTILLER.STUDENT": cfg.DISTILLER.STUDENT_ARGS}
    if len(names) == 2:
        arguments[role] = cfg.DISTILLER.TEACHER_ARGS
    for key, name in names:
        problems += named.problems(key, data, name, arguments.get(key, ()))
    if cfg.DISTILLER.TEACHER_PRETRAINED:
        problems += [
            f"DISTILLER.TEACHER_PRETRAINED is True, but {key} {name} is none of timm/ or torchvision/. Use "
            "DISTILLER.TEACHER_CKPT."
            for key, name in names[1:]
            if not name.startswith(("timm/", "torchvision/"))
        ]
    foreign = [name for _, name in names if named.is_foreign(name)]
    if foreign and cfg.SOLVER.COMPILE != "none":
        problems.append(
            f"SOLVER.COMPILE is {cfg.SOLVER.COMPILE}, but the maps of {foreign[0]} are read by hooks, which a compiled "
            "network does not call. Use none."
        )
    return problems


def _method_problems(cfg, kind):
    """The method's own mistakes, and what method, engine and ranks ask of each other."""
    solver, needs, problems = cfg.SOLVER, kind.needs(cfg), constructor_problems(kind, cfg)
    if solver.TRAINER != "plugin":
        of_the_host = ("WARMUP_EPOCHS", "MIN_LR") if FORKS_COSINE in solver else ()
        problems += [
            f"SOLVER.{key} is {solver[key]}; SOLVER.TRAINER {solver.TRAINER} does not read it. Use SOLVER.TRAINER "
            f"plugin, or {neutral[-1]}."
            for key, neutral in NEUTRAL.items()
            if solver[key] not in neutral and key not in of_the_host
        ]
    elif solver.get(FORKS_COSINE):
        problems.append(
            f"SOLVER.{FORKS_COSINE} is True, which SOLVER.TRAINER plugin does not read. Use SOLVER.SCHEDULE cosine."
        )
    if SECOND_STEP in needs:
        problems += [
            f"SOLVER.{key} is {solver[key]}, but {needs[SECOND_STEP]} and the second has no such thing. Use "
            f"{neutral[-1]}."
            for key, neutral in NEUTRAL_SECOND.items()
            if solver[key] not in neutral
        ]
    if solver.ACCUMULATE > solver.BATCH_SIZE >= 1:
        problems.append(
            f"SOLVER.ACCUMULATE is {solver.ACCUMULATE}, but a batch has {solver.BATCH_SIZE} images; expected at most "
            "one micro-batch an image."
        )
    if solver.ACCUMULATE > 1 and not kind.PER_IMAGE:
        problems.append(
            f"SOLVER.ACCUMULATE is {solver.ACCUMULATE}, but the losses of {cfg.DISTILLER.TYPE} are not means over "
            "images, so micro-batches would make another step. Use 1."
        )
    if solver.COMPILE in ("reduce-overhead", "max-autotune") and solver.ACCUMULATE > 1:
        problems.append(
            f"SOLVER.COMPILE {solver.COMPILE} records CUDA graphs, whose gradients do not outlive a second pass; "
            "with SOLVER.ACCUMULATE above 1 use COMPILE default or none."
        )
    return problems + _ranks_problems(cfg, needs, int(os.environ.get("WORLD_SIZE", 1)))


def _ranks_problems(cfg, needs, ranks):
    """What several ranks (torchrun's WORLD_SIZE) demand."""
    problems, solver = [], cfg.SOLVER
    if ranks == 1:
        return problems
    if solver.TRAINER != "plugin":
        problems.append(f"torchrun started {ranks} ranks; SOLVER.TRAINER {solver.TRAINER} knows one. Use plugin.")
    if SECOND_STEP in needs:
        problems.append(f"{needs[SECOND_STEP]}, defined on one device; torchrun started {ranks} ranks. Use one.")
    if solver.BATCH_SIZE % ranks:
        below = solver.BATCH_SIZE // ranks * ranks
        problems.append(
            f"SOLVER.BATCH_SIZE is {solver.BATCH_SIZE}, the batch of all ranks together; torchrun started {ranks}, "
            f"which does not divide it. Use {below or ranks} or {below + ranks}."
        )
    return problems


# ---- teachers ----


def _teacher_problems(cfg, kind):
    """What is wrong with the teachers that a configuration names."""
    node, untouched = cfg.DISTILLER, CFG.DISTILLER.TEACHER
    if kind.TEACHERS != SEVERAL:
        return _lists_for_one_teacher(cfg, kind)
    problems = []
    if not node.TEACHERS and node.TEACHER in ("", untouched):
        problems.append(
            f"DISTILLER.TEACHERS is empty; {node.TYPE} expects at least one network, e.g. [resnet32x4, vgg13]."
        )
    if node.TEACHERS and node.TEACHER not in ("", untouched, *node.TEACHERS):
        problems.append(
            f"DISTILLER.TEACHER is {node.TEACHER} beside DISTILLER.TEACHERS {list(node.TEACHERS)}; expected one of the "
            "two. Put it into the list, or leave it out."
        )
    count = len(teacher_names(cfg))
    if node.TEACHER_ARGS and count > 1:
        problems.append(
            f"DISTILLER.TEACHER_ARGS is {list(node.TEACHER_ARGS)}, but there are {count} teachers; expected one. Leave "
            "it out."
        )
    if node.TEACHER_CKPT and count > 1:
        problems.append(
            f"DISTILLER.TEACHER_CKPT names one file for {count} teachers. Name a file for each in "
            "DISTILLER.TEACHER_CKPTS ('' for one that is looked for or trained)."
        )
    for key, values, entry in (
        ("DISTILLER.TEACHER_CKPTS", node.TEACHER_CKPTS, str),
        ("TEACHER.SEEDS", cfg.TEACHER.SEEDS, int),
        ("DISTILLER.TEACHERS", node.TEACHERS, str),
    ):
        wrong = [value for value in values if type(value) is not entry]
        if wrong:
            problems.append(f"{key}: got {wrong[0]!r} in the list, expected entries of type {entry.__name__}.")
        if values and len(values) != count:
            problems.append(f"{key} has {len(values)} entries for {count} teachers; expected one for each, or [].")
    if any(type(seed) is int and seed < 0 for seed in cfg.TEACHER.SEEDS):
        problems.append(f"TEACHER.SEEDS: got {list(cfg.TEACHER.SEEDS)}, expected at least 0 each.")
    return problems


def _lists_for_one_teacher(cfg, kind):
    method = cfg.DISTILLER.TYPE
    several = ", ".join(name for name, other in METHODS.items() if other.TEACHERS == SEVERAL)
    other = f" or DISTILLER.TYPE {kind.MULTI}" if kind.MULTI else f"; several are for {several}"
    return [
        f"{key} is {list(values)}, but {method} learns from {'no teacher' if kind.TEACHERS == NONE else 'one'}. "
        + ("Leave it out." if kind.TEACHERS == NONE else f"Use {single}{other}.")
        for key, values, single in (
            ("DISTILLER.TEACHERS", cfg.DISTILLER.TEACHERS, "DISTILLER.TEACHER"),
            ("DISTILLER.TEACHER_CKPTS", cfg.DISTILLER.TEACHER_CKPTS, "DISTILLER.TEACHER_CKPT"),
            ("TEACHER.SEEDS", cfg.TEACHER.SEEDS, "TEACHER.SEED"),
        )
        if values
    ]
