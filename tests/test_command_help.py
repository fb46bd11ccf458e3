"""Every command's --help begins with examples, which can be copied and name options that the command has."""

import re
import shlex

import pytest
from command_lines import module_of, parsed

from atsc_plugin.__main__ import COMMANDS, usage
from atsc_plugin.errors import started_as


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_examples_that_the_parser_takes_and_fits_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = module_of(command).parser().format_help()
    assert text.startswith("examples:\n")
    examples = text.split("\n\n")[0].replace(" \\\n", " ").splitlines()[1:]
    start = started_as()
    ours = [line.strip().removeprefix(start).split()[0] for line in examples if line.strip().startswith(start)]
    assert command in ours and set(ours) <= set(COMMANDS)
    for line in examples:
        if line.strip().startswith(f"{start} "):
            name, *words = shlex.split(line.strip().removeprefix(start))
            assert parsed(name, words)
    too_long = [line for line in text.splitlines() if len(line) > 80 and not re.fullmatch(r" +\S+", line)]
    assert too_long == []


def test_the_list_of_commands_fits_80_columns():
    assert max(map(len, usage().splitlines())) <= 80
