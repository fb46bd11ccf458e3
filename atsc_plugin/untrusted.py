"""Bytes from somebody else: read within bounds, parsed without executing anything, and made fit to be shown.

Every file of JSON or YAML that a command reads goes through here, and every file that another library parses is opened
here. What a parser throws, whatever its kind, becomes a PluginError that names the file; a pipe or a device is refused
before it can block; sizes, nesting and YAML aliases are bounded before memory is asked for. Needs no torch.
"""

import json
import os
import stat
import unicodedata
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from atsc_plugin.errors import PluginError

JSON_BYTES = 4 << 20  # a card with 100,000 class names has about 2 MB
ENTRIES = 300_000  # of a JSON file; each costs 2 us
YAML_BYTES = 200_000  # the parser is written in Python: about a second
DEPTH = 50
NODES = 10_000  # of a YAML file, those behind aliases counted each time
PLAIN_TEXT = 4_000  # characters of a YAML scalar without quotes: numbers are among them, in base 60, too
DIGITS = 20  # longer whole numbers become decimals: no format and no division of ours takes 10 ** 400
LONGEST_LINE = 2_000  # characters of a message
HIDDEN = {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}  # control, direction, bytes that are not UTF-8, unassigned, lines
JOINERS = "\u200c\u200d"  # of the same category, and needed to write Persian, Hindi and many emoji


# ---- what a person is shown ----


def printable(text: object, keep: str = "") -> str:
    """The text with control characters, direction marks and undecodable bytes as escapes; `keep` are let through."""
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c in keep or c in JOINERS or unicodedata.category(c) not in HIDDEN else ascii(c)[1:-1] for c in text
    )


def message_of(error: BaseException) -> str:
    """What a command prints of an error: printable, each line cut where a foreign value made it endless."""
    lines = printable(error, keep="\n\t").split("\n")
    return "\n".join(line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..." for line in lines)


def short_repr(value: object) -> str:
    """A value of any kind for a message: its repr, printable and not longer than a line."""
    try:
        text = printable(repr(value))
    except (ValueError, RecursionError):  # a whole number of more than 4,300 digits has no repr
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_line(error: BaseException) -> str:
    """What an exception says, in one short line; its kind where it says nothing."""
    text = " ".join(str(error).split())
    return printable(text[:160]) or type(error).__name__


@contextmanager
def as_plugin_error(message: str, kind: type[PluginError] = PluginError):
    """Whatever the block throws becomes a PluginError of this kind: `message` with {} for the reason.

    For calls into parsers of foreign bytes, and into networks of others, only: these throw exceptions of every kind,
    MemoryError and RecursionError among them, and no list of kinds is ever complete.
    """
    try:
        yield
    except PluginError:
        raise
    except Exception as error:
        raise kind(message.replace("{}", first_line(error))) from error


# ---- files ----


def expand_user(path: object) -> Path:
    """The path with ~ resolved; one of an unknown user stays as it is, and is then not there."""
    return Path(os.path.expanduser(str(path)))


def open_regular(path: object) -> BinaryIO:
    """A regular file, open for reading; PluginError for a pipe, device or folder, OSError where there is none."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe that nobody writes to does not block
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        kind = "a folder" if os.path.isdir(path) else "a pipe or a device"
        raise PluginError(f"{path} is {kind}; expected a regular file.")
    return os.fdopen(handle, "rb")


def read_bytes(path: object, limit: int) -> bytes:
    """What a regular file holds, refused where that is more than `limit` bytes."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise PluginError(f"{path} is larger than {limit:,} bytes, the most that such a file has. Name another one.")
    return content


def memory_limit() -> int:
    """Bytes of memory that one thing may take: half of what the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


# ---- JSON ----


def parse_json(text: str | bytes) -> Any:
    """JSON within ENTRIES and DEPTH, its strings printable; ValueError for anything else."""
    try:
        return _clean(json.loads(text, parse_int=_whole), [ENTRIES])
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEPTH}") from None


def _whole(digits):
    return int(digits) if len(digits) <= DIGITS else float(digits)


def _clean(value, left, depth=0):
    """A copy with printable strings; `left` holds how many more entries there may be."""
    if isinstance(value, str):
        return printable(value, keep="\n\t")
    if not isinstance(value, (dict, list)):
        return value
    left[0] -= len(value)
    if depth >= DEPTH or left[0] < 0:
        raise ValueError(
            f"it is nested deeper than {DEPTH}" if depth >= DEPTH else f"it has more than {ENTRIES:,} entries"
        )
    if isinstance(value, dict):
        return {_clean(key, left): _clean(entry, left, depth + 1) for key, entry in value.items()}
    return [_clean(entry, left, depth + 1) for entry in value]


def read_json(path: object, expected: str) -> Any:
    """The JSON of a file; FileNotFoundError where there is none. `expected` says in words what it should hold."""
    try:
        content = read_bytes(path, JSON_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PluginError(f"{path} cannot be read ({error.strerror}); expected {expected}.") from error
    with as_plugin_error(f"{path} cannot be read ({{}}); expected {expected}."):
        return parse_json(content)


# ---- YAML ----


class _BoundedLoader(yaml.SafeLoader):
    """SafeLoader that counts as it composes: how deep it is, and how many nodes there are with aliases written out."""

    def __init__(self, stream):
        super().__init__(stream)
        self.nodes, self.depth, self.sizes = 0, 0, {}  # sizes: {anchor: (nodes, height)}, once it is complete
        self.heights = [0]

    def construct_mapping(self, node, deep=False):
        """A key that stands twice is refused: yaml would take the second, and the first would be lost unseen."""
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, count in counts.items():
            if count > 1:
                raise ValueError(f"{name:.40} stands twice in one mapping")
        return super().construct_mapping(node, deep)

    def compose_node(self, parent, index):
        event = self.peek_event()
        alias = isinstance(event, yaml.AliasEvent)
        if alias and event.anchor in self.anchors and event.anchor not in self.sizes:
            raise ValueError(f"the alias {event.anchor} stands inside of what it names")
        before = self.nodes
        size, height = self.sizes.get(event.anchor, (1, 1)) if alias else (1, 1)
        self.nodes += size
        self._check(event, height)
        if alias:
            node = super().compose_node(parent, index)
        else:
            self.depth += 1
            self.heights.append(0)
            node = super().compose_node(parent, index)
            self.depth -= 1
            height = self.heights.pop() + 1
            if event.anchor is not None:
                self.sizes[event.anchor] = (self.nodes - before, height)
        self.heights[-1] = max(self.heights[-1], height)
        return node

    def _check(self, event, height):
        if self.depth + height > DEPTH:
            raise ValueError(f"it is nested deeper than {DEPTH}")
        if self.nodes > NODES:
            raise ValueError(f"it has more than {NODES:,} entries, aliases written out")
        if isinstance(event, yaml.ScalarEvent) and event.style is None and len(event.value) > PLAIN_TEXT:
            raise ValueError(f"it has {len(event.value):,} characters without quotes in one place")


def parse_yaml(text: str) -> Any:
    """YAML of plain values, bounded in depth and size, its strings printable; an exception of any kind else."""
    return _clean(yaml.load(text, Loader=_BoundedLoader), [ENTRIES])  # noqa: S506 - a SafeLoader


def read_yaml(path: object, kind: str, advice: str = "") -> Any:
    """What a YAML file holds; `kind` and `path` are what an error calls it."""
    try:
        content = read_bytes(path, YAML_BYTES)
    except OSError as error:
        raise PluginError(f"{kind} {path} cannot be read: {error.strerror}.{advice}") from error
    with as_plugin_error(f"{kind} {path} is not valid YAML: {{}}."):
        return parse_yaml(content.decode("utf-8"))
