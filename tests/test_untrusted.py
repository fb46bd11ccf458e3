"""Bytes from somebody else: bounded when read, told when they are wrong, printable when they are shown."""

import os

import pytest
from hostile import time_limit

from atsc_plugin import untrusted
from atsc_plugin.errors import PluginError
from atsc_plugin.schema import list_of, number, problems, text, whole


def test_a_name_is_shown_without_what_a_terminal_would_obey():
    assert untrusted.printable("cat") == "cat"
    assert untrusted.printable("a\x1b[31m\nb") == "a\\x1b[31m\\nb"
    assert untrusted.printable("a\x1b[31m\nb", keep="\n") == "a\\x1b[31m\nb"
    assert untrusted.printable("x\u202egnp.exe") == "x\\u202egnp.exe"  # would be read from right to left
    assert untrusted.printable(os.fsdecode(b"caf\xe9.png")) == "caf\\udce9.png"
    assert untrusted.printable("\u732b na\u00efve \u200d") == "\u732b na\u00efve \u200d"


def test_a_value_in_a_message_is_no_longer_than_a_line():
    assert untrusted.short_repr([1, 2]) == "[1, 2]"
    assert len(untrusted.short_repr("x" * 10**6)) == 80
    assert untrusted.short_repr(10**5000) == "a int"  # Python refuses to write more than 4,300 digits


@pytest.mark.parametrize("levels", [51, 990, 200_000])
@pytest.mark.parametrize("pair", ["[]", '{"a":}'])
def test_deep_json_is_refused(pair, levels):
    with pytest.raises(ValueError, match="nested deeper than 50"):
        untrusted.parse_json(pair[:-1] * levels + "1" + pair[-1] * levels)


def test_whole_numbers_that_no_format_takes_become_decimals():
    assert untrusted.parse_json("[12, -3, 1" + "0" * 400 + "]") == [12, -3, float("inf")]


def test_a_shared_yaml_entry_is_read_and_counted_each_time():
    assert untrusted.parse_yaml("a: &x {k: 1}\nb: *x\nc: {<<: *x, l: 2}") == {
        "a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "l": 2}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: &a [*a]", "the alias a stands inside of what it names"),
        ("a: &a {b: {<<: *a}}", "the alias a stands inside of what it names"),
        ("a0: &a0 x\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)), "more than 10,000"),
        ("[" * 51 + "]" * 51, "nested deeper than 50"),
        ("a: &a " + "[" * 30 + "]" * 30 + "\nb: " + "[" * 30 + "*a" + "]" * 30, "nested deeper than 50"),
        ("[" * 90_000, "nested deeper than 50"),
        ("- x\n" * 10_001, "more than 10,000 entries"),
        ("a: " + "1:" * 2001 + "1", "characters without quotes"),  # a number in base 60
        ("a: " + "9" * 4500, "characters without quotes"),
        ("a: " + "9" * 3999 + "\nb: 2001-99-99", "month must be in 1..12"),
        ("a: !!int ''", "is not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("a: \0", "is not valid YAML"),
        ("a: 1\nb: 2\na: 3", "a stands twice in one mapping"),
        ("x" * 200_001, "is larger than 200,000 bytes"),
    ],
)  # fmt: skip
def test_yaml_that_is_endless_or_wrong_is_told_at_once(tmp_path, content, message):
    (tmp_path / "c.yaml").write_text(content)
    with time_limit(), pytest.raises(PluginError, match=message):
        untrusted.read_yaml(tmp_path / "c.yaml", "Config file")


def test_a_pipe_and_a_device_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with time_limit(), pytest.raises(PluginError, match="is a pipe or a device; expected a regular file"):
            untrusted.read_bytes(path, 10)
    with pytest.raises(PluginError, match="is a folder; expected a regular file"):
        untrusted.read_bytes(tmp_path, 10)


def test_any_exception_of_a_parser_becomes_a_message():
    for error in (ValueError("one\ntwo"), RecursionError(), MemoryError(), KeyError("\x1b")):
        with (
            pytest.raises(PluginError, match=r"x\.bin is broken \(.+\)"),
            untrusted.as_plugin_error("x.bin is broken ({})"),
        ):
            raise error


def test_a_mapping_is_compared_with_its_rules_field_by_field():
    rules = {"a": whole(1, 9), "b": number(), "c": list_of(text(3), 2)}
    assert problems({"a": 1, "b": 1, "c": ["abc"], "other": object}, rules) == []
    assert problems({"a": True, "b": float("nan"), "c": ["abcd"]}, rules, ("a", "d")) == [
        "it has no d",
        "a is True, expected a whole number from 1 to 9",
        "b is nan, expected a number",
        "c is ['abcd'], expected a list of at most 2 entries, each text of at most 3 characters",
    ]
    assert problems([], rules) == ["it is a list, expected a mapping"]
