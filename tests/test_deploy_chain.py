"""A deployed student teaches the next one: its logits, its map, its classifier, and what it cannot teach."""

import json
from pathlib import Path

import pytest
import torch
from deploy_files import student, write_student
from tiny import TinyNet

from atsc_plugin import build, host, registration, students
from atsc_plugin.__main__ import main
from atsc_plugin.config import load_cfg
from atsc_plugin.errors import ConfigError, ModelRefused, PluginError
from atsc_plugin.networks.deployed_teacher import as_teacher
from atsc_plugin.networks.maps import teacher_map
from atsc_plugin.untrusted import read_yaml

ROOT = Path(__file__).resolve().parents[1]
QUICK = ROOT / "configs" / "quickstart"
SMALL = ["DATASET.DIGITS100.TRAIN_IMAGES", "150", "DATASET.DIGITS100.VAL_IMAGES", "100",
         "DATASET.DIGITS100.TEST_IMAGES", "100"]  # fmt: skip


def deploy(folder, name="tiny", **changes):
    folder.mkdir()
    write_student(folder / "deploy_last", name=name, dataset="digits100", **{"classes": 100, **changes})


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_networks):
    """A working directory with a deployed TinyNet of 100 classes and one head of 24 channels in a folder `before`."""
    monkeypatch.chdir(tmp_path)
    deploy(tmp_path / "before")
    return tmp_path


def train(method, *words, teacher="before", student="tiny"):
    registration.register()
    own = ["DISTILLER.TEACHER_CKPT", teacher, "DISTILLER.STUDENT", student, "EXPERIMENT.NAME", "run"]
    return main(["train", "--cfg", str(QUICK / f"{method}.yaml"), *own, "SOLVER.EPOCHS", "1", *SMALL, *words])


# ---- the network ----


def test_a_student_with_one_head_teaches_with_its_logits_its_projected_map_and_the_shared_classifier():
    deployed = student()
    teacher, image = as_teacher(deployed).eval(), torch.randn(4, 3, 32, 32)
    logits, maps = teacher(image)
    assert torch.equal(logits, deployed(image))
    head = deployed.heads()[0]
    feature_map = deployed.source(deployed.backbone, image)[1]
    assert torch.equal(maps["feats"][-1], head.projector(feature_map))
    assert torch.equal(maps["pooled_feat"], maps["feats"][-1].mean(dim=(2, 3)))
    assert torch.equal(maps["preact_feats"][-1].relu(), maps["feats"][-1])
    assert (maps["preact_feats"][-1] < 0).any()  # no ReLU in place has overwritten it
    facts = teacher_map(teacher, 32, "a deployed resnet8")
    assert facts.tail_of(teacher) is head.classifier
    assert (facts.source.place, facts.channels, facts.size, facts.classes) == ("feats", 24, 8, 10)
    assert len(maps["feats"]) == len(deployed.backbone(image)[1]["feats"])
    assert list(teacher.parameters())[-1] is head.classifier.bias  # the one that ATSC's published update moves


def test_a_plain_student_teaches_as_the_network_it_is():
    deployed = student(heads=0)
    assert as_teacher(deployed) is deployed.backbone


def test_an_ensemble_teaches_its_logits_and_refuses_to_share_a_classifier():
    deployed = student(heads=2)
    teacher, image = as_teacher(deployed).eval(), torch.randn(4, 3, 32, 32)
    logits, maps = teacher(image)
    assert torch.equal(logits, deployed(image))
    assert maps["feats"]
    with pytest.raises(ModelRefused, match="resnet8 has no layers, such as an nn.Linear"):
        teacher_map(teacher, 32, "teacher resnet8")


def test_a_gradient_reaches_projector_backbone_and_classifier_of_such_a_teacher():
    """ATSC moves its teacher; nothing in the wrapping may stop that."""
    teacher = as_teacher(student())
    logits, maps = teacher(torch.randn(4, 3, 32, 32))
    (logits.sum() + maps["feats"][-1].square().sum()).backward()
    unreached = [name for name, parameter in teacher.named_parameters() if parameter.grad is None]
    assert unreached == []


# ---- chains, through the commands ----


@pytest.mark.parametrize("method", ["kd", "dkd", "simkd", "atsc"])
def test_a_deployed_student_is_the_teacher_of_the_next_run(here, capsys, method):
    assert train(method) == 0
    said = capsys.readouterr().out
    assert "teacher tiny from before/deploy_last.safetensors" in said
    folder = next(here.glob("output/quickstart/run*/seed_1"))
    result = json.loads((folder / "result.json").read_text())
    assert (result["teacher"], result["student"]) == ("tiny", "tiny")
    assert main(["eval", "before", "--cfg", str(QUICK / "vanilla.yaml"), "--json", *SMALL]) == 0
    before = json.loads(capsys.readouterr().out)["top1"]
    assert result["teacher_top1_before"] == before
    if method == "simkd":  # frozen: the new student's classifier is the old one's
        new, old = (students.load(place)[0].heads()[0].classifier for place in (folder, "before"))
        assert torch.equal(new.weight, old.weight)
    assert main(["eval", str(folder / "latest"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == result["top1_last"]


def test_a_deployed_student_that_calls_the_classes_by_other_names_is_refused_as_a_teacher_and_by_eval(here, capsys):
    """The names come in the order of the outputs: another order would give every class the wrong output."""
    names = ["01", "00", *(f"{label:02}" for label in range(2, 100))]
    deploy(here / "swapped", class_names=names)
    assert train("kd", teacher="swapped") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "swapped/deploy_last calls class 0 '01', digits100 calls it '00'; expected the same classes" in said
    deploy(here / "spelt", class_names=[f" {label:02}_" for label in range(100)])
    assert train("kd", teacher="spelt") == 0


def test_a_deployed_student_is_one_of_several_teachers(here, capsys):
    words = ["DISTILLER.TYPE", "AVERKD", "DISTILLER.TEACHERS", "['tiny', 'tiny']", "DISTILLER.TEACHER", "tiny"]
    words += ["DISTILLER.TEACHER_CKPT", "", "DISTILLER.TEACHER_CKPTS", "['before', 'two/deploy_last.json']"]
    deploy(here / "two", heads=2)
    assert train("kd", *words) == 0
    assert "two/deploy_last.safetensors" in capsys.readouterr().out


def test_reviewkd_reads_its_lists_off_a_chain(here):
    """A resnet8 has maps of 16, 32, 64 channels; here the last is the head's, with 24, and so are the pooled ones."""
    deploy(here / "resnet", name="resnet8")
    assert train("reviewkd", teacher="resnet", student="resnet8") == 0
    (written,) = (here / "output").rglob("cfg.yaml")
    lists = read_yaml(written, "configuration")["REVIEWKD"]
    assert (lists["IN_CHANNELS"], lists["OUT_CHANNELS"]) == ([16, 32, 64, 64], [16, 32, 24, 24])


def test_a_wrong_list_of_a_published_pair_is_refused_with_the_right_one(here, capsys):
    names = ["DISTILLER.TEACHER_CKPT", "", "DISTILLER.TEACHER", "resnet56", "DISTILLER.STUDENT", "resnet20"]
    wrong = ["REVIEWKD.IN_CHANNELS", "[16, 32, 64, 63]", "REVIEWKD.SHAPES", "[1, 8, 16, 31]"]
    registration.register()
    assert main(["train", "--cfg", str(QUICK / "reviewkd.yaml"), "--dry-run", *names, *SMALL, *wrong]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "REVIEWKD.IN_CHANNELS is [16, 32, 64, 63], but the maps of resnet20 have [16, 32, 64, 64]" in said
    assert "REVIEWKD.SHAPES is [1, 8, 16, 31], but the maps of resnet20 have [1, 8, 16, 32]" in said


def test_reviewkd_needs_pre_activations(monkeypatch, capsys):
    class WithoutPreActivations(TinyNet):
        def forward(self, x):
            logits, maps = super().forward(x)
            return logits, {"feats": maps["feats"], "pooled_feat": maps["pooled_feat"]}

    monkeypatch.setitem(host.cifar_model_dict, "plain", (WithoutPreActivations, None))
    words = ["DISTILLER.TEACHER", "plain", "DISTILLER.STUDENT", "plain", "--dry-run", *SMALL]
    assert main(["train", "--cfg", str(QUICK / "reviewkd.yaml"), *words]) == 2
    assert "square maps of several stages; plain has none" in capsys.readouterr().err


# ---- refused ----


def test_the_card_says_what_the_teacher_is(here):
    registration.register()
    cfg = load_cfg(QUICK / "kd.yaml", ["DISTILLER.TEACHER_CKPT", "before/deploy_last.json"])
    assert cfg.DISTILLER.TEACHER == "tiny"  # the file says resnet20
    words = ["DISTILLER.TEACHER_CKPT", "before", "DISTILLER.TEACHER", "resnet14"]
    with pytest.raises(ConfigError, match="DISTILLER.TEACHER says resnet14, but before is a deployed tiny"):
        load_cfg(QUICK / "kd.yaml", words)
    words = ["DISTILLER.TYPE", "AVERKD", "DISTILLER.TEACHERS", "['resnet14']", "DISTILLER.TEACHER_CKPTS", "['before']"]
    with pytest.raises(ConfigError, match="DISTILLER.TEACHERS says resnet14, but before is a deployed tiny"):
        load_cfg(QUICK / "kd.yaml", words)


def test_an_ensemble_is_refused_by_simkd_before_anything_is_written(here, capsys):
    deploy(here / "two", heads=2)
    assert train("simkd", teacher="two") == 2
    assert "teacher tiny has no layers" in capsys.readouterr().err
    assert not (here / "output").exists()


def test_a_student_of_other_classes_and_a_bare_student_are_refused(here, capsys):
    deploy(here / "ten", classes=10)
    assert train("kd", teacher="ten") == 2
    assert "is a student of 10 classes; the data have 100" in capsys.readouterr().err
    torch.save({"model": student(classes=100).backbone.state_dict()}, here / "before" / "student_best")
    assert train("kd", teacher="before/student_best") == 2
    assert "its own head was never trained. Name the run, before" in capsys.readouterr().err
    assert not (here / "output").exists()


def test_a_teacher_file_of_another_kind_is_left_to_the_usual_way(here):
    registration.register()
    cfg = load_cfg(QUICK / "kd.yaml", ["DISTILLER.TEACHER_CKPT", "none.pth", *SMALL])
    assert cfg.DISTILLER.TEACHER == "resnet20"
    with pytest.raises(PluginError, match="none.pth, which is not there"):
        build.prepare(cfg)
