"""Stored students brought back to life: `load` makes the module of a `deploy_*` pair of files.

The card (`.json`) says which network and heads to build, the tensors (`.safetensors`) fill it; nothing in either file
is executed, and no teacher is needed.
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from yacs.config import CfgNode

from atsc_plugin import cards, host
from atsc_plugin.distillers.deployed import DeployedStudent, Head, drop_modules, name_of
from atsc_plugin.distillers.parts import MapSource, Projector
from atsc_plugin.engine.checkpoint import load_tensors
from atsc_plugin.errors import PluginError
from atsc_plugin.untrusted import as_plugin_error, open_regular


def load(path):
    """(module in eval mode, card) of `path`.safetensors and `path`.json; the ending may be given or not."""
    path = Path(path)
    path = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    try:
        card = cards.read(f"{path}.json")
    except FileNotFoundError:
        what = "the card of a deployed student beside its tensors"
        raise PluginError(f"There is no {path}.json; expected {what}.") from None
    models = host.models_for(card["dataset"])
    if card["student"] not in models:
        raise PluginError(f"{path}.json says student {card['student']}, which this host has not ({host.NAME}).")
    _check_sizes(card, path)
    with as_plugin_error(f"{path}.json is no card of a deployed student ({{}}); expected one written by a run."):
        module = _empty(card, models)
    tensors = load_tensors(f"{path}.safetensors")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise PluginError(f"{path}.safetensors does not fit its card: {str(error).splitlines()[-1].strip()}") from error
    _check_forward(module.eval(), card, path)
    return module, card


def _check_sizes(card, path):
    """Refuse a card whose sizes the tensors do not have, before a network of its sizes is made."""
    with as_plugin_error(
        f"{path}.safetensors is not a readable safetensors file ({{}}); expected one written by a run."
    ):
        open_regular(f"{path}.safetensors").close()
        with safe_open(f"{path}.safetensors", "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    wanted = {}
    for number, entry in enumerate(card["heads"]):
        before, inner, after = entry["channels_in"], entry["channels_inner"], entry["channels_out"]
        projector, classifier = name_of("projector", number), name_of("classifier", entry["classifier"])
        wanted |= {
            f"{projector}.0.weight": (inner, before, 1, 1),
            f"{projector}.3.weight": (inner, inner, 3, 3),
            f"{projector}.6.weight": (after, inner, 1, 1),
            f"{classifier}.weight": (card["classes"], after),
        }
    wrong = [f"{name} is {shapes.get(name, 'absent')}, expected {shape}" for name, shape in wanted.items()
             if shapes.get(name) != shape]  # fmt: skip
    if not card["heads"] and not any(shape[:1] == (card["classes"],) for shape in shapes.values()):
        wrong = [f"no tensor has {card['classes']} rows, one for each class"]
    if wrong:
        raise PluginError(f"{path}.safetensors does not fit its card: {wrong[0]}.")


@torch.no_grad()
def _check_forward(module, card, path):
    """One grey image: a student whose map, head or image size does not work is refused here and not in the middle."""
    side = card.get("image_size") or host.image_size(CfgNode({"TYPE": card["dataset"]}))
    with as_plugin_error(
        f"{path} cannot take an image of {side} pixels ({{}}); expected a student that fits its card."
    ):
        shape = tuple(module(torch.zeros(1, 3, side, side)).shape)
        if shape != (1, card["classes"]):
            raise ValueError(f"its logits have the shape {shape}")


def _empty(card, models):
    backbone = models[card["student"]][0](num_classes=card["classes"])
    modules = dict(backbone.named_modules())
    heads_at = [head["map_place"] for head in card["heads"] if head["map_place"] not in ("feats", "preact")]
    if unknown := [name for name in (*card["unused"], *heads_at) if not name or name not in modules]:
        raise ValueError(f"a {card['student']} has no module {unknown[0]!r}")
    drop_modules(backbone, card["unused"])
    heads, classifiers = [], {}
    for number, entry in enumerate(card["heads"]):
        owner = entry["classifier"]  # the head whose classifier this one shares; its own number where it has its own
        if owner == number:
            classifiers[number] = nn.Linear(entry["channels_out"], card["classes"])
        projector = Projector(entry["channels_in"], entry["channels_inner"], entry["channels_out"])
        heads.append(Head(entry["map_size"], projector, classifiers[owner]))
    if not heads:
        return DeployedStudent(backbone)
    first = card["heads"][0]
    return DeployedStudent(backbone, MapSource(first["map_place"], first["map_relu"]), heads, card["ensemble"])
