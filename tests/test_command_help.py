"""Every command's --help begins with examples, which name the command itself and options that it has."""

import importlib
import re

import pytest

COMMANDS = ("bench", "doctor", "evaluate", "export", "predict", "prepare", "quickstart", "train")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_begins_with_examples_that_the_parser_takes(command, capsys):
    module = importlib.import_module(f"atsc_plugin.commands.{command}")
    text = module.parser().format_help()
    after_usage = text.split("\n\n", 1)[1]
    assert after_usage.startswith("examples:\n")
    examples = [line.strip() for line in after_usage.split("\n\n")[0].splitlines()[1:]]
    ours = [line for line in examples if line.split()[0] == module.parser().prog]
    assert ours
    for line in ours:
        words = re.split(r"\s{3,}", line)[0].split()[1:]  # a remark stands behind several spaces
        args = module.parse(words) if hasattr(module, "parse") else module.parser().parse_intermixed_args(words)
        assert args
