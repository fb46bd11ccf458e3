"""Stored students brought back to life: `load` makes the module of a `deploy_*` pair of files.

The card (`.json`) says which network and head to build, the tensors (`.safetensors`) fill it; nothing in either file is
executed, and the teacher is not needed.
"""

from pathlib import Path

from torch import nn

from atsc_plugin import host
from atsc_plugin.distillers.deployed import DeployedStudent, drop_modules
from atsc_plugin.distillers.parts import MapSource, Projector
from atsc_plugin.engine import run_files
from atsc_plugin.engine.checkpoint import load_tensors
from atsc_plugin.errors import PluginError


def load(path):
    """(module in eval mode, card) of `path`.safetensors and `path`.json; the ending may be given or not."""
    path = Path(path)
    path = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    card = run_files.read_json(path.parent, f"{path.name}.json")
    if card is None:
        raise PluginError(f"There is no {path}.json; expected the card of a deployed student beside its tensors.")
    try:
        module = _empty(card)
    except KeyError as error:
        raise PluginError(f"{path}.json lacks or does not know {error}; expected a card written by a run.") from error
    tensors = load_tensors(f"{path}.safetensors")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise PluginError(f"{path}.safetensors does not fit its card: {str(error).splitlines()[-1].strip()}") from error
    return module.eval(), card


def _empty(card):
    backbone = host.models_for(card["dataset"])[card["student"]][0](num_classes=card["classes"])
    drop_modules(backbone, card["unused"])
    head = card["head"]
    if head is None:
        return DeployedStudent(backbone)
    return DeployedStudent(
        backbone,
        MapSource(head["map_place"], head["map_relu"]),
        head["map_size"],
        Projector(head["channels_in"], head["channels_inner"], head["channels_out"]),
        nn.Linear(head["channels_out"], card["classes"]),
    )
