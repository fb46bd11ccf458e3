"""DIH: its sum over branches written out, what bad keys are told, whole runs."""

import copy
import json
import math

import pytest
import torch
import yaml
from small_dih import dih_config, tiny_dih
from small_runs import QUICK, SMALL, run_folder, train
from tiny import batch

import atsc_plugin
from atsc_plugin import host
from atsc_plugin.__main__ import main
from atsc_plugin.config import load_cfg
from atsc_plugin.errors import ConfigError, ModelRefused
from atsc_plugin.host import distiller_dict

CONFIG = QUICK / "dih.yaml"


@pytest.fixture
def cfg(tmp_path):
    return dih_config(tmp_path)


def softmax(row, temperature=1.0):
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def test_the_loss_is_the_sum_over_teacher_and_heads_of_kl_and_ce(cfg):
    cfg.DIH.TEMPERATURE, cfg.DIH.ALPHA = 2.0, 0.25
    distiller = tiny_dih(cfg).train()
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
    branches = [
        [[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]],
        [[0.5, 0.5, 4.0], [3.0, 0.0, 0.0]],
        [[0.0, 1.0, 0.0], [1.0, 0.0, 2.0]],
    ]
    distiller.student.forward = lambda image: (logits, {})
    distiller.teacher.forward = lambda image: (torch.tensor(branches[0]), {"feats": None})
    distiller.heads.forward = lambda feats: [torch.tensor(branch) for branch in branches[1:]]
    losses = distiller(image=torch.zeros(2, 3, 32, 32), target=torch.tensor([1, 0]))[1]

    def kl(branch):
        rows = [(softmax(wanted, 2.0), softmax(own, 2.0)) for wanted, own in zip(branch, logits.tolist(), strict=True)]
        return sum(q * math.log(q / p) for wanted, own in rows for q, p in zip(wanted, own, strict=True)) / 2

    ce = -(math.log(softmax([1.0, 2.0, 0.5])[1]) + math.log(softmax([0.0, -1.0, 3.0])[0])) / 2
    by_hand = sum(0.25 * 2.0**2 * kl(branch) + (1 - 0.25) * ce for branch in branches)
    assert sum(losses.values()).item() == pytest.approx(by_hand, rel=1e-6)
    assert losses["loss_ce"].item() == pytest.approx(3 * 0.75 * ce, rel=1e-6)
    assert losses["loss_kd"].item() == pytest.approx(0.25 * 4 * kl(branches[0]), rel=1e-6)


def test_with_heads_equal_to_the_teachers_logits_it_is_kd_with_k_plus_1_times_the_weight(cfg):
    distiller = tiny_dih(cfg, stages=3).double().train()
    images, target = batch()
    images = images.double()
    teacher_logits = distiller.teacher(images)[0]
    distiller.heads.forward = lambda feats: [teacher_logits] * 3
    cfg.KD.TEMPERATURE, cfg.KD.LOSS.CE_WEIGHT, cfg.KD.LOSS.KD_WEIGHT = 5, 4 * (1 - 0.1), 4 * 0.1
    control = distiller_dict["KD"](copy.deepcopy(distiller.student), distiller.teacher, cfg).train()
    ours = sum(distiller(image=images, target=target)[1].values())
    theirs = sum(control(image=images, target=target)[1].values())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)


def test_the_control_of_the_suite_is_that_kd():
    atsc_plugin.register()
    suite = yaml.safe_load((QUICK.parent / "leaderboard" / "sisters_quick.yaml").read_text())
    cfg = load_cfg(CONFIG)
    flags, branches = suite["arms"]["kd_times_k1"]["set"], 4  # resnet20 has three stages behind its stem
    assert flags["KD.TEMPERATURE"] == cfg.DIH.TEMPERATURE
    assert flags["KD.LOSS.CE_WEIGHT"] == pytest.approx(branches * (1 - cfg.DIH.ALPHA))
    assert flags["KD.LOSS.KD_WEIGHT"] == pytest.approx(branches * cfg.DIH.ALPHA)


def test_its_loss_moves_the_student_alone(cfg):
    distiller = tiny_dih(cfg).train()
    before = {name: tensor.clone() for name, tensor in distiller.state_dict().items()}
    images, target = batch()
    sum(distiller(image=images, target=target)[1].values()).backward()
    reached = {name.partition(".")[0] for name, p in distiller.named_parameters() if p.grad is not None}
    assert reached == {"student"}
    assert {id(p) for p in distiller.get_learnable_parameters()} == {id(p) for p in distiller.student.parameters()}
    for name, tensor in distiller.state_dict().items():
        assert name.startswith("student.") or torch.equal(tensor, before[name]), name


# ---- bad input ----


def test_mistakes_of_its_keys_are_told_together():
    atsc_plugin.register()
    words = ["DIH.ALPHA", "1.5", "DIH.TEMPERATURE", "0", "DIH.STAGES", "[1, -1]", "DIH.HEADS.LR", "0"]
    with pytest.raises(ConfigError) as error:
        load_cfg(CONFIG, words)
    told = "\n".join(error.value.problems)
    for key in words[::2]:
        assert f"{key}: got" in told
    with pytest.raises(ConfigError, match="DIH.ALPHA: got -0.1"):
        load_cfg(CONFIG, ["DIH.ALPHA", "-0.1"])


def test_a_stage_that_is_not_there_and_other_classes_are_refused_by_name(cfg):
    cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT = "oldnet", "newnet"
    with pytest.raises(ModelRefused, match="student newnet has 10 classes, teacher oldnet 7"):
        tiny_dih(cfg, num_classes=7)
    cfg.DIH.STAGES = [1, 5]
    with pytest.raises(ModelRefused, match=r"DIH.STAGES names 5; teacher oldnet has maps 0 \(the stem\) to 2"):
        tiny_dih(cfg)


# ---- whole runs ----


@pytest.mark.skipif(host.NAME != "embedded", reason="mdistiller's base trainer needs a GPU")
def test_the_hosts_base_trainer_runs_it(here, staged):
    assert train("dih", *staged, "DIH.HEADS.EPOCHS", "1", "SOLVER.TRAINER", "base") == 0
    state = torch.load(run_folder(here) / "latest", weights_only=False)["model"]
    assert any(name.startswith("module.heads.") for name in state)


def test_the_quickstart_trains_its_evaluation_agrees_and_the_student_leaves_alone(here, capsys, staged):
    words = [*staged, "DIH.HEADS.EPOCHS", "1"]
    assert main(["prepare", "--cfg", str(CONFIG), *words, *SMALL]) == 0
    assert "training 3 for 1 epochs" in capsys.readouterr().out
    assert train("dih", *words) == 0
    said = capsys.readouterr().out
    assert "training 3" not in said
    assert "heads  3, 11,500 parameters" in said  # maps of 4 x 4 x 4, 2 x 2 x 8 and 1 x 1 x 16, 100 classes each
    folder = run_folder(here)
    result = json.loads((folder / "result.json").read_text())
    assert result["params_deployed"] == result["params_trained"] == result["params_student"]
    for what in (folder, folder / "latest"):
        assert main(["eval", str(what), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["top1"] == result["top1_last"]


def test_a_dry_run_tells_of_the_heads_and_writes_nothing(here, capsys):
    assert train("dih", "--dry-run") == 0
    assert "heads  3, 2,867,500 parameters, from ./output/teachers, else trained first" in capsys.readouterr().out
    assert list(here.iterdir()) == []
