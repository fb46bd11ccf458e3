"""Command lines that a page or a help text shows, given to the parser that would get them."""

import importlib
import re
import shlex

from atsc_plugin.__main__ import COMMANDS, MODULES

OURS = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:torchrun [^`]*?tools/(?P<ranks>\w+)\.py|python3? tools/(?P<tool>\w+)\.py|"
    r"python3? -m atsc_plugin|(?:\S*/)?atsc-plugin)(?: (?P<rest>.*))?"
)


def module_of(command):
    return importlib.import_module(f"atsc_plugin.{MODULES.get(command, f'commands.{command}')}")


def parsed(command, words):
    """What the command's own parser makes of its arguments; it exits where it does not know one."""
    module = module_of(command)
    return module.parse(words) if hasattr(module, "parse") else module.parser().parse_intermixed_args(words)


def command_of(line):
    """(command, arguments) of a line that starts one of our commands, else None."""
    found = OURS.fullmatch(line.strip())
    if found is None:
        return None
    words = shlex.split(found["rest"] or "", comments=True)
    tool = found["ranks"] or found["tool"]
    if tool is None and words:
        tool, *words = words
    return (tool, words) if tool in COMMANDS else None


def lines_of(block):
    """The command lines of a shell block: continued ones joined, `a && b` taken apart, comments dropped."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    each = [part.strip() for line in lines for part in re.sub(r"\s#.*", "", line).split(" && ")]
    return [line for line in each if line and not line.startswith("#")]
