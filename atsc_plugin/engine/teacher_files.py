"""Deployed students among the files that teachers are named by: DISTILLER.TEACHER_CKPT and TEACHER_CKPTS.

The card beside such a file says which network it is, so DISTILLER.TEACHER need not, and cannot say otherwise. Needs no
torch.
"""

from pathlib import Path

from atsc_plugin import cards
from atsc_plugin.errors import PluginError
from atsc_plugin.untrusted import expand_user, read_json


def deployed_stem(path):
    """The deploy pair meant by a run directory or by one of its two files, without ending; None for anything else."""
    if not str(path):
        return None
    path = expand_user(path)
    stem = path / "deploy_last" if path.is_dir() else path.with_suffix("")
    if not path.is_dir() and path.suffix not in (".safetensors", ".json"):
        return None
    card = Path(f"{stem}.json")
    try:
        content = read_json(card, cards.EXPECTED)
    except (OSError, PluginError):
        return None
    return stem if isinstance(content, dict) and "heads" in content and "student" in content else None


def name_of(path):
    """The network that a deployed student is, None for a file that is none."""
    stem = deployed_stem(path)
    return cards.read(f"{stem}.json")["student"] if stem else None


def untrained_head(path):
    """Whether a file is the bare student of a run whose deployed student predicts through another head."""
    path = Path(path)
    if path.name not in ("student_latest", "student_best"):
        return False
    try:
        return bool(cards.read(path.parent / "deploy_last.json").get("heads"))
    except FileNotFoundError:
        return False


def name_deployed(cfg, said=()):
    """Set DISTILLER.TEACHER to what a deployed TEACHER_CKPT is; `said` are the keys somebody set by hand. Problems."""
    node = cfg.DISTILLER
    problems, own = [], name_of(node.TEACHER_CKPT) if node.TEACHER_CKPT else None
    if own and "DISTILLER.TEACHER" in said and own != node.TEACHER:
        problems.append(_contradiction("DISTILLER.TEACHER", node.TEACHER, node.TEACHER_CKPT, own))
    if own:
        node.TEACHER = own
    for name, file in zip(node.get("TEACHERS", []), node.get("TEACHER_CKPTS", []), strict=False):
        own = name_of(file) if isinstance(file, str) and file else None
        if own and name != own:
            problems.append(_contradiction("DISTILLER.TEACHERS", name, file, own))
    return problems


def _contradiction(key, name, file, own):
    return f"{key} says {name}, but {file} is a deployed {own}. Write {own} there, or name another file."
