"""Rules for what a file of somebody else may hold, and what is said where it holds something else.

A rule is a test with the words for what it expects. `problems` compares a dictionary with a table of rules, so that a
file is described in one place and every mistake in it is told at once. Needs no torch.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from atsc_plugin.untrusted import short_repr

LONGEST_TEXT = 10_000


@dataclass(frozen=True)
class Rule:
    """One field: test(value) is true for what is allowed, `expected` says in words what that is."""

    test: Callable
    expected: str


def whole(low: int, high: int) -> Rule:
    """A whole number within bounds; True and False are none."""
    return Rule(lambda v: type(v) is int and low <= v <= high, f"a whole number from {low:,} to {high:,}")


def number(low: float = -1e15, high: float = 1e15) -> Rule:
    """A finite number within bounds; its default bounds are what every format and sum of ours can take."""
    expected = "a number" if (low, high) == (-1e15, 1e15) else f"a number from {low:g} to {high:g}"
    return Rule(lambda v: type(v) in (int, float) and low <= v <= high, expected)  # nan is not within any bounds


def text(longest: int = LONGEST_TEXT) -> Rule:
    return Rule(lambda v: isinstance(v, str) and len(v) <= longest, f"text of at most {longest:,} characters")


def list_of(rule: Rule, longest: int) -> Rule:
    """A list of what a rule allows."""
    return Rule(
        lambda v: isinstance(v, list) and len(v) <= longest and all(map(rule.test, v)),
        f"a list of at most {longest:,} entries, each {rule.expected}",
    )


def one_of(*rules: Rule) -> Rule:
    return Rule(lambda v: any(rule.test(v) for rule in rules), " or ".join(rule.expected for rule in rules))


NULL = Rule(lambda v: v is None, "null")
BOOLEAN = Rule(lambda v: isinstance(v, bool), "true or false")
MAPPING = Rule(lambda v: isinstance(v, dict), "a mapping")
# A figure that a run may not have, or whose training diverged.
FIGURE = Rule(lambda v: v is None or number().test(v) or (type(v) is float and math.isnan(v)), "a number or null")


def problems(content: object, rules: Mapping[str, Rule], needed: tuple = ()) -> list[str]:
    """What is wrong with a mapping, field by field: missing ones of `needed`, and values that a rule does not allow."""
    if not isinstance(content, dict):
        return [f"it is a {type(content).__name__}, expected a mapping"]
    wrong = [f"it has no {name}" for name in needed if name not in content]
    return wrong + [
        f"{name} is {short_repr(content[name])}, expected {rule.expected}"
        for name, rule in rules.items()
        if name in content and not rule.test(content[name])
    ]
