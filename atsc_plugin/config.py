"""The way from a YAML file and overrides to one frozen configuration.

`load_cfg` is what the commands call: it reads, checks everything and reports all mistakes at once, before any work.
The keys themselves stand in keys.py.
"""

import ast
import difflib

from yacs.config import CfgNode

from atsc_plugin.cards import CARD
from atsc_plugin.engine.run_files import read_tree
from atsc_plugin.engine.solver_checks import solver_problems
from atsc_plugin.errors import ConfigError
from atsc_plugin.host import CFG, distiller_dict, host_datasets, models_for, trainer_dict
from atsc_plugin.keys import KEYS, find, flatten
from atsc_plugin.methods.atsc_checks import atsc_problems
from atsc_plugin.methods.sister_checks import coteach_problems, dih_problems
from atsc_plugin.methods.teacher_list import takes_several, teacher_names, teacher_problems
from atsc_plugin.shipped import config_file
from atsc_plugin.students import name_deployed
from atsc_plugin.untrusted import printable, short_repr

METHOD_CHECKS = {
    "ATSC": atsc_problems,
    "ATSC_MULTI": atsc_problems,
    "DIH": dih_problems,
    "COTEACH": coteach_problems,
}
MOST_PROBLEMS = 40  # a file with more is none of ours, and each costs a search for a similar name
OWN_DATASETS = ("digits100", "npz", "folder", "cifar10")


# Sizes among the host's own keys: what each may be before memory or processes are asked for.
HOST_BOUNDS = {
    "SOLVER.BATCH_SIZE": (1, 10**6),
    "SOLVER.EPOCHS": (1, 10**6),
    "DATASET.TEST.BATCH_SIZE": (1, 10**6),
    "DATASET.NUM_WORKERS": (0, 1024),
}


def load_cfg(path, overrides=()):
    """A frozen configuration from the host's defaults, a YAML file and `KEY VALUE ...`; all mistakes in one error."""
    cfg = CFG.clone()
    cfg.defrost()
    problems = []
    tree = read_tree(config_file(path), " Name one, e.g. --cfg configs/quickstart/simkd.yaml.")
    for name, value in _leaves(tree, problems):
        problems += _set(cfg, name, value, strict=True)
        if len(problems) >= MOST_PROBLEMS:
            raise ConfigError([*problems, "... and perhaps more: the rest of the file was not looked at."])
    if len(overrides) % 2:
        problems.append(f"overrides come as KEY VALUE pairs; '{overrides[-1]}' has no value. Add one.")
    for name, text in zip(overrides[::2], overrides[1::2], strict=False):
        problems += _set(cfg, name, text, strict=False)
    problems += name_deployed(cfg, overrides[::2])
    problems += check(cfg)
    if problems:
        raise ConfigError(problems)
    cfg.freeze()
    return cfg


def _leaves(tree, problems, prefix=""):
    for step, value in tree.items():
        name = f"{prefix}{step}"
        if not isinstance(step, str):
            problems.append(
                f"{name}: a key must be text, got {type(step).__name__}; YAML reads on/off/yes/no as "
                "booleans, quote them."
            )
        elif isinstance(value, dict):
            yield from _leaves(value, problems, f"{name}.")
        else:
            yield name, value


def _set(cfg, name, value, strict):
    """Set one key; a list of zero or one problems. Strict: the exact type, as the host's merge demands of a file."""
    node, leaf = find(cfg, name)
    if node is None or isinstance(node[leaf], CfgNode):
        near = difflib.get_close_matches(name, list(flatten(cfg)), n=1, cutoff=0.5)
        kind = "is a group of keys, not a key" if node is not None else "is no key"
        return [f"{name} {kind}" + (f"; did you mean {near[0]}?" if near else ".")]
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
        return [f"{name}: got {got}, expected {type(old).__name__}, e.g. {old!r}.{hint}"]
    node[leaf] = value
    return []


def _decode(text, old):
    """The value a word of the command line stands for: the key's own type decides."""
    if isinstance(old, str):
        return text
    if isinstance(old, bool) and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return _names(text) if isinstance(old, list) else text
    return float(value) if isinstance(old, float) and type(value) is int else value


def _names(text):
    """A list of names as YAML writes it, [resnet20, vgg13], without quotes that a shell would want quoted again."""
    if not (text.startswith("[") and text.endswith("]")) or "[" in text[1:]:
        return text
    return [name.strip(" '\"") for name in text[1:-1].split(",")]


def datasets():
    """Every DATASET.TYPE this installation knows."""
    return (*OWN_DATASETS, *host_datasets())


def check(cfg):
    """Mistakes in values that have the right type: unknown names, numbers out of range."""
    problems = []
    for key in KEYS:
        node, leaf = find(cfg, key.name)
        value = node[leaf]
        if key.choices and value not in key.choices:
            problems.append(_unknown(key.name, value, key.choices))
        if key.minimum is not None and not value >= key.minimum:  # `not >=` also catches nan
            problems.append(f"{key.name}: got {value}, expected at least {key.minimum}.")
        if key.maximum is not None and value > key.maximum:
            problems.append(f"{key.name}: got {value}, expected at most {key.maximum:,}.")
    if not cfg.DATASET.VAL_SPLIT < 1:
        problems.append(f"DATASET.VAL_SPLIT: got {cfg.DATASET.VAL_SPLIT}, expected a share below 1, e.g. 0.1.")
    for name in ("DATASET.MEAN", "DATASET.STD"):
        node, leaf = find(cfg, name)
        right = all(isinstance(value, float) for value in node[leaf]) and CARD[leaf.lower()].test(list(node[leaf]))
        if not right:
            above = " above 0" if leaf == "STD" else ""
            problems.append(
                f"{name}: got {short_repr(node[leaf])}, expected three decimals{above}, e.g. [0.5, 0.5, 0.5], or []."
            )
    for name, (low, high) in HOST_BOUNDS.items():
        node, leaf = find(cfg, name)
        if node is not None and node[leaf] < low:
            problems.append(f"{name}: got {node[leaf]}, expected at least {low}.")
        if node is not None and node[leaf] > high:
            problems.append(f"{name}: got {node[leaf]}, expected at most {high:,}.")
    problems += _check_names(cfg)
    problems += teacher_problems(cfg, CFG.DISTILLER.TEACHER)
    if cfg.DISTILLER.TYPE in METHOD_CHECKS:
        problems += METHOD_CHECKS[cfg.DISTILLER.TYPE](cfg)
    problems += solver_problems(cfg)
    if cfg.SOLVER.TYPE != "SGD":
        problems.append(_unknown("SOLVER.TYPE", cfg.SOLVER.TYPE, ("SGD",)))
    return problems


def _check_names(cfg):
    problems = []
    method, data = cfg.DISTILLER.TYPE, cfg.DATASET.TYPE
    if method not in distiller_dict:
        problems.append(_unknown("DISTILLER.TYPE", method, distiller_dict))
    if cfg.SOLVER.TRAINER not in (trainer_dict or {"plugin": None}):
        problems.append(_unknown("SOLVER.TRAINER", cfg.SOLVER.TRAINER, trainer_dict or {"plugin": None}))
    if data not in datasets():
        return [*problems, _unknown("DATASET.TYPE", data, datasets())]
    names = [("DISTILLER.STUDENT", cfg.DISTILLER.STUDENT)]
    if method != "NONE":
        role = "TEACHERS" if takes_several(cfg) and cfg.DISTILLER.TEACHERS else "TEACHER"
        names += [(f"DISTILLER.{role}", name) for name in teacher_names(cfg) if isinstance(name, str)]
    if method == "COTEACH" and cfg.COTEACH.SCRATCH_TEACHER:
        names.append(("COTEACH.SCRATCH_TEACHER", cfg.COTEACH.SCRATCH_TEACHER))
    return problems + [_unknown(key, name, models_for(data)) for key, name in names if name not in models_for(data)]


def _unknown(name, value, allowed):
    allowed = [str(entry) for entry in allowed]
    if not allowed:
        return f"{name}: got '{value}', but this host has no table of them. ATSC_HOST=embedded has one."
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name}: got '{value}', expected one of {', '.join(allowed)}{hint}"
