"""The card of a deployed student: where it lies, which fields it has and what each may hold.

A card comes with a file from somebody else, as `deploy_*.json` or inside an ONNX file. It decides which network is
built and how images are prepared, so every size in it is bounded before memory is asked for. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from atsc_plugin.errors import PluginError
from atsc_plugin.keys import LARGEST_SIDE
from atsc_plugin.schema import BOOLEAN, FIGURE, NULL, Rule, list_of, number, one_of, problems, text, whole
from atsc_plugin.untrusted import as_plugin_error, expand_user, parse_json, printable, read_json

ENDINGS = (".safetensors", ".json")
LARGEST_CLASSES = 100_000
LARGEST_WIDTH = 65_536  # channels
ENSEMBLES = ("logits", "probs")
NAME = text(200)
EXPECTED = "JSON written by a run, the card of a deployed student"


def _three(rule):
    return Rule(
        lambda v: isinstance(v, list) and len(v) in (0, 3) and all(map(rule.test, v)),
        f"three numbers, each {rule.expected.removeprefix('a number ')}, or []",
    )


HEAD = {
    "map_place": NAME,
    "map_relu": BOOLEAN,
    "map_size": whole(1, LARGEST_SIDE),
    "channels_in": whole(1, LARGEST_WIDTH),
    "channels_inner": whole(1, LARGEST_WIDTH),
    "channels_out": whole(1, LARGEST_WIDTH),
    "classifier": whole(0, 63),
}
STEP = Rule(
    lambda v: isinstance(v, list) and len(v) == 2 and NAME.test(v[0]) and v[1] in (2, 4), "a module's path and 2 or 4"
)
# What a head has beside these where it is not SimKD's: a map in another layout, another projector, more than one layer
# behind it (the tail of a network, which is built to take these layers from it).
HEAD_EXTRAS = {
    "map_layout": Rule(
        lambda v: isinstance(v, str) and bool(re.fullmatch(r"nchw|nhwc|vector|tokens\+\d{1,3}", v)),
        "nchw, nhwc, vector or tokens+N",
    ),
    "projector": Rule(lambda v: v in ("bottleneck", "signed", "mlp"), "bottleneck, signed or mlp"),
    "tail": Rule(
        lambda v: isinstance(v, dict) and not problems(v, TAIL, ("network", "image_size", "steps")),
        "the network, image_size and steps of a tail",
    ),
}
TAIL = {
    "network": NAME,
    "image_size": whole(1, LARGEST_SIDE),
    "args": list_of(NAME, 64),
    "steps": Rule(lambda v: isinstance(v, list) and 0 < len(v) <= 64 and all(map(STEP.test, v)), "1 to 64 steps"),
}
CARD = {
    "student": NAME,
    "student_args": list_of(NAME, 64),
    "dataset": NAME,
    "method": one_of(NAME, NULL),
    "classes": whole(1, LARGEST_CLASSES),
    "image_size": whole(1, LARGEST_SIDE),
    "mean": one_of(_three(number(-1000, 1000)), NULL),
    "std": one_of(_three(number(1e-6, 1000)), NULL),
    "eval_crop": number(0, 1),
    "class_names": one_of(list_of(text(1000), LARGEST_CLASSES), NULL),
    "unused": list_of(NAME, 1000),
    "ensemble": Rule(lambda v: v in ENSEMBLES, " or ".join(ENSEMBLES)),
    "heads": Rule(lambda v: isinstance(v, list) and len(v) <= 64, "a list of at most 64 heads"),
    "epoch": one_of(whole(0, 10**9), NULL),
    "test_top1": FIGURE,
}
TO_BUILD = ("student", "dataset", "classes", "unused", "heads")  # the network from its tensors
TO_PREPARE = ("dataset", "classes", "image_size", "mean", "std")  # images for a network that is there


def checked(card: object, place: object, needed: tuple) -> dict:
    """The card itself, its class names printable; PluginError with what is wrong in it."""
    wrong = problems(card, CARD, needed)
    if not wrong:
        heads = card.get("heads", [])
        for place_of, head in enumerate(heads):
            found = problems(head, HEAD | HEAD_EXTRAS, tuple(HEAD))
            if not found and not (head["classifier"] <= place_of and _owns(heads, head["classifier"])):
                found = [f"classifier is {head['classifier']}, expected {place_of} or an earlier head with its own"]
            wrong += [f"head {place_of}: {problem}" for problem in found]
        if heads and not wrong and "ensemble" not in card:
            wrong = ["it has no ensemble"]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise PluginError(
            f"{place} is no card of a deployed student ({'; '.join(wrong[:3])}{more}); expected one written by a run."
        )
    if card.get("class_names"):
        card = {**card, "class_names": [printable(name) for name in card["class_names"]]}
    return card


def _owns(heads, owner):
    return isinstance(heads[owner], dict) and heads[owner].get("classifier") == owner


def read(path: object, needed: tuple = TO_BUILD) -> dict:
    """The checked card of a .json file; FileNotFoundError where there is none."""
    return checked(read_json(path, EXPECTED), path, needed)


def parse(content: str, place: object, needed: tuple = TO_PREPARE) -> dict:
    """The checked card of a text, as an ONNX file carries it."""
    with as_plugin_error(f"{place} has a card that cannot be read ({{}}); expected {EXPECTED}."):
        card = parse_json(content)
    return checked(card, place, needed)


# ---- where cards lie ----


def stem_of(path, which: str = "last") -> Path:
    """The deploy pair that a run directory or one of the pair's files stands for, without ending; there or not."""
    path = expand_user(path)
    if path.is_dir():
        return path / f"deploy_{which}"
    return path.with_suffix("") if path.suffix in ENDINGS else path


def deployed_stem(path) -> Path | None:
    """`stem_of` a pair whose card is one of ours; None for anything else, such as a checkpoint file."""
    if not str(path):
        return None
    stem = stem_of(path)
    try:
        content = read_json(f"{stem}.json", EXPECTED)
    except (OSError, PluginError):
        return None
    return stem if isinstance(content, dict) and "heads" in content and "student" in content else None


def network_of(path) -> str | None:
    """The network that a deployed student is, None for a file that is none."""
    stem = deployed_stem(path)
    return read(f"{stem}.json")["student"] if stem else None


def untrained_head(path) -> bool:
    """Whether a file is the bare student of a run whose deployed student predicts through another head."""
    path = Path(path)
    stem = deployed_stem(path.parent) if path.name in ("student_latest", "student_best") else None
    return bool(stem and read(f"{stem}.json")["heads"])


def name_deployed(cfg, overridden: Sequence = ()) -> list[str]:
    """Set DISTILLER.TEACHER to the network that a deployed TEACHER_CKPT is; what contradicts it, as a list of problems.

    `overridden` are the keys of the command line: there, unlike in a file, naming another network is a mistake.
    """
    node = cfg.DISTILLER
    pairs = [("DISTILLER.TEACHER", node.TEACHER, node.TEACHER_CKPT)] if "DISTILLER.TEACHER" in overridden else []
    lists = zip(node.get("TEACHERS", []), node.get("TEACHER_CKPTS", []), strict=False)
    pairs += [("DISTILLER.TEACHERS", name, file) for name, file in lists if isinstance(file, str)]
    problems = [
        f"{key} says {name}, but {file} is a deployed {network}. Write {network} there, or name another file."
        for key, name, file in pairs
        if (network := network_of(file)) not in (None, name)
    ]
    if (network := network_of(node.TEACHER_CKPT)) and node.get("TEACHER_ARGS"):
        problems.append(
            f"DISTILLER.TEACHER_ARGS is {list(node.TEACHER_ARGS)}, but {node.TEACHER_CKPT} is a deployed {network}, "
            "which its card builds. Leave it out."
        )
    node.TEACHER = network or node.TEACHER
    return problems
