"""Students found, opened and rebuilt: the one module that knows in which files a student lies.

A run directory or a deploy pair (`deploy_last.safetensors` with its card `.json`) is rebuilt from the card alone; a
checkpoint, of a whole distiller or of the bare network, needs the configuration it was made with. Nothing in a file is
executed. `atsc_plugin.load_student` is `load_student` here; it needs no teacher, no data and no registration, and
draws nothing from the process's random generator.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from yacs.config import CfgNode

from atsc_plugin import cards, contract, host
from atsc_plugin.cards import stem_of
from atsc_plugin.engine import checkpoint, run_dir
from atsc_plugin.errors import PluginError
from atsc_plugin.networks import named
from atsc_plugin.networks.deployed import DeployedStudent, Head, deployed_of, drop_modules, name_of
from atsc_plugin.networks.maps import MapSource
from atsc_plugin.networks.projector import KINDS, Projection
from atsc_plugin.networks.tail import Tail
from atsc_plugin.untrusted import as_plugin_error, expand_user

# ---- finding ----


def is_deployed(path, which: str = "last") -> bool:
    """Whether a path is a run directory or a deploy pair, whose card says all; else it is a checkpoint."""
    return expand_user(path).is_dir() or Path(f"{stem_of(path, which)}.json").is_file()


def check_there(path) -> Path:
    """The path, refused where nothing that could hold a student is there."""
    place = expand_user(path)
    if not place.exists() and not is_deployed(place):
        raise PluginError(f"There is no {path}; expected a run directory, a deploy_* file or a checkpoint.")
    kept = [*place.glob("deploy_*.json"), *(place / name for name in ("cfg.yaml", "latest"))] if place.is_dir() else []
    if place.is_dir() and not any(file.is_file() for file in kept):
        raise PluginError(_why_none(place, "last"))
    return place


def locate(path, which: str = "last") -> Path:
    """`stem_of` a pair that is there; an error says what the folder or file is instead."""
    if which not in ("last", "best"):
        raise PluginError(f"which is '{which}'; expected last or best.")
    stem, path = stem_of(path, which), expand_user(path)
    if Path(f"{stem}.json").is_file():
        return stem
    if path.is_dir():
        raise PluginError(_why_none(path, which))
    hint = " Checkpoints other than deploy_* files are read by `export`." if path.is_file() else ""
    if path.suffix == ".onnx":
        hint = " An ONNX file is no module: onnxruntime runs it."
    raise PluginError(
        f"There is no {stem}.json; expected a run directory, or one of the two files of a deployed student "
        f"(deploy_last.safetensors with its card deploy_last.json).{hint}"
    )


def _why_none(folder, which):
    """Why a folder has no deploy pair: each cause has its own way out."""
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


# ---- opening ----


@dataclass(frozen=True)
class Opened:
    """A student ready to use: the module in eval mode (image -> logits), its card, and what it was opened from.

    `card` is None for a method of somebody else that predicts otherwise than by its student: no card describes it.
    """

    module: nn.Module
    card: dict | None
    source: str


def load_student(path, which: str = "last", allow: Sequence[str] = ()) -> nn.Module:
    """The student of a run directory or deploy file as a module in eval mode: forward(image) gives logits.

    `which` chooses the "last" or the "best" epoch of a run directory. The module's `card` says how it was made, what it
    scored, and how its images are normalised.
    """
    with named.letting_in([allow] if isinstance(allow, str) else allow):
        module, module.card = load(path, which)
    return module


def load(path, which: str = "last") -> tuple[DeployedStudent, dict]:
    """(module in eval mode, complete card) of a run directory or deploy pair."""
    stem = locate(path, which)
    card = complete(cards.read(f"{stem}.json"), stem)
    networks = [card["student"], *(head["tail"]["network"] for head in card["heads"] if "tail" in head)]
    for name in networks:
        if wrong := named.problems("student", card["dataset"], name):
            raise PluginError(f"{stem}.json cannot be rebuilt here (host {host.NAME}): {wrong[0]}")
    tensors = checkpoint.load_tensors(f"{stem}.safetensors")
    _check_sizes(card, tensors, stem)
    with (
        torch.random.fork_rng(devices=[]),  # building the empty network draws weights that the file replaces
        as_plugin_error(f"{stem}.json is no card of a deployed student ({{}}); expected one written by a run."),
    ):
        module = _empty(card)
    try:
        checkpoint.load_bare(module, tensors)
    except RuntimeError as error:
        raise PluginError(f"{stem}.safetensors does not fit its card: {str(error).splitlines()[-1].strip()}") from error
    _check_forward(module.eval(), card, stem)
    return module, card


def check_names(origin, card, data) -> None:
    """Refuse data whose classes have other names than the card's, in their order; spelling and spaces do not count."""
    theirs, ours = (
        [re.sub(r"[\W_]+", "", name).casefold() for name in names or ()]
        for names in (card["class_names"], data.class_names)
    )
    for label, (one, other) in enumerate(zip(theirs, ours, strict=False)):
        if one != other:
            raise PluginError(
                f"{origin} calls class {label} '{card['class_names'][label]}', {data.name} calls it "
                f"'{data.class_names[label]}'; expected the same classes in the same order. Rename the folders, or the "
                "class_names."
            )


def open_student(path, which: str = "last", cfg=None, data=None, skeleton: Callable | None = None) -> Opened:
    """The student of anything that holds one; a checkpoint needs its configuration, its data and build.skeleton.

    Data of another number of classes than the student's are refused; without `data` a deployed student is not compared.
    """
    path = check_there(path)
    if is_deployed(path, which):
        module, card = load(path, which)
        if data is not None and data.classes != card["classes"]:
            raise PluginError(
                f"{path} tells {card['classes']} classes apart, {data.name} has {data.classes}; expected the data it "
                "was trained on. Name their configuration with --cfg."
            )
        if data is not None:
            check_names(path, card, data)
        return Opened(module, card, f"deployed student ({card.get('method')}, {locate(path, which).name})")
    content = checkpoint.load(path)
    state = content.get("model", content) if isinstance(content, dict) else content
    entries = state.items() if isinstance(state, dict) else ()
    plain = {name.removeprefix("module."): tensor for name, tensor in entries if isinstance(name, str)}
    distiller = skeleton(cfg, data)
    if not any(name.startswith("student.") for name in plain):
        return _bare_network(distiller, path, cfg, data)
    try:
        distiller.load_state_dict(plain)
        module = deployed_of(contract.of(distiller.eval(), cfg))
        if "model_ema" in content:
            module.load_state_dict(content["model_ema"])
    except (RuntimeError, TypeError, AttributeError) as error:  # entries that are no tensors among them
        raise PluginError(
            f"{path} does not fit a {cfg.DISTILLER.TYPE} with student {cfg.DISTILLER.STUDENT} and the teachers of its "
            f"configuration: {str(error).splitlines()[-1].strip()} Name its own configuration with --cfg."
        ) from error
    source = f"checkpoint of {cfg.DISTILLER.TYPE}"
    if not _same_prediction(distiller, module.eval(), data.image_size):
        return Opened(_Prediction(distiller).eval(), None, source)
    drop_modules(module.backbone, module.unused)
    epoch = {"epoch": content["epoch"]} if isinstance(content.get("epoch"), int) else {}
    return Opened(module, _new_card(module, path, cfg, data) | epoch, source)


def _bare_network(distiller, path, cfg, data):
    """The student network alone, refused where its own head was never trained."""
    module = deployed_of(contract.of(distiller, cfg))
    if module.heads():
        raise PluginError(
            f"{path} holds the bare student; under {cfg.DISTILLER.TYPE} it predicts through the teacher's classifier, "
            "and its own head was never trained. Use the run directory, its deploy_* files or `latest` instead."
        )
    checkpoint.load_network(module.backbone, path, cfg.DISTILLER.STUDENT, data.classes)
    return Opened(module.eval(), _new_card(module, path, cfg, data), f"network {cfg.DISTILLER.STUDENT}")


class _Prediction(nn.Module):
    """A distiller in eval mode as image -> logits."""

    def __init__(self, distiller):
        super().__init__()
        self.distiller = distiller

    def forward(self, image):
        return self.distiller(image=image)


@torch.no_grad()
def _same_prediction(distiller, module, side):
    image = torch.linspace(-2, 2, 3 * side * side).view(1, 3, side, side)
    return torch.allclose(distiller(image=image), module(image), equal_nan=True)


# ---- cards ----


def _new_card(module, path, cfg, data):
    """The card of a student that came without one."""
    made = {**host.IDENTITY, "method": cfg.DISTILLER.TYPE, **named.card_facts(cfg.DISTILLER)}
    return complete({**made, **data.facts(), **module.facts()}, path)


def complete(card: dict, stem) -> dict:
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
    result = run_dir.read_json(Path(stem).parent, "result.json")
    which = Path(stem).name.removeprefix("deploy_")
    if "test_top1" not in card and result is not None and f"top1_{which}" in result:
        card["test_top1"] = result[f"top1_{which}"]
    return card


def _check_sizes(card, tensors, stem):
    """Refuse a card whose sizes the tensors do not have, before a network of its sizes is made."""
    shapes, wanted = {name: tuple(tensor.shape) for name, tensor in tensors.items()}, {}
    for number, entry in enumerate(card["heads"]):
        projector, classifier = name_of("projector", number), name_of("classifier", entry["classifier"])
        with torch.device("meta"):  # shapes without memory
            weights = _projector(entry).state_dict()
        wanted |= {f"{projector}.{name}": tuple(weight.shape) for name, weight in weights.items()}
        if "tail" not in entry:
            wanted[f"{classifier}.weight"] = (card["classes"], entry["channels_out"])
    wrong = [
        f"{name} is {shapes.get(name, 'absent')}, expected {shape}"
        for name, shape in wanted.items()
        if shapes.get(name) != shape
    ]
    if not card["heads"] and not any(shape[:1] == (card["classes"],) for shape in shapes.values()):
        wrong = [f"no tensor has {card['classes']} rows, one for each class"]
    if wrong:
        raise PluginError(f"{stem}.safetensors does not fit its card: {wrong[0]}.")


def _empty(card):
    """The module that a card describes, its weights not yet filled."""
    backbone = named.new_network(
        card["dataset"], card["student"], card["classes"], card["image_size"], card.get("student_args", ())
    )
    modules = dict(backbone.named_modules())
    sources = [MapSource(h["map_place"], h["map_relu"], h.get("map_layout", "nchw")) for h in card["heads"]]
    inside = [source.place for source in sources if source.place not in ("feats", "preact")]
    if unknown := [name for name in (*card["unused"], *inside) if not name or name not in modules]:
        raise ValueError(f"a {card['student']} has no module {unknown[0]!r}")
    drop_modules(backbone, card["unused"])
    heads, classifiers = [], {}
    for number, entry in enumerate(card["heads"]):
        owner = entry["classifier"]  # the head whose classifier this one shares; its own number where it has its own
        if owner == number:
            classifiers[number] = _tail(entry, card)
        heads.append(Head(entry["map_size"], _projector(entry), classifiers[owner]))
    if not heads:
        return DeployedStudent(backbone)
    return DeployedStudent(backbone, sources[0], heads, card["ensemble"], unused=card["unused"])


def _projector(entry) -> Projection:
    sizes = entry["channels_in"], entry["channels_inner"], entry["channels_out"]
    return KINDS[entry.get("projector", "bottleneck")](*sizes)


def _tail(entry, card):
    """The classifier of a head: a linear layer, or the layers that a network has there, the rest of it let go."""
    if "tail" not in entry:
        return nn.Linear(entry["channels_out"], card["classes"])
    made = entry["tail"]
    origin = made["network"], card["classes"], made["image_size"], made.get("args", ())
    tail = Tail.of(named.new_network(card["dataset"], *origin), made["steps"])
    tail.origin = {key: value for key, value in made.items() if key != "steps"}
    return tail


@torch.no_grad()
def _check_forward(module, card, stem):
    """One grey image: a student whose map, head or image size does not work is refused here and not in the middle."""
    side = card["image_size"]
    with as_plugin_error(
        f"{stem} cannot take an image of {side} pixels ({{}}); expected a student that fits its card."
    ):
        shape = tuple(module(torch.zeros(1, 3, side, side)).shape)
        if shape != (1, card["classes"]):
            raise ValueError(f"its logits have the shape {shape}")
