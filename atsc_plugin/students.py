"""Deployed students as others use them: found by run directory or file, checked, with a card that is complete.

`atsc_plugin.load_student(...)` is `load_student` here. Nothing has to be registered, no teacher and no data are needed,
and no global state is changed: the draws of the process's random generator stay what they were.
"""

from pathlib import Path

import torch
from yacs.config import CfgNode

from atsc_plugin import deploy, host
from atsc_plugin.engine import run_files
from atsc_plugin.errors import PluginError
from atsc_plugin.untrusted import expand_user

ENDINGS = (".safetensors", ".json")


def load_student(path, which="last"):
    """The student of a run directory or deploy file as a module in eval mode: forward(image) gives logits.

    `which` chooses the "last" or the "best" epoch of a run directory. The module's `card` says how it was made, what it
    scored, and how its images are normalised.
    """
    module, module.card = load(path, which)
    return module


def load(path, which="last"):
    """(module in eval mode, complete card)."""
    stem = locate(path, which)
    with torch.random.fork_rng(devices=[]):  # building the empty network draws weights that the file replaces
        module, card = deploy.load(f"{stem}.json")
    return module, complete(card, stem)


def locate(path, which="last"):
    """The deploy pair of files meant by a run directory or by either file, without the ending."""
    if which not in ("last", "best"):
        raise PluginError(f"which is '{which}'; expected last or best.")
    path = expand_user(path)
    if path.is_dir():
        stem = path / f"deploy_{which}"
        if not Path(f"{stem}.json").is_file():
            raise PluginError(_why_none(path, which))
        return stem
    stem = path.with_suffix("") if path.suffix in ENDINGS else path
    if not Path(f"{stem}.json").is_file():
        hint = " Checkpoints other than deploy_* files are read by `export`." if path.is_file() else ""
        raise PluginError(
            f"There is no {stem}.json; expected a run directory, or one of the two files of a deployed student "
            f"(deploy_last.safetensors with its card deploy_last.json).{hint}"
        )
    return stem


def _why_none(folder, which):
    """What a person is told of a folder without deploy files: each cause has its own way out."""
    seeds = sorted(place.name for place in folder.glob("seed_*") if place.is_dir())
    if seeds:
        return f"{folder} holds runs, not one run; name one of {', '.join(f'{folder / name}' for name in seeds)}."
    if not (folder / "cfg.yaml").is_file() and not (folder / "latest").is_file():
        return f"{folder} is no run directory: it has neither deploy_{which}.json nor cfg.yaml. Name a run or a file."
    if (folder / "latest").is_file():
        return (
            f"{folder} has checkpoints but no deploy_{which} files: a host's own trainer writes none. "
            f"`python -m atsc_plugin export {folder / 'latest'} --format safetensors` makes them."
        )
    return f"{folder} has no finished epoch yet, so there is no student in it. Continue the run: train --resume."


def complete(card, stem):
    """The card with what the host or the run knows beside it; counts that contradict each other are refused."""
    names = card.get("class_names") or []
    if len(names) not in (0, card["classes"]):
        raise PluginError(
            f"{stem}.json has {len(names)} class_names, but the student tells {card['classes']} classes apart; "
            "expected as many names as classes, or none ([]). Mend the card."
        )
    normalisation = host.NORMALISATION.get(card["dataset"], ([], []))
    card = {"mean": list(normalisation[0]), "std": list(normalisation[1]), "class_names": [], **card}
    card.setdefault("image_size", host.image_size(CfgNode({"TYPE": card["dataset"]})))
    result = run_files.read_json(Path(stem).parent, "result.json")
    which = Path(stem).name.removeprefix("deploy_")
    if "test_top1" not in card and result is not None and f"top1_{which}" in result:
        card["test_top1"] = result[f"top1_{which}"]
    return card
