"""Rubbish in configurations and files: every case ends in success or in a message with status 2, and costs no file.

A few dozen cases; `tools/torture.py fuzz --configs 500 --checkpoints 200` runs more of them.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from hostile import SMALL, ended_well, inside, output_of, seen
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from runs import without_times
from tiny import add_tiny_networks

import atsc_plugin
from atsc_plugin.engine import checkpoint
from atsc_plugin.host import CFG
from atsc_plugin.keys import flatten
from atsc_plugin.registration import all_keys

NETWORKS = {"DISTILLER.TEACHER": "tiny_teacher", "DISTILLER.STUDENT": "tiny"}
QUICK = Path(__file__).resolve().parents[1] / "configs" / "quickstart"
CONFIGS, CHECKPOINTS = (
    int(os.environ.get(f"ATSC_FUZZ_{what}", few)) for what, few in (("CONFIGS", 8), ("CHECKPOINTS", 2))
)
FREE = {
    "deadline": None,
    "database": None,
    "phases": [Phase.generate],  # to shrink a case that trains takes longer than to read it
    "suppress_health_check": list(HealthCheck),
    "derandomize": "ATSC_FUZZ_CONFIGS" not in os.environ,  # the few are the same ones every time
}


@pytest.fixture(scope="module", autouse=True)
def count():
    """What the cases came to, for whoever runs many of them with -s; those that train take tiny networks."""
    with pytest.MonkeyPatch.context() as patch:
        add_tiny_networks(patch)
        yield
    print("\n" + "\n".join(f"{what}: {number}" for what, number in sorted(seen.items())))


# ---- configurations ----

atsc_plugin.register()
NAMES = sorted(flatten(CFG))
WHAT_COSTS = (
    "TRAIN_IMAGES",
    "VAL_IMAGES",
    "TEST_IMAGES",
    "IMAGE_SIZE",
    "PADDING",
    "BATCH_SIZE",
)  # memory, not mistakes
words_of_people = st.sampled_from(
    ["", "off", "yes", "SIMKD", "atsc", "resnet8", "resnet20", "wrn_16_1", "vgg8", "ShuffleV1", "published", "skip",
     "../..", "/", "nan", "1e-4", "None", "digits100", "npz", "plugin", "base", "cuda:7", "a\x00b", "\u202e", "{", "[1"]
)  # fmt: skip
numbers = st.one_of(
    st.integers(-3, 9), st.sampled_from([10**9, -(10**9), 2**70, 0.0, -0.5, 1e-300, 1e300, float("nan"), float("inf")])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, words_of_people, st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=4,
)
DEFAULTS = flatten(CFG)
CHOICES = {key.name: key.choices for key in all_keys() if key.choices}


def of_its_type(name):
    """Values that a key's type lets through, so that what comes after the types is reached as well."""
    default = DEFAULTS[name]
    if name in CHOICES:
        return st.sampled_from(CHOICES[name])
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, (int, float)):
        near = st.sampled_from([0, 1, 2, 3, 5, 8, 40, -1, 10**9])
        return near if isinstance(default, int) else near.map(lambda number: number / 4) | st.just(default)
    if isinstance(default, list):
        return st.lists(st.integers(-1, 5) if name.endswith("STAGES") else st.floats(-1, 2), max_size=4)
    return words_of_people


changes = st.lists(
    st.sampled_from(NAMES).flatmap(
        lambda name: st.one_of(
            st.tuples(st.just("set"), st.just(name), of_its_type(name)),
            st.tuples(st.just("set"), st.just(name), of_its_type(name)),
            st.tuples(st.sampled_from(["set", "drop", "misspell", "replace a group"]), st.just(name), values),
        )
    ),
    max_size=4,
)


def put(tree, name, value):
    *path, leaf = name.split(".")
    for step in path:
        if not isinstance(tree.setdefault(step, {}), dict):
            return
        tree = tree[step]
    tree[leaf] = value


def changed(method, list_of_changes):
    """A quickstart configuration with some of its keys set, dropped, misspelt, or groups replaced."""
    tree = yaml.safe_load((QUICK / f"{method}.yaml").read_text())
    for kind, name, value in list_of_changes:
        if kind == "set":
            costly = name.endswith(WHAT_COSTS) and isinstance(value, (int, float)) and value > 1000
            put(tree, name, 7 if costly else value)
        elif kind == "misspell":
            put(tree, name[:-1] + "x", value)
        elif kind == "replace a group":
            tree[name.split(".")[0]] = value
        else:
            tree.pop(name.split(".")[0], None)
    return tree


methods = st.sampled_from(sorted(path.stem for path in QUICK.glob("*.yaml")))


@settings(max_examples=CONFIGS, **FREE)
@given(methods, changes, st.lists(st.tuples(st.sampled_from(NAMES), words_of_people), max_size=2))
def test_a_changed_configuration_is_planned_or_told(tmp_path_factory, method, list_of_changes, overrides):
    here = tmp_path_factory.mktemp("config")
    tree = changed(method, list_of_changes)
    for name, value in SMALL.items():
        if not any(change[1].startswith("DATASET") for change in list_of_changes):
            put(tree, name, value)
    (here / "c.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    typed = [word for name, value in overrides if not name.endswith(WHAT_COSTS) for word in (name, value)]
    with inside(here):
        ended_well(["train", "--cfg", "c.yaml", "--dry-run", "--", *typed])
    assert [path.name for path in here.iterdir()] == ["c.yaml"]


@settings(max_examples=max(CONFIGS // 5, 5), **FREE)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(str.encode),
        values.map(lambda v: repr(v).encode("utf-8", "replace")),
    )
)
def test_any_bytes_as_a_configuration_are_told(tmp_path_factory, content):
    here = tmp_path_factory.mktemp("bytes")
    (here / "c.yaml").write_bytes(content)
    with inside(here):
        ended_well(["train", "--cfg", "c.yaml", "--dry-run"])
        ended_well(["leaderboard", "--suite", "c.yaml", "--dry-run"])


@settings(max_examples=max(CONFIGS // 10, 3), **FREE)
@given(st.sampled_from(["vanilla", "atsc", "simkd", "kd"]), changes)
def test_a_changed_configuration_trains_or_is_told(tmp_path_factory, trained, method, list_of_changes):
    """What may end a run besides: status 3, the guard's."""
    here = tmp_path_factory.mktemp("run")
    places = {"LOG.PREFIX": str(here / "out"), "TEACHER.CACHE": str(here / "teachers"), "SOLVER.EPOCHS": 1}
    safe = [change for change in list_of_changes if change[1] not in places and not change[1].startswith("DATASET")]
    tree = changed(method, safe)
    for name, value in {**SMALL, **places, "TEACHER.EPOCHS": 1, **NETWORKS}.items():
        put(tree, name, value)
    (here / "c.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    with inside(here):
        status, said = ended_well(["train", "--cfg", "c.yaml"], allowed=(0, 2, 3))
    if "trainer  base" not in said:  # the host's own trainer writes no result
        assert bool(list((here / "out").rglob("result.json"))) == (status == 0), said


# ---- damaged files ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a run of two epochs of SimKD, with its teacher, as if killed before its result was written."""
    top = tmp_path_factory.mktemp("trained")
    words = ["TEACHER.EPOCHS", "1", "SOLVER.EPOCHS", "2", "EXPERIMENT.NAME", "run"]
    small = [str(word) for pair in {**SMALL, **NETWORKS}.items() for word in pair]
    words = ["train", "--cfg", str(QUICK / "simkd.yaml"), *words, *small]
    with inside(top):
        status, said = output_of(words)
    assert status == 0, said
    folder = next((top / "output" / "quickstart").glob("*/seed_1"))
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    return top, words, folder.relative_to(top), without_times(result)


def damaged(content, kind, place, size, fill):
    """`content` with something done to it at a share `place` of its length."""
    at = int(place * len(content))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return (
            content[:at] + bytes([content[at] ^ (1 + size % 255)]) + content[at + 1 :] if at < len(content) else content
        )
    if kind == "overwrite":
        return content[:at] + (fill * size)[:size] + content[at + size :]
    if kind == "insert":
        return content[:at] + (fill * size)[:size] + content[at:]
    if kind == "remove":
        return content[:at] + content[at + size :]
    return fill * size


damages = st.tuples(
    st.sampled_from(["cut", "flip", "flip", "overwrite", "insert", "remove", "replace"]),
    st.floats(0.0, 1.0),
    st.integers(1, 3000),
    st.one_of(st.just(b"\0"), st.binary(min_size=1, max_size=8)),
)


@settings(max_examples=CHECKPOINTS, **FREE)
@given(damages)
def test_a_damaged_latest_never_changes_a_result_and_never_costs_the_one_before(tmp_path_factory, trained, damage):
    """The run goes on from `latest` where the damage is outside its content, else from the one before: same result."""
    top, words, folder, result = trained
    here = tmp_path_factory.mktemp("latest") / "copy"
    shutil.copytree(top, here)
    latest, previous = here / folder / "latest", here / folder / "latest_previous"
    before = previous.read_bytes()
    latest.write_bytes(damaged(latest.read_bytes(), *damage))
    with inside(here):
        status, said = ended_well([*words[:1], "--resume", *words[1:]], allowed=(0,))
    again = without_times(json.loads((here / folder / "result.json").read_text()))
    assert again | {"peak_memory_mb": 0} == result | {"peak_memory_mb": 0}
    if "going on from latest_previous" in said:
        assert (here / folder / "latest_refused").exists()
        seen["latest damaged: recognised, went on from latest_previous"] += 1
    else:
        assert previous.read_bytes() == before
        seen["latest damaged outside its content"] += 1
    checkpoint.load(previous if previous.exists() else latest, checked=True)
    shutil.rmtree(here)


FILES = ["latest", "best", "student_best", "epoch_2", "deploy_last.safetensors", "deploy_last.json", "cfg.yaml",
         "about.json", "log.jsonl", "worklog.txt"]  # fmt: skip


@settings(max_examples=max(CHECKPOINTS // 2, 10), **FREE)
@given(st.sampled_from(FILES), damages, st.sampled_from(["eval", "resume", "report", "export"]))
def test_any_damaged_file_of_a_run_is_told_or_harmless(tmp_path_factory, trained, name, damage, command):
    top, words, folder, _ = trained
    here = tmp_path_factory.mktemp("files") / "copy"
    shutil.copytree(top, here)
    path = here / folder / name
    if not path.exists():
        path = here / folder / "latest"
    path.write_bytes(damaged(path.read_bytes(), *damage))
    file = str(folder if name.startswith(("deploy", "cfg", "about", "log", "work")) else folder / path.name)
    commands = {
        "eval": ["eval", file],
        "resume": [*words[:1], "--resume", *words[1:]],
        "report": ["report", "output"],
        "export": ["export", file, "--format", "safetensors", "--output", "out.safetensors", "--check", "8"],
    }
    with inside(here):
        ended_well(commands[command])
    shutil.rmtree(here)


@settings(max_examples=max(CHECKPOINTS // 5, 5), **FREE)
@given(damages)
def test_a_damaged_teacher_is_told_before_anything_is_written(tmp_path_factory, trained, damage):
    top, words, _, _ = trained
    here = tmp_path_factory.mktemp("teacher")
    content = next((top / "output" / "teachers").glob("*.pth")).read_bytes()
    (here / "t.pth").write_bytes(damaged(content, *damage))
    with inside(here):
        status, _ = ended_well([*words, "DISTILLER.TEACHER_CKPT", "t.pth", "SOLVER.EPOCHS", "1"])
    assert (here / "output").exists() == (status == 0)
    shutil.rmtree(here)
