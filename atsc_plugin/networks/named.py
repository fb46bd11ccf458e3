"""Networks by name: the host's, "timm/NAME", "torchvision/NAME", and "package.module:Name" of a package let in.

A configuration or card of a stranger imports nothing by itself: a dotted name needs its package in ATSC_ALLOW, which
the commands' `--allow` fills (child processes inherit it). timm is imported when a name asks for it.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

from torch import Tensor, nn

from atsc_plugin import host
from atsc_plugin.errors import ModelRefused, PluginError
from atsc_plugin.keys import unknown_name
from atsc_plugin.networks.adapter import Adapted, View, adapt
from atsc_plugin.untrusted import as_plugin_error

ALLOW = "ATSC_ALLOW"
# What fetches or reads files in timm and torchvision: a card of somebody else must not ask for it.
NOT_FOR_ARGUMENTS = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "weights"),
    *("weights_backbone", "num_classes", "features_only", "scriptable", "exportable"),
}
# torchvision's networks with auxiliary classifiers, which are left out: its weights come without them.
WITH_AUXILIARIES = ("torchvision/googlenet", "torchvision/inception_v3")
EXAMPLE = "timm/NAME, torchvision/NAME or package.module:Name"


class Weights(NamedTuple):
    """What is known of timm's or torchvision's weights of a network."""

    text: str
    classes: int
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    load: Callable[[], nn.Module]
    command: str  # what fetches them into their cache


@contextmanager
def letting_in(packages: Iterable[str]) -> Iterator[None]:
    """Let the code of these packages run, beside those let in already."""
    before = os.environ.get(ALLOW, "")
    os.environ[ALLOW] = ",".join([*before.split(","), *packages])
    try:
        yield
    finally:
        os.environ[ALLOW] = before


_at_hand: dict[str, nn.Module] = {}


@contextmanager
def at_hand(networks: dict[str, nn.Module]) -> Iterator[None]:
    """Let these names stand for copies of these networks with weights drawn anew, for the length of a block."""
    _at_hand.update(networks)
    try:
        yield
    finally:
        _at_hand.clear()


def _drawn_anew(network, name):
    """A copy whose layers have reset their parameters, as each kind of layer does it."""
    network = deepcopy(network).requires_grad_(True)
    for module in network.modules():
        if next(module.parameters(recurse=False), None) is not None:
            reset = getattr(module, "reset_parameters", None)
            if reset is None:
                raise ModelRefused(
                    f"{name} cannot be drawn anew: its {type(module).__name__} has parameters and no "
                    "reset_parameters(). Give it one, or let the method take the weights as they are where it can "
                    '(teacher_init="pretrained").'
                )
            reset()
    return network


def is_foreign(name: str) -> bool:
    """Whether a name is none of the host's."""
    return "/" in name or ":" in name


def problems(key: str, dataset: str, name: str, args: Sequence[str] = ()) -> list[str]:
    """What is wrong with a network's name and arguments; nothing is built."""
    if name in _at_hand:
        return []
    if not is_foreign(name):
        if name not in host.models_for(dataset):
            return [f"{unknown_name(key, name, host.models_for(dataset))} (others are written {EXAMPLE})"]
        return [f"{key}: the host's {name} takes no arguments, got {list(args)}."] if args else []
    try:
        _maker(name)
        _keywords(args)
    except PluginError as error:
        return [f"{key}: {error}"]
    return []


def new_network(
    dataset: str, name: str, classes: int, image_size: int, args: Sequence[str] = (), view: View | None = None
) -> nn.Module:
    """A freshly initialised network with the host's outputs, drawn from torch's global stream."""
    if name in _at_hand:
        return _drawn_anew(_at_hand[name], name)
    if not is_foreign(name):
        return host.new_network(dataset, name, classes)
    size = view.size if view else image_size
    # The weights of these two expect that they undo ImageNet's normalisation, which the view gives.
    undoing = {"transform_input": True} if view and name in WITH_AUXILIARIES else {}
    with as_plugin_error(
        f"{name} cannot be built for {classes} classes and run on {size}-pixel images"
        f"{f' with {list(args)}' if args else ''} ({{}}). Choose another network, arguments or DATASET.IMAGE_SIZE.",
        ModelRefused,
    ):
        made = _maker(name)(classes, size, {**undoing, **_keywords(args)})
        if not isinstance(made, nn.Module) or not any(True for _ in made.parameters()):
            raise TypeError(f"it is a {type(made).__name__}, expected an nn.Module with parameters")
        network = adapt(made, size, view)
    if isinstance(network, Adapted):
        network.origin = {"network": name, "image_size": size, **({"args": list(args)} if args else {})}
    return network


def _keywords(args: Iterable[str]) -> dict[str, Any]:
    """{"drop_rate": 0.1} of ["drop_rate=0.1"]; a value that is no Python literal is text."""
    keywords = {}
    for entry in args:
        name, equals, value = entry.partition("=") if isinstance(entry, str) else ("", "", "")
        if not equals or not name.strip().isidentifier():
            raise PluginError(f"got the argument {entry!r}, expected NAME=VALUE, e.g. [drop_rate=0.1].")
        if name.strip() in NOT_FOR_ARGUMENTS:
            raise PluginError(f"got the argument {entry!r}; weights, classes and files are not set by arguments.")
        try:
            keywords[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            keywords[name.strip()] = value.strip()
    return keywords


def card_facts(node: Any) -> dict[str, Any]:
    """What a card says of the networks' arguments, and the student's name; `node` is DISTILLER."""
    args = {"student_args": list(node.STUDENT_ARGS), "teacher_args": list(node.TEACHER_ARGS)}
    return {"student": node.STUDENT, **{key: value for key, value in args.items() if value}}


# ---- makers: (classes, image size, keywords) -> network ----


def _maker(name: str) -> Callable[[int, int, dict], nn.Module]:
    library, slash, rest = name.partition("/")
    if slash and library == "timm":
        return _timm_maker(rest)
    if slash and library == "torchvision":
        return _torchvision_maker(rest)
    if slash or ":" not in name:
        raise PluginError(f"got '{name}', expected one of the host's networks, {EXAMPLE}.")
    return _dotted_maker(name)


def _timm():
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise PluginError(f"timm networks need timm ({error}): pip install timm, or atsc_plugin[timm].") from error


def _timm_maker(name):
    timm = _timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise PluginError(_none_such(timm, architecture, timm.list_models(), "list_models()"))
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise PluginError(_none_such(timm, name, tagged, f"list_pretrained('{architecture}.*')"))
    pretrained = timm.get_pretrained_cfg(name)

    def make(classes, size, keywords):
        fixed = {"img_size": size} if pretrained is not None and pretrained.fixed_input_size else {}
        return timm.create_model(name, num_classes=classes, **{**fixed, **keywords})

    return make


def _none_such(library, name, known, all_of_them):
    """The message for a name that a library does not have: the nearest that it has, and what lists all of them."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{library.__name__} {library.__version__} has no '{name}'; {hint}{library.__name__}.{all_of_them} has all."


def _torchvision_maker(name):
    import torchvision
    from torchvision import models

    if name not in (known := models.list_models(module=models)):
        raise PluginError(_none_such(torchvision, name, known, "models.list_models()"))

    def make(classes, size, keywords):
        fixed = {"image_size": size} if name.startswith("vit_") else {}
        if f"torchvision/{name}" in WITH_AUXILIARIES:
            fixed = {"aux_logits": False, "init_weights": True}
        return models.get_model(name, num_classes=classes, **{**fixed, **keywords})

    return make


def _dotted_maker(name):
    path, _, attribute = name.partition(":")
    allowed = [entry for entry in os.environ.get(ALLOW, "").split(",") if entry]
    if not any(path == entry or path.startswith(f"{entry}.") for entry in allowed):
        package = path.partition(".")[0]
        raise PluginError(
            f"{name} runs the code of {package}, expected one that is let in. If you trust it, say --allow {package} "
            f'(in Python: allow=["{package}"]).'
        )
    with as_plugin_error(
        f"{name} cannot be imported ({{}}); expected package.module:Name of what is called with num_classes=N. Mend "
        "the name, or put the package on PYTHONPATH."
    ):
        make = getattr(importlib.import_module(path), attribute)
    return lambda classes, size, keywords: make(num_classes=classes, **keywords)


# ---- weights ----


def weights_of(name: str) -> Weights:
    """timm's or torchvision's default weights of a network; PluginError where it has none."""
    library, _, rest = name.partition("/")
    _maker(name)
    if library == "timm":
        timm = _timm()
        known = timm.get_pretrained_cfg(rest)
        if known is None or not known.has_weights:
            raise PluginError(f"timm has no weights for {name}. Use DISTILLER.TEACHER_CKPT, or train it here.")
        full = f"{rest.partition('.')[0]}.{known.tag}" if known.tag else rest
        return Weights(
            f"timm's weights {full}", known.num_classes, known.input_size[-1], known.mean, known.std,
            lambda: timm.create_model(rest, pretrained=True),
            f'python -c "import timm; timm.create_model(\'{rest}\', pretrained=True)"',
        )  # fmt: skip
    if library == "torchvision":
        from torchvision import models

        best = models.get_model_weights(rest).DEFAULT
        seen = best.transforms()
        return Weights(
            f"torchvision's weights {best}", len(best.meta["categories"]), seen.crop_size[0], seen.mean, seen.std,
            lambda: models.get_model(rest, weights=best),
            f'python -c "from torchvision.models import get_model; get_model(\'{rest}\', weights=\'DEFAULT\')"',
        )  # fmt: skip
    raise PluginError(f"{name} has no weights to fetch: DISTILLER.TEACHER_PRETRAINED is for timm/ and torchvision/.")


def pretrained(name: str) -> dict[str, Tensor]:
    """Their state_dict, from the library's cache or, where there is a network, by its download."""
    weights = weights_of(name)
    try:
        return weights.load().state_dict()
    except Exception as error:  # no network, a full disk, a lost file: each library throws its own
        raise PluginError(
            f"{weights.text} of {name} are not in the cache and cannot be fetched ({type(error).__name__}). With "
            f"network access run: {weights.command}"
        ) from error
