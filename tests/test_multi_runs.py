"""Runs with several teachers: configurations, the monitor, resuming, the commands, and what bad input is told."""

import json

import pytest
import torch
from runs import tiny_loader
from several import student_and_teachers, tiny
from small_runs import QUICK, SMALL, refused
from tiny import batch

import atsc_plugin
from atsc_plugin import students, teachers
from atsc_plugin.__main__ import main
from atsc_plugin.config import load_cfg
from atsc_plugin.engine import checkpoint
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import ConfigError, RunStopped
from atsc_plugin.host import CFG, cifar_model_dict
from atsc_plugin.methods.atsc_multi import ATSCMulti
from atsc_plugin.methods.simkd_multi import SimKDMulti
from atsc_plugin.teachers import configs_by_teacher

MULTI = QUICK / "atsc_multi.yaml"


@pytest.fixture
def cfg(tmp_path):
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "ATSC_MULTI", "DISTILLER.TEACHERS", ["one", "two", "three"]])
    cfg.merge_from_list(
        ["SOLVER.TRAINER", "plugin", "SOLVER.EPOCHS", 3, "SOLVER.LR", 0.02, "LOG.PREFIX", str(tmp_path)]
    )
    return cfg


def trainer_of(cfg, folder, kind=ATSCMulti, count=3):
    student, teachers = student_and_teachers()
    torch.manual_seed(1)
    distiller = kind(student, teachers[:count], cfg)
    loaders = tiny_loader(seed=5), tiny_loader(start=1)
    return PluginTrainer("run", distiller, *loaders, cfg, test_loader=tiny_loader(start=2), folder=folder)


# ---- configurations ----


def config(*words):
    atsc_plugin.register()
    return load_cfg(MULTI, words)


def test_names_files_and_seeds_of_each_teacher():
    words = ["DISTILLER.TEACHERS", "[resnet20, vgg13]", "DISTILLER.TEACHER_CKPTS", "['a.pth', '']", "TEACHER.SEED", "5"]
    each = configs_by_teacher(config(*words))
    found = [(own.DISTILLER.TEACHER, own.DISTILLER.TEACHER_CKPT, own.TEACHER.SEED) for own in each]
    assert found == [("resnet20", "a.pth", 5), ("vgg13", "", 6)]
    each = configs_by_teacher(config("TEACHER.SEEDS", "[4, 2, 9]"))
    assert [own.TEACHER.SEED for own in each] == [4, 2, 9]


def test_a_single_teacher_is_a_list_of_one():
    words = ["DISTILLER.TEACHERS", "[]", "DISTILLER.TEACHER", "vgg13", "DISTILLER.TEACHER_CKPT", "v.pth"]
    (own,) = configs_by_teacher(config(*words))
    assert (own.DISTILLER.TEACHER, own.DISTILLER.TEACHER_CKPT, own.TEACHER.SEED) == ("vgg13", "v.pth", 1)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["DISTILLER.TEACHERS", "[]"], ["DISTILLER.TEACHERS is empty; ATSC_MULTI expects at least one"]),
        (
            ["DISTILLER.TEACHERS", "[resnet20, resnet21, vgg31]"],
            ["2 mistakes", "DISTILLER.TEACHERS: got 'resnet21', expected one of", "DISTILLER.TEACHERS: got 'vgg31'"],
        ),
        (["DISTILLER.TEACHERS", "[resnet20, 3]"], ["got '3'"]),
        (["DISTILLER.TEACHERS", "['resnet20', 3]"], ["got ['resnet20', 3], expected entries of type str"]),
        (["DISTILLER.TEACHER_CKPTS", "['a.pth', 3, '']"], ["got 3 in the list, expected entries of type str"]),
        (["DISTILLER.TEACHER_CKPTS", "['a.pth', 'b.pth']"], ["TEACHER_CKPTS has 2 entries for 3 teachers"]),
        (["DISTILLER.TEACHER_CKPT", "a.pth"], ["names one file for 3 teachers", "DISTILLER.TEACHER_CKPTS"]),
        (["TEACHER.SEEDS", "[1, 2]"], ["TEACHER.SEEDS has 2 entries for 3 teachers"]),
        (["TEACHER.SEEDS", "[1, 2, -3]"], ["expected at least 0"]),
        (["TEACHER.SEEDS", "[1, 2, 'x']"], ["got 'x' in the list, expected entries of type int"]),
        (["DISTILLER.TEACHER", "vgg13"], ["DISTILLER.TEACHER is vgg13 beside DISTILLER.TEACHERS"]),
        (["DISTILLER.TYPE", "KD"], ["KD learns from one. Use DISTILLER.TEACHER or DISTILLER.TYPE AVERKD"]),
        (
            ["DISTILLER.TYPE", "SIMKD", "SIMKD.PROJECTOR.COUNT", "2"],
            ["2 mistakes", "SIMKD_MULTI", "PROJECTOR.COUNT is 2"],
        ),
        (["DISTILLER.TYPE", "NONE"], ["NONE learns from no teacher. Leave it out."]),
        (["ATSC.UPDATE", "published"], ["no step for several teachers was released"]),
        (["ATSC.DRIFT.WEIGHT", "38.0"], ["diverges"]),
        (["ATSC.ENSEMBLE", "votes"], ["expected one of logits, probs"]),
        (["DISTILLER.TYPE", "SIMKD_MULTI", "SIMKD.PROJECTOR.COUNT", "0"], ["expected at least 1"]),
        (["DISTILLER.TYPE", "AVERKD", "AVERKD.MODE", "votes"], ["expected one of losses, logits"]),
        (
            ["DISTILLER.TEACHERS", "[resnet21]", "TEACHER.SEEDS", "[1, 2]", "DISTILLER.TEACHER_CKPT", "a.pth"],
            ["2 mistakes", "resnet21", "TEACHER.SEEDS has 2 entries for 1 teachers"],
        ),
    ],
)
def test_mistakes_about_teachers_are_told_together_and_cost_nothing(here, words, parts):
    with pytest.raises(ConfigError) as error:
        config(*words)
    for part in parts:
        assert part in str(error.value), str(error.value)
    assert list(here.iterdir()) == []


# ---- monitor and guard ----


def own_labels(distiller, number):
    """Images with the labels that one teacher gives them: its accuracy begins at 100."""
    images, _ = batch(40)
    with torch.no_grad():
        return images, distiller.eval().teacher[number](images)[0].argmax(1)


def test_each_teacher_has_figures_of_its_own_and_the_one_that_collapses_is_named(cfg, tmp_path):
    distiller = trainer_of(cfg, tmp_path / "r").distiller
    distiller.begin()
    loader = [own_labels(distiller, 1)]
    first = distiller.after_epoch(1, loader)
    assert first.warning is None
    assert {name.partition("_")[0] for name in first.figures} == {"t1", "t2", "t3"}
    assert first.figures["t2_start_top1"] == 100.0
    assert first.figures["t1_kappa"] != first.figures["t2_kappa"]
    with torch.no_grad():
        distiller.teacher[1].bn.weight.zero_()
    report = distiller.after_epoch(2, loader)
    assert report.warning.startswith("teacher 2 (two) has collapsed")
    assert "teacher 1" not in report.warning and "teacher 3" not in report.warning
    assert report.figures["t2_feature_scale"] == 0.0
    assert report.figures["t1_feature_scale"] == report.figures["t3_feature_scale"] == 1.0
    assert report.figures["t1_drift"] == 0.0 < report.figures["t2_drift"]


def test_the_guard_stops_the_run_for_one_of_the_teachers(cfg, tmp_path):
    cfg.ATSC.GUARD = "stop"
    trainer = trainer_of(cfg, tmp_path / "r")
    with torch.no_grad():
        trainer.distiller.begin()
        trainer.distiller.theta_0[2].start_0.mul_(100.0)  # theta_0's first kernel: teacher 3 seems to have shrunk
    with pytest.raises(RunStopped, match=r"teacher 3 \(three\) has collapsed"):
        trainer.train()


# ---- the run ----


def test_the_result_lists_what_belongs_to_each_teacher(cfg, tmp_path):
    result = trainer_of(cfg, tmp_path / "r").train()
    assert result["teacher"] == ["one", "two", "three"]
    assert len(result["teacher_top1_before"]) == len(result["teacher_top1_after"]) == 3
    network = {"student": 3 * 4 * 9 + 2 * 4, "heads": 4 * 10 + 10}
    assert result["params_student"] == network["student"] + network["heads"]
    # P: 4 -> C/2 -> C with BN; C_k: C * 10 + 10, for C = 6, 5, 7
    projectors = [4 * i + 9 * i * i + i * c + 2 * (i + i + c) for c, i in ((6, 3), (5, 2), (7, 3))]
    classifiers = [c * 10 + 10 for c in (6, 5, 7)]
    trunks = [27 * c + 2 * c for c in (6, 5, 7)]
    assert result["params_deployed"] == network["student"] + sum(projectors) + sum(classifiers)
    assert result["params_trained"] == network["student"] + sum(projectors) + sum(classifiers) + sum(trunks)


def test_the_control_deploys_every_projector_and_one_classifier(cfg, tmp_path):
    cfg.merge_from_list(["DISTILLER.TYPE", "SIMKD_MULTI", "DISTILLER.TEACHERS", ["one"], "SIMKD.PROJECTOR.COUNT", 3])
    result = trainer_of(cfg, tmp_path / "r", SimKDMulti, count=1).train()
    projector = 4 * 3 + 9 * 9 + 3 * 6 + 2 * (3 + 3 + 6)
    assert result["params_deployed"] == 3 * 4 * 9 + 2 * 4 + 3 * projector + 6 * 10 + 10
    assert result["teacher"] == ["one"]


# ---- the commands ----


@pytest.fixture
def files(tmp_path, monkeypatch, tiny_networks):
    """Checkpoints of two teachers: `tiny_teacher` (8 x 8 x 8) and `coarse` (4 x 4 x 5)."""
    monkeypatch.setitem(cifar_model_dict, "coarse", (lambda num_classes: tiny(5, 8, num_classes), None))
    torch.manual_seed(0)
    for name in ("tiny_teacher", "coarse"):
        torch.save({"model": cifar_model_dict[name][0](num_classes=100).state_dict()}, tmp_path / f"{name}.pth")
    words = ["DISTILLER.STUDENT", "tiny", "DISTILLER.TEACHERS", "[tiny_teacher, coarse]"]
    return [*words, "DISTILLER.TEACHER_CKPTS", "[tiny_teacher.pth, coarse.pth]"]


def train(method, *words):
    return main(["train", "--cfg", str(QUICK / f"{method}.yaml"), *words, "EXPERIMENT.NAME", "run",
                 "SOLVER.EPOCHS", "1", *SMALL])  # fmt: skip


def run_folder(here):
    return next((here / "output" / "quickstart").glob("run*")) / "seed_1"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("atsc_multi", ["ATSC.ENSEMBLE", "probs"]),
        ("simkd_multi", []),
        ("simkd_multi", ["SIMKD.PROJECTOR.COUNT", "2"]),
        ("averkd", []),
        ("averkd", ["DISTILLER.TYPE", "DKD_MULTI"]),
    ],
)
def test_a_quickstart_method_trains_and_its_evaluation_agrees_to_the_last_digit(here, capsys, files, method, words):
    assert train(method, *files, *words) == 0
    folder = run_folder(here)
    result = json.loads((folder / "result.json").read_text())
    assert result["teacher"] == ["tiny_teacher", "coarse"]
    for what in (folder, folder / "latest"):
        capsys.readouterr()
        assert main(["eval", str(what), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["top1"], facts["top5"]) == (result["top1_last"], result["top5_last"])
    heads = {"averkd": 0, "atsc_multi": 2, "simkd_multi": 4 if words else 2}[method]
    module, card = students.load(folder / "deploy_last")
    assert len(card["heads"]) == heads
    assert sum(p.numel() for p in module.parameters()) == result["params_deployed"]
    about = json.loads((folder / "about.json").read_text())
    assert about["teacher_from"] == ["tiny_teacher.pth", "coarse.pth"]
    assert main(["report", "output/quickstart"]) == 0
    assert "tiny_teacher + coarse -> tiny" in capsys.readouterr().out


def test_missing_teachers_are_trained_under_a_seed_each_once(here, capsys, tiny_networks):
    words = ["TEACHER.EPOCHS", "1", "DISTILLER.TEACHERS", "[tiny, tiny]", "DISTILLER.STUDENT", "tiny"]
    command = ["teachers", "--cfg", str(MULTI), *words, *SMALL]
    assert main([*command, "--dry-run"]) == 0
    assert list(here.iterdir()) == []
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "teacher 1 of 2, seed 1" in said and "teacher 2 of 2, seed 2" in said
    cached = sorted((here / "output" / "teachers").glob("*.pth"))
    assert len(cached) == 2
    assert sorted(checkpoint.load(path)["recipe"]["seed"] for path in cached) == [1, 2]
    states = [checkpoint.load(path)["model"]["conv.weight"] for path in cached]
    assert not torch.equal(*states)
    assert train("atsc_multi", *words) == 0
    assert capsys.readouterr().out.count("(trained here before)") == 2


def test_seeds_of_one_network_are_trained_from_a_configuration_of_one_teacher(here, capsys, tiny_networks):
    words = ["--cfg", str(QUICK / "kd.yaml"), "--seeds", "3,7", "DISTILLER.TEACHER", "tiny", "TEACHER.EPOCHS", "1"]
    assert main(["teachers", *words, "TEACHER.TRAIN_IF_MISSING", "False", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "tiny, seed 3: " in said and "tiny, seed 7: " in said
    kept = [checkpoint.load(path)["recipe"]["seed"] for path in (here / "output" / "teachers").glob("*.pth")]
    assert sorted(kept) == [3, 7]


def test_seeds_of_several_networks_or_twice_the_same_are_refused(here, capsys):
    words = ["teachers", "--cfg", str(MULTI), "DISTILLER.TEACHERS", "[resnet8, vgg8]"]
    refused(capsys, main([*words, "--seeds", "1,2"]), "--seeds is for one network", "resnet8, vgg8")
    for wrong in ("1,1", "a", "1,-2"):
        with pytest.raises(SystemExit) as stop:
            main([*words[:3], "--seeds", wrong])
        assert stop.value.code == 2
        assert "expected different numbers" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_misfit_and_absent_checkpoints_are_told_together_before_any_teacher_is_trained(here, capsys):
    torch.save(cifar_model_dict["resnet8"][0](num_classes=10).state_dict(), here / "ten.pth")
    torch.save(cifar_model_dict["vgg8"][0](num_classes=20).state_dict(), here / "twenty.pth")
    words = ["DISTILLER.TEACHERS", "[resnet8, resnet14, vgg8]"]
    status = train("atsc_multi", *words, "DISTILLER.TEACHER_CKPTS", "['ten.pth', '', 'twenty.pth']")
    refused(capsys, status, "resnet8 tells 10 classes apart, the data 100", "vgg8 tells 20 classes apart, the data 100")
    status = train("atsc_multi", *words, "DISTILLER.TEACHER_CKPTS", "['no.pth', '', 'none.pth']")
    refused(capsys, status, "no.pth, which is not there", "none.pth, which is not there")
    assert sorted(path.name for path in here.iterdir()) == ["ten.pth", "twenty.pth"]


def test_a_file_of_the_hosts_is_not_two_teachers(here, capsys, monkeypatch):
    """mdistiller keeps one file a network: three of the same are that one and two trainings."""
    path = here / "stock.pth"
    torch.save({"model": cifar_model_dict["resnet20"][0](num_classes=100).state_dict()}, path)
    monkeypatch.setitem(cifar_model_dict, "resnet20", (cifar_model_dict["resnet20"][0], str(path)))

    class Data:
        name, identity, classes = "cifar100", "cifar100-50000", 100

    cfg = config("DISTILLER.TEACHERS", "[resnet20, resnet20, resnet20]", "DATASET.TYPE", "cifar100")
    found = teachers.find_all(configs_by_teacher(cfg), Data, [None] * 3)
    assert [source.path == path for source in found] == [True, False, False]
    assert [source.train for source in found] == [False, True, True]
    assert found[1].path != found[2].path


@pytest.mark.parametrize("method", ["atsc_multi", "simkd_multi"])
def test_maps_that_do_not_divide_cost_no_training(here, capsys, monkeypatch, method):
    monkeypatch.setitem(cifar_model_dict, "five", (lambda num_classes: tiny(8, 7, num_classes), None))
    status = train(method, "DISTILLER.TEACHERS", "[five, resnet20, five]")
    said = refused(capsys, status, "teacher 1 (five)", "teacher 3 (five)", "8 is no multiple of 5")
    assert "resnet20" not in said.err
    assert list(here.iterdir()) == []
