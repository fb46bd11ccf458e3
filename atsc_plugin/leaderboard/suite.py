"""A suite file: which arms, on which pairs of networks, with which seeds. YAML:

    name: my_suite              # becomes EXPERIMENT.PROJECT, so that all runs lie in one folder
    seeds: [1, 2, 3]
    teacher_seeds: [1]          # optional; several: every teacher crossed with every seed
    trials: 0                   # optional; tuning trials that each method was given, printed with the table
    notes: ["..."]              # optional; printed below the table
    images: "my photographs"    # optional; what the tables call images that are the user's own (npz, folder)
    against: [simkd]            # optional; the arms that the others are compared with
    primary: [atsc, simkd]      # optional; the one comparison that was fixed beforehand: its p value stands uncorrected
    common: {SOLVER.EPOCHS: 6}  # optional; keys for every arm
    pairs:                      # optional; names with keys, or a list of names for which {pair} in an arm's cfg stands
      res32x4_res8x4: {DISTILLER.TEACHER: resnet32x4, DISTILLER.STUDENT: resnet8x4}
    arms:
      simkd: {cfg: configs/cifar100/simkd.yaml, display: SimKD}  # display: the name in tables, else the arm's
      vanilla: {cfg: configs/cifar100/vanilla.yaml, pairs: [res32x4_res8x4]}  # optional: on these alone
      atsc_drift_1: {cfg: configs/cifar100/atsc.yaml, set: {ATSC.DRIFT.WEIGHT: 1.0}}
      simkd_equal_cost: {cfg: configs/cifar100/simkd.yaml, stretch: 2}        # epochs, stages and warm-up times 2
      after: {cfg: configs/cifar100/simkd.yaml, adapted_by: atsc_drift_1}     # from the teacher that run left
      released: {cfg: configs/cifar100/atsc_published.yaml, seeds: [1]}       # with these of the seeds alone

An arm may have `trials` of its own; unequal ones need `unequal_trials: why`, which is printed.
"""

import difflib
import re
from dataclasses import dataclass, field, fields
from pathlib import Path

from atsc_plugin.engine.run_dir import read_yaml
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.shipped import config_file
from atsc_plugin.untrusted import short_repr


def is_plain(value) -> bool:
    """Whether a configuration can hold it: text, a number, a flat list of such."""
    entries = value if isinstance(value, list) else [value]
    return all(type(entry) in (str, int, float, bool, type(None)) for entry in entries)


def _is_name(value):
    return isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", value))


def _is_text(value):
    return isinstance(value, str) and 0 < len(value) <= 1000


def _is_count(value):
    return type(value) is int and 0 <= value < 2**32


def _list_of(fits):
    return lambda values: isinstance(values, list) and all(map(fits, values))


def _is_pair_of_arms(values):
    return _list_of(_is_name)(values) and len(values) == 2


def _are_seeds(values):
    return _list_of(_is_count)(values) and 0 < len(set(values)) == len(values)


def _are_keys(keys):
    if not isinstance(keys, dict) or not all(map(is_plain, keys.values())):
        return False
    return all(isinstance(key, str) and re.fullmatch(r"\w+(\.\w+)+", key, re.ASCII) for key in keys)


def _are_pairs(pairs):
    if isinstance(pairs, dict):
        return bool(pairs) and all(_is_name(pair) and _are_keys(keys or {}) for pair, keys in pairs.items())
    return _list_of(_is_name)(pairs) and len(pairs) > 0


def _key(fits, expected, default=None):
    """A key of the file: whether a value fits, what is expected, and its default."""
    return field(default_factory=lambda: default, metadata={"fits": fits, "expected": expected})


_KEYS = "KEYS with plain values, such as SOLVER.EPOCHS: 6"


@dataclass(frozen=True)
class Arm:
    """One way to train a student; `cfg` may hold {pair}. The run of `adapted_by` of its seed leaves it its teacher."""

    name: str
    cfg: str = _key(_is_text, "a configuration file", "")
    display: str = _key(lambda name: _is_text(name) and len(name) <= 60, "a name of up to 60 letters")
    set: dict = _key(_are_keys, _KEYS, {})
    stretch: float = _key(lambda by: type(by) in (int, float) and 0 < by <= 1000, "a number above 0, at most 1000", 1)
    pairs: list = _key(_list_of(_is_name), "a list of the suite's pairs")
    trials: int = _key(_is_count, "a whole number")
    seeds: list = _key(_are_seeds, "a list of the suite's seeds")
    adapted_by: str | None = _key(_is_name, "an arm")

    def config(self, pair: str | None) -> Path:
        return config_file(self.cfg.replace("{pair}", pair or ""))


@dataclass(frozen=True)
class Suite:
    """A checked suite. Without pairs `pairs` is {None: {}}: one pair, the one in the arms' files."""

    path: str
    name: str = _key(_is_name, "letters, digits and ._+-")
    seeds: list = _key(_are_seeds, "a list of different whole numbers, e.g. [1, 2, 3]")
    teacher_seeds: list = _key(_are_seeds, "a list of different whole numbers, e.g. [1, 2]", [None])
    trials: int = _key(_is_count, "a whole number", 0)
    unequal_trials: str | None = _key(_is_text, "a sentence")
    notes: list = _key(_list_of(_is_text), "a list of sentences", [])
    images: str | None = _key(_is_text, "a few words")
    against: list = _key(_list_of(_is_name), "a list of arms", [])
    primary: list = _key(_is_pair_of_arms, "two arms", [])
    common: dict = _key(_are_keys, _KEYS, {})
    pairs: dict = _key(_are_pairs, "names such as res32x4_res8x4, or a mapping of them to KEYS", {None: {}})
    arms: dict = _key(lambda arms: isinstance(arms, dict) and bool(arms), "a mapping", {})


def read_suite(path: str | Path) -> Suite:
    """The suite of a file; all mistakes in it are told at once."""
    advice = " Name one, such as configs/leaderboard/quick.yaml."
    content, problems = read_yaml(config_file(path), "Suite file", advice), []
    if not isinstance(content, dict) or any(content.get(key) is None for key in ("name", "seeds", "arms")):
        raise PluginError(f"{path} is no suite; expected keys name, seeds and arms (a mapping), optionally common.")
    node = _checked(content, Suite, "", problems)
    pairs = node["pairs"] if isinstance(node["pairs"], dict) else dict.fromkeys(node["pairs"])
    node["pairs"] = {pair: keys or {} for pair, keys in pairs.items()}
    arms = [_arm(name, body, node, problems) for name, body in node["arms"].items()]
    node["arms"] = arms = {arm.name: arm for arm in arms if arm}
    for arm in arms.values():
        problems += _source_problems(arm, arms)
    for key in ("against", "primary"):
        if unknown := [name for name in node[key] if name not in arms]:
            problems.append(f"{key}: got {short_repr(unknown)}, expected arms, of {', '.join(arms)}")
    trials = {arm.name: arm.trials for arm in arms.values()}
    if len(set(trials.values())) > 1:
        node["notes"] = [*node["notes"], f"Why tuning trials differ: {node['unequal_trials']}"]
        if not node["unequal_trials"]:
            problems.append(f"tuning trials differ between arms ({short_repr(trials)}); say why: unequal_trials")
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return Suite(str(path), **node)


def _checked(content, kind, place, problems):
    """{key: value or default} of a mapping, by the fields of `kind`; what does not fit is added to `problems`."""
    table = {key.name: key for key in fields(kind) if key.metadata}
    problems += [f"{place}unknown key {short_repr(key)}; {_near(key, table)}" for key in content if key not in table]
    values = {}
    for name, key in table.items():
        value = content.get(name)
        if value is not None and not key.metadata["fits"](value):
            problems.append(f"{place}{name}: got {short_repr(value)}, expected {key.metadata['expected']}")
            value = None
        values[name] = key.default_factory() if value is None else value
    return values


def _arm(name, body, suite, problems):
    """An Arm, or None where it has a mistake."""
    if not _is_name(name) and not _is_count(name):
        problems.append(f"arm {short_repr(name)}: expected letters, digits and ._+-")
        return None
    if not isinstance(body, dict) or body.get("cfg") is None:
        problems.append(f"arm {name} is {short_repr(body)}; expected at least cfg: an existing file")
        return None
    before, node, known = len(problems), _checked(body, Arm, f"arm {name}, ", problems), suite["pairs"]
    node["pairs"] = list(known) if node["pairs"] is None else node["pairs"]
    if unknown := [seed for seed in node["seeds"] or () if seed not in (suite["seeds"] or ())]:
        problems.append(f"arm {name}, seeds: got {short_repr(unknown)}, expected of the suite's, {suite['seeds']}")
    node["trials"] = suite["trials"] if node["trials"] is None else node["trials"]
    problems += [
        f"arm {name}: unknown pair {pair}; {_near(pair, known)}" for pair in node["pairs"] if pair not in known
    ]
    if "{pair}" in node["cfg"] and None in known:
        problems.append(f"arm {name}: its cfg has {{pair}}, but the suite has no pairs")
    if len(problems) > before:
        return None
    arm = Arm(str(name), **{**node, "display": node["display"] or str(name).replace("_", " ")})
    missing = [arm.config(pair) for pair in arm.pairs if not arm.config(pair).is_file()]
    problems += [f"arm {name}: there is no config {file}" for file in missing]
    return arm


def _source_problems(arm, arms):
    """The arm that leaves its teacher to this one has to have a run wherever this one has."""
    if arm.adapted_by is None:
        return []
    others = [name for name, other in arms.items() if not other.adapted_by]
    if arm.adapted_by not in others:
        return [f"arm {arm.name}, adapted_by: unknown arm {arm.adapted_by}; {_near(arm.adapted_by, others)}"]
    source = arms[arm.adapted_by]
    lacking = [str(pair) for pair in arm.pairs if pair not in source.pairs]
    problems = [f"arm {arm.name}: {arm.adapted_by} has no run on {', '.join(lacking)}"] if lacking else []
    if source.seeds and source.seeds != arm.seeds:
        problems.append(f"arm {arm.name}: {arm.adapted_by} has seeds {source.seeds} alone; give it the same")
    return problems


def _near(name, known):
    known = [str(entry) for entry in known]
    near = difflib.get_close_matches(name[:80] if isinstance(name, str) else short_repr(name), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"expected of {', '.join(sorted(known))}"
