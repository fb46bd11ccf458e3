"""Suite files: what they expand to, which mistakes are told, and that every shipped one loads."""

from pathlib import Path

import pytest
import yaml

from atsc_plugin.__main__ import main
from atsc_plugin.errors import PluginError
from atsc_plugin.leaderboard import jobs
from atsc_plugin.leaderboard.suite import read_suite

ROOT = Path(__file__).resolve().parents[1]
SUITES = sorted((ROOT / "configs/leaderboard").glob("*.yaml"))


@pytest.fixture
def suite(here):
    def write(**changes):
        Path("arm.yaml").write_text(yaml.safe_dump({"SOLVER": {"EPOCHS": 6, "LR": 0.05, "LR_DECAY_STAGES": [4, 5]}}))
        content = {"name": "s", "seeds": [1, 2], "arms": {"good": {"cfg": "arm.yaml"}}}
        Path("suite.yaml").write_text(yaml.safe_dump({**content, **changes}))
        return "suite.yaml"

    return write


def expand(path, **keys):
    return jobs.expand(read_suite(path), "o", **keys)


# ---- what a suite expands to ----


def test_pairs_expand_one_whole_before_the_next(suite):
    for pair in ("a_b", "c_d"):
        Path(f"{pair}.yaml").write_text(yaml.safe_dump({"SOLVER": {"LR": 0.05}}))
    arms = {"x": {"cfg": "{pair}.yaml"}, "y": {"cfg": "{pair}.yaml", "pairs": ["a_b"], "set": {"SOLVER.LR": 1}}}
    runs = expand(suite(arms=arms, pairs={"a_b": {"SOLVER.LR": 0.5}, "c_d": None}, teacher_seeds=[3, 4]), seeds=[1])
    assert [run.name for run in runs] == ["a_b,x,teacher3", "a_b,y,teacher3", "a_b,x,teacher4", "a_b,y,teacher4",
                                          "c_d,x,teacher3", "c_d,x,teacher4"]  # fmt: skip
    assert [run.keys["SOLVER.LR"] for run in runs[:2]] == [0.5, 1.0]  # the arm's own key wins, as a decimal
    assert [run.keys["TEACHER.SEED"] for run in runs] == [3, 3, 4, 4, 3, 4]


def test_a_trial_lies_in_a_folder_of_its_own_and_stretch_holds_for_it_too(suite):
    path = suite(arms={"good": {"cfg": "arm.yaml"}, "long": {"cfg": "arm.yaml", "stretch": 2}})
    places = ["DATASET.ROOT", "/there", "TEACHER.TRAIN_IF_MISSING", "True"]
    overrides = jobs.parse_overrides(["SOLVER.EPOCHS", "3", *places])
    good, long = expand(path, seeds=[1], overrides=overrides)
    assert good.folder == Path("o/s,SOLVER.EPOCHS=3/good/seed_1")  # a place changes no result, nor does leave to train
    assert good.keys["EXPERIMENT.PROJECT"] == "s,SOLVER.EPOCHS=3"
    assert (good.epochs, long.epochs) == (3, 6)
    assert (good.keys["SOLVER.LR_DECAY_STAGES"], long.keys["SOLVER.LR_DECAY_STAGES"]) == ([4, 5], [8, 10])
    assert expand(path)[0].folder == Path("o/s/good/seed_1")


def test_a_whole_number_is_a_decimal_where_the_keys_default_is_one(suite):
    path = suite(arms={"good": {"cfg": "arm.yaml"}})
    (run,) = expand(path, seeds=[1], overrides=jobs.parse_overrides(["SOLVER.CLIP_NORM", "5"]))
    assert (run.keys["SOLVER.CLIP_NORM"], type(run.keys["SOLVER.CLIP_NORM"])) == (5.0, float)


def test_an_arm_with_seeds_of_its_own_has_no_other_runs(suite):
    arms = {"all": {"cfg": "arm.yaml"}, "one": {"cfg": "arm.yaml", "seeds": [2]}}
    path = suite(arms=arms)
    assert [(run.arm, run.seed) for run in expand(path)] == [("all", 1), ("all", 2), ("one", 2)]
    assert [run.arm for run in expand(path, seeds=[1])] == ["all"]


def test_an_arm_of_equal_cost_without_stages_of_its_own_stretches_the_hosts(suite):
    Path("bare.yaml").write_text("DISTILLER: {TYPE: NONE}")
    (run,) = expand(suite(arms={"long": {"cfg": "bare.yaml", "stretch": 2}}), seeds=[1])
    assert (run.keys["SOLVER.EPOCHS"], run.keys["SOLVER.LR_DECAY_STAGES"]) == (480, [300, 360, 420])


@pytest.mark.parametrize(("stretch", "warmup"), [(2, 10), (0.2, 1)])
def test_a_warm_up_keeps_its_share_of_a_stretched_run(suite, stretch, warmup):
    arm = {"cfg": "arm.yaml", "stretch": stretch, "set": {"SOLVER.EPOCHS": 20, "SOLVER.WARMUP_EPOCHS": 5}}
    (run,) = expand(suite(arms={"long": arm}), seeds=[1])
    assert (run.keys["SOLVER.EPOCHS"], run.keys["SOLVER.WARMUP_EPOCHS"]) == (20 * stretch, warmup)


def test_a_display_name_is_the_suites_or_else_the_arms(suite):
    arms = {"two_words": {"cfg": "arm.yaml"}, "simkd": {"cfg": "arm.yaml", "display": "SimKD"}}
    shown = {run.arm: run.record["display"] for run in expand(suite(arms=arms), seeds=[1])}
    assert shown == {"two_words": "two words", "simkd": "SimKD"}


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("true", True), ("[1, 2]", [1, 2]), ("1j", "1j"), ("a", "a"),
                                            ("[resnet20, vgg13]", ["resnet20", "vgg13"])])  # fmt: skip
def test_an_override_is_read_as_a_value_that_a_file_can_hold(text, value):
    assert jobs.parse_overrides(["A.B", text]) == [("A.B", value)]


# ---- mistakes ----


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": []}, "arms: got [], expected a mapping"),
        ({"notes": "a sentence"}, "notes: got 'a sentence', expected a list of sentences"),
        ({"against": ["bad"]}, "against: got ['bad'], expected arms, of good"),
        ({"arms": {"a": {"cfg": "none.yaml"}}}, "there is no config none.yaml"),
        ({"arms": {"a": {"config": "x"}}}, "arm a is {'config': 'x'}; expected at least cfg"),
        ({"arms": {"a": {"cfg": "arm.yaml", "sett": {}}}}, "arm a, unknown key 'sett'; did you mean set?"),
        ({"arms": {"a/b": {"cfg": "arm.yaml"}}}, "arm 'a/b': expected letters"),
        ({"arms": {"a": {"cfg": "arm.yaml", "pairs": ["q"]}}, "pairs": ["p"]}, "unknown pair q"),
        ({"arms": {"a": {"cfg": "arm.yaml", "pairs": [{}]}}, "pairs": ["p"]}, "a list of the suite's pairs"),
        ({"arms": {"a": {"cfg": "{pair}.yaml"}}}, "the suite has no pairs"),
        ({"arms": {"a": {"cfg": "arm.yaml", "stretch": 0}}}, "stretch: got 0"),
        ({"arms": {"a": {"cfg": "arm.yaml", "stretch": float("nan")}}}, "stretch: got nan"),
        ({"arms": {"a": {"cfg": "arm.yaml", "display": "x" * 61}}}, "expected a name of up to 60 letters"),
        ({"arms": {"a": {"cfg": "arm.yaml", "trials": 3}, "b": {"cfg": "arm.yaml"}}}, "tuning trials differ"),
        ({"arms": {"a": {"cfg": "arm.yaml", "adapted_by": "aa"}}}, "adapted_by: unknown arm aa"),
        ({"arms": {"a": {"cfg": "arm.yaml", "adapted_by": [1]}}}, "adapted_by: got [1], expected an arm"),
        ({"pairs": ["p", "q"], "arms": {"a": {"cfg": "arm.yaml", "pairs": ["p"]},
                                        "b": {"cfg": "arm.yaml", "adapted_by": "a"}}}, "arm b: a has no run on q"),
        ({"arms": {"a": {"cfg": "arm.yaml", "seeds": [2, 3]}}}, "a, seeds: got [3], expected of the suite's, [1, 2]"),
        ({"arms": {"a": {"cfg": "arm.yaml", "seeds": [2]}, "b": {"cfg": "arm.yaml", "adapted_by": "a"}}},
         "arm b: a has seeds [2] alone; give it the same"),
        ({"name": None}, "suite.yaml is no suite; expected keys name, seeds and arms"),
        ({"arms": {"a": {"cfg": None}}}, "arm a is {'cfg': None}; expected at least cfg"),
        ({"name": "../up"}, "name: got '../up'"),
        ({"seeds": [1, 1]}, "seeds: got [1, 1], expected a list of different whole numbers"),
        ({"seed": [1]}, "unknown key 'seed'; did you mean seeds?"),
        ({"images": 9}, "images: got 9, expected a few words"),
        ({"common": {"SOLVER": 1}}, "common: got {'SOLVER': 1}, expected KEYS"),
        ({"common": {"SOLVER.LR": {"a": 1}}}, "expected KEYS with plain values"),
        ({"pairs": {"p": {"SOLVER.LR": [[1]]}}}, "pairs: got"),
    ],
)  # fmt: skip
def test_a_suite_that_cannot_run_is_told(suite, changes, told):
    with pytest.raises(PluginError) as refused:
        read_suite(suite(**changes))
    assert told in str(refused.value)


def test_all_mistakes_are_told_together(suite):
    with pytest.raises(PluginError, match="has 3 mistakes"):
        read_suite(suite(seeds=[], name="", arms={"a": {"cfg": 1}}))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)  # nine to the power of nine entries


@pytest.mark.parametrize(
    "text",
    [
        "name: s\nseeds: [1]\narms: &a {x: *a}",
        "name: s\nseeds: [1]\narms: {a: {cfg: arm.yaml, set: &s {A.B: *s}}}",
        "name: s\nseeds: &s [*s]\narms: {a: {cfg: arm.yaml}}",
        f"{BOMB}name: s\nseeds: *i\nnotes: *i\narms: {{a: {{cfg: *i, pairs: *i, set: {{A.B: *i}}, adapted_by: *i}}}}",
        "name: s\nseeds: [1]\narms: {a: {cfg: arm.yaml, set: {A.B: 2020-01-01}}}",
        f"name: s\nseeds: [0x{'f' * 5000}]\narms: {{a: {{cfg: arm.yaml}}}}",  # more digits than Python prints
        "[1, 2]",
        "",
    ],
)
def test_a_hostile_suite_is_told_in_a_few_lines(suite, text, capsys):
    path = suite()
    Path(path).write_text(text)
    assert main(["leaderboard", "--suite", path]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and len(said) < 5000


def test_a_key_below_a_key_is_told(suite, capsys):
    path = suite(common={"SOLVER.LR.MORE": 1})
    assert main(["leaderboard", "--suite", path]) == 2
    assert "SOLVER.LR.MORE: LR is a key, not a group of keys" in capsys.readouterr().err


# ---- the shipped suites ----


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_every_shipped_suite_expands_to_configs_that_load(path, tmp_path, monkeypatch):
    import atsc_plugin
    from atsc_plugin.config import load_cfg

    if "timm/" in path.read_text(encoding="utf-8"):
        pytest.importorskip("timm")
    monkeypatch.chdir(ROOT)
    atsc_plugin.register()
    runs = jobs.expand(read_suite(path), tmp_path, seeds=[1])
    jobs.write_configs(runs)
    for run in runs:
        assert run.name == load_cfg(run.config).EXPERIMENT.NAME


BASELINES = {"PROJECTED_VANILLA", "PROJECTED_KD", "SIMKD"}


@pytest.mark.parametrize(
    "name", ["quick", "cifar100_main", "cifar100_multi", "tin100", "imagenet", "tiny_imagenet", "ablation"]
)
def test_suites_with_projectors_have_the_baselines_of_equal_architecture_and_cost(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = read_suite(f"configs/leaderboard/{name}.yaml")
    for pair in suite.pairs:
        runs = jobs.expand(suite, "o", seeds=[1], pairs=[pair])
        assert {run.keys["DISTILLER.TYPE"] for run in runs} >= BASELINES
        base = next(run for run in runs if run.keys["DISTILLER.TYPE"] == "SIMKD" and run.record["stretch"] == 1)
        long = next(run for run in runs if run.arm.startswith("simkd_equal_cost"))
        assert long.epochs == (2.4 if name == "imagenet" else 2) * base.epochs
        tuned = {run.arm for run in runs if run.record["trials"]}
        assert tuned == ({"atsc"} if name in ("quick", "ablation") else set())  # both on the toy


def test_the_control_of_the_reverse_term_differs_from_it_in_the_term_alone(monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = jobs.expand(read_suite("configs/leaderboard/learning_teachers.yaml"), "o", seeds=[1])
    keys = {run.arm: run.keys for run in runs}
    with_it, without = ({"ATSC.TEACHER.EMA": 0.0, **keys[arm]} for arm in ("atsc_reverse", "atsc_task"))
    different = {key for key in with_it | without if with_it.get(key) != without.get(key)}
    term = {"ATSC.LOSS.REVERSE_KD_WEIGHT", "ATSC.LOSS.REVERSE_KD_WARMUP_EPOCHS"}
    assert different - {"EXPERIMENT.NAME", "EXPERIMENT.TAG"} == term


def test_the_main_suite_has_eleven_pairs_and_every_student_a_vanilla_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    suite = read_suite("configs/leaderboard/cifar100_main.yaml")
    runs = jobs.expand(suite, "o", seeds=[1])
    assert len(suite.pairs) == 11
    students = {run.keys["DISTILLER.STUDENT"] for run in runs}
    plain = [run.keys["DISTILLER.STUDENT"] for run in runs if run.arm == "vanilla"]
    assert sorted(plain) == sorted(students)  # each once
