"""Configuration: every mistake is told, all at once, with the nearest name; the shipped files load everywhere."""

import re
from functools import reduce
from pathlib import Path

import pytest
import yaml
from recorded import load_contract
from yacs.config import CfgNode

import atsc_plugin
from atsc_plugin.config import load_cfg
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.host import CFG
from atsc_plugin.keys import add_keys, find, flatten, remove_keys
from atsc_plugin.methods.base import class_of, load_methods
from atsc_plugin.registration import all_keys

load_methods()
ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if "leaderboard" not in p.parts)
KD = ROOT / "configs" / "quickstart" / "kd.yaml"


@pytest.fixture(autouse=True)
def _registered():
    atsc_plugin.register()


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


def problems_of(path, *overrides):
    with pytest.raises(ConfigError) as error:
        load_cfg(path, overrides)
    return error.value.problems


def plain_tree():
    """The real mdistiller's tree, rebuilt from the record."""
    return CfgNode(load_contract()["cfg_defaults"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_shipped_config_loads_here_and_by_the_hosts_plain_merge(path):
    if "timm/" in path.read_text():
        pytest.importorskip("timm")
    cfg = load_cfg(path)
    assert cfg.is_frozen()
    merged = plain_tree()
    add_keys(merged, all_keys())
    merged.merge_from_file(str(path))
    ours, theirs = flatten(cfg), flatten(merged)
    for name in flatten(yaml.safe_load(path.read_text())):
        assert ours[name] == theirs[name], name


NAMED_BY_METHOD = [path for path in CONFIGS if path.parent.name != "folder"]  # those are called by their networks


@pytest.mark.parametrize("path", NAMED_BY_METHOD, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_a_config_lies_where_its_content_says(path):
    """configs/<data>/<method>.yaml; variants of a method are called <method>_<variant>."""
    dataset, *folders = path.relative_to(ROOT / "configs").with_suffix("").parts
    cfg = load_cfg(path)
    assert ("digits100" if dataset == "quickstart" else dataset) == cfg.DATASET.TYPE
    kind = {"NONE": "vanilla"}.get(cfg.DISTILLER.TYPE, cfg.DISTILLER.TYPE.lower())
    assert reduce(str.removesuffix, ("_published", "_ema", "_reverse", "_modern"), folders[0]) == kind
    assert cfg.EXPERIMENT.TAG.split(",")[0] == folders[0]
    assert (cfg.ATSC.TEACHER.EMA > 0) == folders[0].endswith("_ema")
    assert (cfg.ATSC.LOSS.REVERSE_KD_WEIGHT > 0) == folders[0].endswith("_reverse")
    assert (cfg.ATSC.UPDATE == "published") == folders[0].endswith("_published")


def test_overrides_take_the_type_of_their_key():
    cfg = load_cfg(
        KD,
        ["SOLVER.LR", "1", "SOLVER.EPOCHS", "3", "EXPERIMENT.NAME", "12", "SOLVER.LR_DECAY_STAGES", "[1, 2]",
         "TEACHER.TRAIN_IF_MISSING", "true", "SOLVER.WEIGHT_DECAY", "1e-4"],
    )  # fmt: skip
    assert (cfg.SOLVER.LR, type(cfg.SOLVER.LR)) == (1.0, float)
    assert cfg.SOLVER.EPOCHS == 3
    assert cfg.EXPERIMENT.NAME == "12"
    assert cfg.SOLVER.LR_DECAY_STAGES == [1, 2]
    assert cfg.TEACHER.TRAIN_IF_MISSING is True
    assert cfg.SOLVER.WEIGHT_DECAY == 0.0001


def test_loading_leaves_the_hosts_own_tree_alone():
    before = CFG.dump()
    load_cfg(KD, ["SOLVER.LR", "0.7"])
    assert CFG.dump() == before


def test_a_misspelt_key_is_told_with_the_nearest(written):
    path = written("SOLVER:\n  QQQQ: 0.1\nDISTILLER:\n  STUDNET: resnet8\n")
    far, near = problems_of(path)[:2]
    assert far.startswith("SOLVER.QQQQ is no key")
    assert near == "DISTILLER.STUDNET is no key; did you mean DISTILLER.STUDENT?"


def test_several_mistakes_are_told_together(written):
    path = written("DISTILLER:\n  TYPE: SIMKDD\n  STUDENT: resnet9\nDATASET:\n  TYPE: digits100\nSOLVER:\n  LR: 1\n")
    told = "\n".join(problems_of(path, "SOLVER.EPOCHS", "0", "EXPERIMENT.SELECT_ON", "train"))
    for part in (
        "DISTILLER.TYPE: got 'SIMKDD'",
        "did you mean SIMKD?",
        "DISTILLER.STUDENT: got 'resnet9'",
        "SOLVER.LR: got 1 (int), expected float, e.g. 0.05. Write 1.0.",
        "SOLVER.EPOCHS: got 0, expected at least 1.",
        "EXPERIMENT.SELECT_ON: got 'train', expected one of auto, val, test",
    ):
        assert part in told, told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SOLVER:\n  LR: 1e-4\n", "YAML reads 1e-4 as text"),
        ("SOLVER: 3\n", "SOLVER is a group of keys"),
        ("DISTILLER:\n  TYPE: 'NONE'\n  on: 1\n", "DISTILLER.True is no key"),
        ("SOLVER:\n  LR_DECAY_STAGES: [1, two]\n", "expected entries of type int"),
        ("SIMKD:\n  LOSS:\n    FEAT_WEIGHT: -1.0\n", "SIMKD.LOSS.FEAT_WEIGHT: got -1.0, expected at least 0.0"),
        ("SIMKD:\n  LOSS:\n    FEAT_WEIGHT: .nan\n", "SIMKD.LOSS.FEAT_WEIGHT: got nan"),
        ("DATASET:\n  TYPE: imagnet\n", "did you mean imagenet?"),
        ("SOLVER:\n  TRAINER: plug\n", "did you mean plugin?"),
        ("SOLVER:\n  TYPE: Adam\n", "SOLVER.TYPE: got 'Adam', expected one of SGD"),
        ("ATSC:\n  TEACHER:\n    AVERAGE: 0.99\n", "ATSC.TEACHER.AVERAGE is gone: it is called ATSC.TEACHER.EMA"),
        ("ATSC:\n  LOSS:\n    TRUNK_CE_WEIGHT: 1.0\n", "is gone: ATSC.TEACHER.LEARNS task has the teacher's CE move"),
    ],
)
def test_a_mistake_in_a_file_is_told(written, text, told):
    assert told in "\n".join(problems_of(written(text)))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["SOLVER.LR"], "'SOLVER.LR' has no value"),
        (["SOLVER.EPOCHS", "many"], "got 'many' (str), expected int"),
        (["SOLVER.EPOCHS", "2.5"], "got 2.5 (float), expected int"),
        (["TEACHER.TRAIN_IF_MISSING", "1"], "expected bool"),
        (["SOLVER.LR_DECAY_STAGES", "[" * 5000], "expected list"),
    ],
)
def test_a_mistake_on_the_command_line_is_told(overrides, told):
    assert told in "\n".join(problems_of(KD, *overrides))


def test_what_would_only_fail_after_work_has_begun_is_refused_all_at_once():
    """Each of these ended a run in its first epoch or after it."""
    wanted = {
        "LOG.SAVE_CHECKPOINT_FREQ": "0",
        "SOLVER.LR": "-0.1",
        "SOLVER.LR_DECAY_RATE": "-1.0",
        "SOLVER.WEIGHT_DECAY": "-0.0005",
        "SOLVER.MOMENTUM": "-0.9",
    }
    problems = problems_of(KD, *(word for pair in wanted.items() for word in pair))
    assert [problem.split(":")[0] for problem in sorted(problems)] == sorted(wanted)
    assert all("expected at least" in problem for problem in problems)


@pytest.mark.parametrize(("method", "key"), [("dkd", "DKD.WARMUP"), ("reviewkd", "REVIEWKD.WARMUP_EPOCHS")])
def test_a_warm_up_of_no_epochs_which_the_host_divides_by_is_refused_with_the_other_mistakes(method, key):
    problems = problems_of(KD.with_name(f"{method}.yaml"), key, "0", "SOLVER.LR", "-1.0")
    assert len(problems) == 2
    assert any(problem.startswith(f"{key}: got 0, expected at least 1") for problem in problems)
    if method == "dkd":
        load_cfg(KD, [key, "0"])  # another method does not read it


@pytest.mark.parametrize("key", list(class_of("ATSC").OLD_KEYS))
def test_a_key_of_the_first_edition_is_answered_with_what_to_write_now(key):
    (problem,) = problems_of(KD, key, "1")
    assert problem.startswith(f"{key} is gone: ")
    assert len(problem) > len(key) + 30


# ---- wandb ----


def test_a_wish_for_wandb_which_our_trainer_would_ignore_is_refused(written):
    told = "LOG.WANDB is True, but SOLVER.TRAINER plugin logs to log.jsonl and TensorBoard"
    (problem,) = problems_of(KD, "LOG.WANDB", "True")
    assert problem.startswith(told)
    assert "Set LOG.WANDB False" in problem
    (problem,) = problems_of(written(KD.read_text().replace("WANDB: False", "WANDB: True")))
    assert problem.startswith(told)
    assert load_cfg(KD, ["LOG.WANDB", "True", "SOLVER.TRAINER", "base"]).LOG.WANDB is True


def test_the_hosts_own_default_of_wandb_is_no_mistake_and_is_false_in_the_run(written, monkeypatch):
    """So that the cfg.yaml of a run, which names every key, loads again."""
    monkeypatch.setitem(CFG.LOG, "WANDB", True)
    cfg = load_cfg(written(KD.read_text().replace("  WANDB: False\n", "  PREFIX: out\n")))
    assert cfg.LOG.WANDB is False
    assert load_cfg(written(cfg.dump())).LOG.WANDB is False
    assert CFG.LOG.WANDB is True


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "not valid YAML"),
        ("- 1\n- 2\n", "holds a list"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused(written, text, told):
    with pytest.raises(PluginError, match=told):
        load_cfg(written(text))


def test_a_missing_file_is_named():
    with pytest.raises(PluginError, match="nowhere.yaml cannot be read: No such file"):
        load_cfg("nowhere.yaml")


def test_keys_are_added_once_and_what_the_user_set_stays():
    tree, keys = plain_tree(), all_keys()
    assert add_keys(tree, keys) == [key.name for key in keys if key.name != "SOLVER.TYPE"]  # which every host has
    tree.SIMKD.LOSS.FEAT_WEIGHT = 3.0
    tree.freeze()
    assert add_keys(tree, keys) == []
    assert tree.is_frozen()
    assert tree.SIMKD.LOSS.FEAT_WEIGHT == 3.0


def test_removing_the_keys_leaves_the_hosts_tree_as_it_was():
    tree = plain_tree()
    before = tree.dump()
    remove_keys(tree, add_keys(tree, all_keys()))
    assert tree.dump() == before


def test_a_key_of_another_type_in_the_hosts_tree_is_an_error():
    tree = CfgNode({"EXPERIMENT": {"SEED": "one"}})
    with pytest.raises(PluginError, match="EXPERIMENT.SEED = 'one'; expected a int"):
        add_keys(tree, all_keys())


def test_every_key_says_what_it_means_and_its_default_is_allowed():
    for key in all_keys():
        assert len(key.meaning) > 10, key.name
        assert not key.choices or key.default in key.choices
        assert key.minimum is None or key.default >= key.minimum
        node, leaf = find(CFG, key.name)
        assert type(node[leaf]) is type(key.default)


def test_the_frozen_config_survives_a_round_trip_through_its_dump(tmp_path):
    cfg = load_cfg(KD)
    (tmp_path / "cfg.yaml").write_text(cfg.dump())
    assert yaml.safe_load(load_cfg(tmp_path / "cfg.yaml").dump()) == yaml.safe_load(cfg.dump())


def test_the_arms_of_same_numbers_are_quickstart_files():
    (arms,) = re.findall(r'^ARMS = "(.+)"$', (ROOT / "tools" / "same_numbers.py").read_text(), re.MULTILINE)
    assert [arm for arm in arms.split() if not (KD.parent / f"{arm}.yaml").is_file()] == []
