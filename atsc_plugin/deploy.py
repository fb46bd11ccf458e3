"""Stored students brought back to life: `load` makes the module of a `deploy_*` pair of files.

The card (`.json`) says which network and heads to build, the tensors (`.safetensors`) fill it; nothing in either file
is executed, and no teacher is needed.
"""

from pathlib import Path

from torch import nn

from atsc_plugin import host
from atsc_plugin.engine import run_files
from atsc_plugin.engine.checkpoint import load_tensors
from atsc_plugin.errors import PluginError
from atsc_plugin.networks.deployed import DeployedStudent, Head, drop_modules
from atsc_plugin.networks.maps import MapSource, Projector


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
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise PluginError(f"{path}.json is no card ({error}); expected one written by a run.") from error
    tensors = load_tensors(f"{path}.safetensors")
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise PluginError(f"{path}.safetensors does not fit its card: {str(error).splitlines()[-1].strip()}") from error
    return module.eval(), card


def _empty(card):
    backbone = host.models_for(card["dataset"])[card["student"]][0](num_classes=card["classes"])
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
