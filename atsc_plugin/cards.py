"""The card of a deployed student: which fields it has and what each may hold; the one place where cards are checked.

A card comes with a file from somebody else, as `deploy_*.json` or inside an ONNX file. It decides which network is
built and how images are prepared, so every size in it is bounded before memory is asked for. Needs no torch.
"""

from atsc_plugin.errors import PluginError
from atsc_plugin.schema import BOOLEAN, FIGURE, NULL, Rule, list_of, number, one_of, problems, text, whole
from atsc_plugin.untrusted import as_plugin_error, parse_json, printable, read_json

LARGEST_SIDE = 2048  # pixels; one map of 64 channels at this size has a GB
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
CARD = {
    "student": NAME,
    "dataset": NAME,
    "method": one_of(NAME, NULL),
    "classes": whole(1, LARGEST_CLASSES),
    "image_size": whole(1, LARGEST_SIDE),
    "mean": one_of(_three(number(-1000, 1000)), NULL),
    "std": one_of(_three(number(1e-6, 1000)), NULL),
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
            found = problems(head, HEAD, tuple(HEAD))
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
