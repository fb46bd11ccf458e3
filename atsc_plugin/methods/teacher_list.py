"""Which teachers a run has: one, or for the methods below several, each with its network, its file and its seed.

DISTILLER.TEACHERS lists them; a method for several takes DISTILLER.TEACHER too, as a list of one.
"""

from torch import nn

from atsc_plugin.errors import ModelRefused

SEVERAL = ("ATSC_MULTI", "SIMKD_MULTI", "AVERKD", "DKD_MULTI")
ONE_OF = {"ATSC": "ATSC_MULTI", "SIMKD": "SIMKD_MULTI", "KD": "AVERKD", "DKD": "DKD_MULTI"}


def takes_several(cfg):
    """Whether the configured method learns from a list of teachers."""
    return cfg.DISTILLER.TYPE in SEVERAL


def teacher_names(cfg):
    """The networks of all teachers, in order."""
    return list(cfg.DISTILLER.TEACHERS) if takes_several(cfg) and cfg.DISTILLER.TEACHERS else [cfg.DISTILLER.TEACHER]


def names_of(networks, cfg):
    """A name for each network; the configuration's where their number fits (a host's script may hand over others)."""
    names = teacher_names(cfg)
    return names if len(names) == len(networks) else [type(network).__name__ for network in networks]


def configs_by_teacher(cfg):
    """One frozen configuration for each teacher, with its name, file and seed where a single teacher has them.

    Teacher k (from 0) has the seed TEACHER.SEED + k unless TEACHER.SEEDS says otherwise.
    """
    names = teacher_names(cfg)
    files = list(cfg.DISTILLER.TEACHER_CKPTS) or [cfg.DISTILLER.TEACHER_CKPT] + [""] * (len(names) - 1)
    seeds = list(cfg.TEACHER.SEEDS) or [cfg.TEACHER.SEED + number for number in range(len(names))]
    each = []
    for name, file, seed in zip(names, files, seeds, strict=True):
        own = cfg.clone()
        own.defrost()
        own.DISTILLER.TEACHER, own.DISTILLER.TEACHER_CKPT, own.TEACHER.SEED = name, file, seed
        own.freeze()
        each.append(own)
    return each


def teacher_problems(cfg, untouched):
    """What is wrong with the teachers of a configuration; `untouched` is DISTILLER.TEACHER when nobody has set it."""
    node = cfg.DISTILLER
    if not takes_several(cfg):
        return _not_for_one(cfg)
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
    if node.TEACHER_CKPT and count > 1:
        problems.append(
            f"DISTILLER.TEACHER_CKPT names one file for {count} teachers. Name a file for each in "
            "DISTILLER.TEACHER_CKPTS ('' for one that is looked for or trained)."
        )
    for key, values, kind in (
        ("DISTILLER.TEACHER_CKPTS", node.TEACHER_CKPTS, str),
        ("TEACHER.SEEDS", cfg.TEACHER.SEEDS, int),
        ("DISTILLER.TEACHERS", node.TEACHERS, str),
    ):
        wrong = [value for value in values if type(value) is not kind]
        if wrong:
            problems.append(f"{key}: got {wrong[0]!r} in the list, expected entries of type {kind.__name__}.")
        if values and len(values) != count:
            problems.append(f"{key} has {len(values)} entries for {count} teachers; expected one for each, or [].")
    if any(type(seed) is int and seed < 0 for seed in cfg.TEACHER.SEEDS):
        problems.append(f"TEACHER.SEEDS: got {list(cfg.TEACHER.SEEDS)}, expected at least 0 each.")
    return problems


def _not_for_one(cfg):
    method = cfg.DISTILLER.TYPE
    other = f" or DISTILLER.TYPE {ONE_OF[method]}" if method in ONE_OF else f"; several are for {', '.join(SEVERAL)}"
    problems = []
    if method == "SIMKD" and cfg.SIMKD.PROJECTOR.COUNT != 1:
        problems.append(
            f"SIMKD.PROJECTOR.COUNT is {cfg.SIMKD.PROJECTOR.COUNT}, but SIMKD has one projector. Use 1{other}."
        )
    return problems + [
        f"{key} is {list(values)}, but {method} learns from {'no teacher' if method == 'NONE' else 'one'}. "
        + ("Leave it out." if method == "NONE" else f"Use {single}{other}.")
        for key, values, single in (
            ("DISTILLER.TEACHERS", cfg.DISTILLER.TEACHERS, "DISTILLER.TEACHER"),
            ("DISTILLER.TEACHER_CKPTS", cfg.DISTILLER.TEACHER_CKPTS, "DISTILLER.TEACHER_CKPT"),
            ("TEACHER.SEEDS", cfg.TEACHER.SEEDS, "TEACHER.SEED"),
        )
        if values
    ]


# ---- the networks ----


def networks_of(teacher):
    """The teachers of a distiller as a list, whether it has one network or a ModuleList."""
    return list(teacher) if isinstance(teacher, nn.ModuleList) else [teacher]


def teacher_module(teacher, several, cfg):
    """What becomes `distiller.teacher`: a network, or for a method that takes several a ModuleList of them.

    Both kinds of method take a network, a list or a ModuleList (forks hand lists over); the number has to fit.
    """
    method, wanted = cfg.DISTILLER.TYPE, len(cfg.DISTILLER.TEACHERS)
    listed = list(teacher) if isinstance(teacher, (list, tuple, nn.ModuleList)) else [teacher]
    if not listed or not all(isinstance(network, nn.Module) for network in listed):
        kinds = ", ".join(type(network).__name__ for network in listed) or "an empty list"
        raise ModelRefused(f"{method} got {kinds} for teachers; expected at least one network. Hand over some.")
    if len({id(network) for network in listed}) < len(listed):
        raise ModelRefused(
            f"{method} got the same network object twice among {len(listed)} teachers; expected different ones. Copy "
            "it, or use SIMKD_MULTI with SIMKD.PROJECTOR.COUNT for several projectors towards one teacher."
        )
    if several and wanted not in (0, len(listed)):
        raise ModelRefused(
            f"DISTILLER.TEACHERS has {wanted} entries, but {method} was handed {len(listed)} networks; expected as "
            "many. A host's own script builds one teacher: run `python -m atsc_plugin train`, or hand over a list."
        )
    if several:
        return nn.ModuleList(listed)
    if len(listed) > 1:
        raise ModelRefused(
            f"{method} learns from one teacher and got {len(listed)}. Hand over one, or use DISTILLER.TYPE "
            f"{ONE_OF.get(method, ', '.join(SEVERAL))}."
        )
    return listed[0]
