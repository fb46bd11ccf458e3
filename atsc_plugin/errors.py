"""Errors that a person can mend, how a message fits a terminal, and how a command line of this program begins.

Every message says what it got, what was expected and what to do. The commands print it and leave with exit status 2,
without a traceback; whoever uses the package as a library catches `PluginError`.
"""

import argparse
import re
import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TextIO


class PluginError(Exception):
    """A mistake in the input or the surroundings, not in the program."""


class RunStopped(Exception):
    """A run ended early for a reason it found itself; its files are whole and say so. Exit status 3."""


class Interrupted(SystemExit):
    """A run left well because of a signal, which its exit status names; any script that calls it ends with that."""


class HostError(PluginError):
    """The knowledge-distillation host is absent, broken or lacks what was asked of it."""


class ConfigError(PluginError):
    """One or more mistakes in a configuration; all of them are in `problems`."""

    def __init__(self, problems):
        self.problems = list(problems)
        count = len(self.problems)
        head = "The configuration has a mistake:" if count == 1 else f"The configuration has {count} mistakes:"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


class ModelRefused(PluginError, ValueError):
    """A method cannot serve this network; the message names it and says why."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch's on a device, torch's on the CPU, or Python's."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def started_as() -> str:
    """What a command line of this program begins with here."""
    return "atsc-plugin" if Path(sys.argv[0]).stem == "atsc-plugin" else "python -m atsc_plugin"


def same_arguments(command: str) -> str:
    """A command line of `command` with the --cfg, --allow and KEY VALUE that this program was started with."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--cfg", default="FILE")
    options.add_argument("--allow", action="append", default=[])
    given, rest = options.parse_known_args(sys.argv[1:])
    keys = [number for number, word in enumerate(rest) if re.fullmatch(r"[A-Z]+(\.[A-Z0-9_]+)+", word)]
    pairs = [word for number in keys for word in rest[number : number + 2]]
    allow = [word for package in given.allow for word in ("--allow", package)]
    return f"{started_as()} {command} {shlex.join(['--cfg', given.cfg, *pairs, *allow])}"


def wrapped(text: str, stream: TextIO | None = None, indent: int = 0) -> str:
    """A message as a terminal shows it best: broken between words, the later lines indented.

    Elsewhere every line stays whole, for grep and logs.
    """
    if not (stream or sys.stdout).isatty():
        return text
    wrapper, lines = textwrap.TextWrapper(shutil.get_terminal_size().columns), []
    wrapper.break_long_words = wrapper.break_on_hyphens = False  # paths and names can be copied
    for line in text.splitlines():
        wrapper.initial_indent = " " * indent if lines else ""
        wrapper.subsequent_indent = " " * (indent or len(line) - len(line.lstrip(" -")))
        lines += wrapper.wrap(line) or [""]
    return "\n".join(lines)
