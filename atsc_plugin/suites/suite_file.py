"""A suite file: which arms, on which pairs of networks, with which seeds. YAML:

    name: my_suite              # becomes EXPERIMENT.PROJECT, so that all runs lie in one folder
    seeds: [1, 2, 3]
    teacher_seeds: [1]          # optional; several: every teacher crossed with every seed
    trials: 0                   # optional; tuning trials that each method was given, printed with the table
    notes: ["..."]              # optional; printed below the table
    images: "my photographs"    # optional; what the tables call images that are the user's own (npz, folder)
    against: [simkd]            # optional; the arms that the others are compared with
    primary: [atsc, simkd]      # optional; the one comparison (first minus second) settled before any run
    common: {SOLVER.EPOCHS: 6}  # optional; keys for every arm
    pairs: [res32x4_res8x4]     # optional; {pair} in an arm's cfg stands for each of them; or a mapping name: keys
    arms:
      simkd: {cfg: "configs/cifar100/simkd/{pair}.yaml"}
      vanilla: {cfg: "configs/cifar100/vanilla/{pair}.yaml", pairs: [res32x4_res8x4]}  # optional: on these alone
      atsc_drift_1: {cfg: "configs/cifar100/atsc/{pair}.yaml", set: {ATSC.DRIFT.WEIGHT: 1.0}}
      simkd_equal_cost: {cfg: "configs/cifar100/simkd/{pair}.yaml", stretch: 2}        # epochs and decay stages times 2
      after: {cfg: "configs/cifar100/simkd/{pair}.yaml", adapted_by: atsc_drift_1}     # from the teacher that run left

An arm may have `trials` of its own; unequal ones need `unequal_trials: why`, which is printed.
"""

import difflib
import re
from dataclasses import dataclass, field

from atsc_plugin.engine.run_files import read_yaml
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.shipped import config_file

KEYS = {
    "name",
    "seeds",
    "teacher_seeds",
    "trials",
    "unequal_trials",
    "notes",
    "images",
    "against",
    "primary",
    "common",
    "pairs",
    "arms",
}
ARM_KEYS = {"cfg", "set", "stretch", "pairs", "trials", "adapted_by"}
LEGAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Arm:
    """One way to train a student; `cfg` may hold {pair}."""

    name: str
    cfg: str
    keys: dict
    stretch: float
    pairs: tuple
    trials: int
    adapted_by: str | None = None  # the arm whose run of the same seed leaves the teacher for this one's

    def config(self, pair):
        return config_file(self.cfg.replace("{pair}", pair or ""))


@dataclass(frozen=True)
class Suite:
    """A checked suite. Without pairs `pairs` is {None: {}}: one pair, the one in the arms' files."""

    path: str
    name: str
    seeds: list
    arms: dict
    pairs: dict
    teacher_seeds: list = field(default_factory=lambda: [None])
    common: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    images: str | None = None
    against: list = field(default_factory=list)
    primary: list = field(default_factory=list)


def read_suite(path):
    """The suite of a file; every mistake in it is told at once."""
    content = _content(path)
    problems = [f"unknown key {name}; {_near(name, KEYS)}" for name in sorted(set(content) - KEYS, key=str)]
    name, seeds = content["name"], content["seeds"]
    if not isinstance(name, str) or not LEGAL.fullmatch(name):
        problems.append(f"name: got {name!r}, expected letters, digits and ._+-")
    teacher_seeds = content.get("teacher_seeds", [None])
    for what, values in (("seeds", seeds), ("teacher_seeds", teacher_seeds if teacher_seeds != [None] else [1])):
        if not isinstance(values, list) or not values or not all(type(v) is int and v >= 0 for v in values):
            problems.append(f"{what}: got {values!r}, expected a list of whole numbers, e.g. [1, 2, 3]")
        elif len(set(values)) < len(values):
            problems.append(f"{what}: {values} names one twice")
    common, pairs = content.get("common") or {}, _pairs(content.get("pairs"), problems)
    problems += _key_problems("common", common)
    arms = {str(arm): _arm(str(arm), body, content, pairs, problems) for arm, body in content["arms"].items()}
    problems += [told for arm in arms.values() if arm and (told := _source_problem(arm, arms))]
    notes = content.get("notes") or []
    if not isinstance(notes, list):
        problems.append(f"notes: got {notes!r}, expected a list of sentences")
        notes = []
    notes = list(notes)
    trials = {arm.name: arm.trials for arm in arms.values() if arm}
    if len(set(trials.values())) > 1:
        if not content.get("unequal_trials"):
            problems.append(f"tuning trials differ between arms ({trials}); make them equal or say why: unequal_trials")
        else:
            notes.append(f"Why tuning trials differ: {content['unequal_trials']}")
    images = content.get("images")
    if not isinstance(images, str | None):
        problems.append(f"images: got {images!r}, expected a few words")
    against = content.get("against") or []
    if not isinstance(against, list) or not all(isinstance(arm, str) and arm in arms for arm in against):
        problems.append(f"against: got {against!r}, expected a list of arms, of {', '.join(arms)}")
    primary = content.get("primary") or []
    if primary and (not isinstance(primary, list) or len(primary) != 2 or any(arm not in [*arms] for arm in primary)):
        problems.append(f"primary: got {primary!r}, expected two arms, of {', '.join(arms)}")
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return Suite(str(path), name, seeds, arms, pairs, teacher_seeds, common, notes, images, against, primary)


def _content(path):
    content = read_yaml(config_file(path), "Suite file")
    whole = isinstance(content, dict) and {"name", "seeds", "arms"} <= set(content)
    if not whole or not isinstance(content["arms"], dict) or not content["arms"]:
        raise PluginError(f"{path} is no suite; expected keys name, seeds and arms (a mapping), optionally common.")
    return content


def _pairs(pairs, problems):
    if pairs is None:
        return {None: {}}
    if isinstance(pairs, list):
        pairs = dict.fromkeys(pairs, {})
    if not isinstance(pairs, dict) or not pairs or not all(isinstance(p, str) and LEGAL.fullmatch(p) for p in pairs):
        problems.append(f"pairs: got {pairs!r}, expected names such as res32x4_res8x4, or a mapping of them to keys")
        return {None: {}}
    for pair, keys in pairs.items():
        problems += _key_problems(f"pairs.{pair}", keys or {})
    return {pair: keys or {} for pair, keys in pairs.items()}


def _key_problems(place, keys):
    if not isinstance(keys, dict) or not all(isinstance(key, str) and "." in key for key in keys):
        return [f"{place}: got {keys!r}, expected KEYS such as SOLVER.EPOCHS: 6"]
    return []


def _arm(name, body, content, pairs, problems):
    """An Arm, or None with the reasons in `problems`."""
    before = len(problems)
    if not LEGAL.fullmatch(name):
        problems.append(f"arm {name!r}: expected letters, digits and ._+-")
    if not isinstance(body, dict) or not set(body) <= ARM_KEYS or not isinstance(body.get("cfg"), str):
        problems.append(
            f"arm {name} is {body}; expected cfg: an existing file, and optionally set, stretch, pairs, trials, "
            "adapted_by"
        )
        return None
    own = body.get("pairs", list(pairs))
    unknown = [pair for pair in own if pair not in pairs] if isinstance(own, list) else [own]
    problems += [f"arm {name}: unknown pair {pair}; {_near(pair, pairs)}" for pair in unknown]
    problems += _key_problems(f"arm {name}, set", body.get("set") or {})
    stretch, trials = body.get("stretch", 1), body.get("trials", content.get("trials", 0))
    if type(stretch) not in (int, float) or stretch <= 0:
        problems.append(f"arm {name}, stretch: got {stretch!r}, expected a number above 0")
    if type(trials) is not int or trials < 0:
        problems.append(f"arm {name}, trials: got {trials!r}, expected a whole number")
    if len(problems) > before:
        return None
    arm = Arm(name, body["cfg"], body.get("set") or {}, stretch, tuple(own), trials, body.get("adapted_by"))
    if "{pair}" in arm.cfg and None in pairs:
        problems.append(f"arm {name}: its cfg has {{pair}}, but the suite has no pairs")
    else:
        problems += [
            f"arm {name}: there is no config {arm.config(pair)}" for pair in own if not arm.config(pair).is_file()
        ]
    return arm


def _source_problem(arm, arms):
    """What is wrong with the arm that is to leave this one its teacher; None if nothing is."""
    if arm.adapted_by is None:
        return None
    others = {name: other for name, other in arms.items() if other and not other.adapted_by}
    if not isinstance(arm.adapted_by, str) or arm.adapted_by not in others:
        return f"arm {arm.name}, adapted_by: unknown arm {arm.adapted_by}; {_near(arm.adapted_by, others)}"
    lacking = [str(pair) for pair in arm.pairs if pair not in others[arm.adapted_by].pairs]
    return f"arm {arm.name}: {arm.adapted_by} has no run on {', '.join(lacking)}" if lacking else None


def _near(name, known):
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"expected of {', '.join(sorted(map(str, known)))}"
