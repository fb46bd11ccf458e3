"""What the methods share whose networks learn beside the student: start, modes, rates, figures, resume, leftovers."""

import json

import pytest
import torch
from co_trained import co_trained_config, distiller_of, losses_of, network, trainer_of
from runs import Before, assert_a_continued_run_is_the_whole_one, dying, log_of, tiny_loader, without_times
from small_runs import TINY, run_folder, train
from tiny import batch
from tiny_stages import TinyStages

from atsc_plugin.__main__ import main
from atsc_plugin.contract import OUR_TRAINER
from atsc_plugin.engine import checkpoint
from atsc_plugin.engine.evaluate import evaluate
from atsc_plugin.errors import ConfigError, ModelRefused
from atsc_plugin.methods.base import load_methods
from atsc_plugin.methods.co_training import CoTrained, LearningTeacher, Means, fresh_network
from atsc_plugin.networks import named

METHODS = load_methods()
FAMILY = [name for name, kind in METHODS.items() if issubclass(kind, LearningTeacher)]
EVERY = [name for name, kind in METHODS.items() if issubclass(kind, CoTrained)]
every_method = pytest.mark.parametrize("method", FAMILY)


@pytest.fixture
def config(tmp_path, monkeypatch):
    return lambda method, *pairs: co_trained_config(tmp_path, monkeypatch, method, *pairs)


# ---- how a teacher starts ----


@every_method
def test_a_scratch_teacher_comes_from_a_stream_of_the_runs_seed_and_a_pretrained_one_as_it_is(config, method):
    cfg, kind = config(method, f"{method}.TEACHER.INIT", "pretrained"), METHODS[method]
    teacher = network("tiny", 9)
    assert kind.teacher_weights(cfg) == "trained"
    assert distiller_of(cfg, teacher=teacher).teacher is teacher
    cfg[method].TEACHER.INIT = "scratch"
    assert kind.teacher_weights(cfg) == "scratch"
    starts = [distiller_of(cfg, teacher=network("tiny", seed)).teacher.conv.weight for seed in (9, 10)]
    assert torch.equal(*starts)
    assert not torch.equal(starts[0], teacher.conv.weight)
    cfg.EXPERIMENT.SEED = 2
    assert not torch.equal(starts[0], distiller_of(cfg).teacher.conv.weight)


def test_fresh_weights_move_no_other_draw(config):
    cfg = config("DML")
    torch.manual_seed(3)
    one, other = fresh_network(cfg, "tiny", 10, "A"), fresh_network(cfg, "tiny", 10, "A", 2)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert not torch.equal(one.conv.weight, other.conv.weight)


@pytest.mark.parametrize(
    ("method", "drawn", "like"),
    [
        *((name, "teacher", "teacher") for name in FAMILY),
        ("PEERS", "peers.2", "student"),
        ("COTEACH", "scratch", "teacher"),
    ],
)
def test_a_network_that_is_drawn_has_the_arguments_of_the_one_whose_name_it_has(
    config, monkeypatch, method, drawn, like
):
    monkeypatch.setenv("ATSC_ALLOW", "tiny_stages")
    pairs = [("STUDENT", "width=3"), ("TEACHER", "width=6")]
    cfg = config(method, *(word for role, width in pairs for word in (f"DISTILLER.{role}_ARGS", [width])))
    cfg.DISTILLER.STUDENT = cfg.DISTILLER.TEACHER = "tiny_stages:TinyStages"
    networks = {role.lower(): TinyStages(width=int(width[-1])) for role, width in pairs}
    distiller = distiller_of(cfg, **networks)
    assert distiller.get_submodule(drawn).fc.in_features == networks[like].fc.in_features


def test_a_pretrained_teacher_of_other_classes_is_refused_by_name(config):
    cfg = config("DML", "DML.TEACHER.INIT", "pretrained")
    with pytest.raises(ModelRefused, match="student small has 10 classes, teacher tiny 7"):
        distiller_of(cfg, teacher=TinyStages(7))


@pytest.mark.parametrize(("key", "value"), [("TEACHER_CKPT", "teacher.pth"), ("TEACHER_PRETRAINED", True)])
def test_weights_for_a_scratch_teacher_are_refused(config, key, value):
    cfg = config("DML", f"DISTILLER.{key}", value)
    with pytest.raises(ConfigError, match=f"DML.TEACHER.INIT is scratch.*{key} .*{value}.*INIT pretrained"):
        distiller_of(cfg)


# ---- modes, rates, figures ----


@every_method
def test_the_teacher_learns_with_batch_statistics_and_is_measured_with_its_own(config, method):
    distiller = distiller_of(config(method)).train()
    assert all(module.training for module in distiller.modules())
    before = distiller.teacher.bn.running_mean.clone()
    losses_of(distiller)
    moved = distiller.teacher.bn.running_mean.clone()
    assert not torch.equal(moved, before)
    distiller.after_epoch(1, tiny_loader())
    assert torch.equal(distiller.teacher.bn.running_mean, moved)
    assert all(module.training for module in distiller.modules())
    assert not any(module.training for module in distiller.eval().modules())


@every_method
def test_a_second_rate_is_a_group_of_its_own_and_needs_our_trainer(config, method):
    cfg = config(method, f"{method}.TEACHER.LR_SCALE", 0.1)
    distiller, kind = distiller_of(cfg), METHODS[method]
    own, others = distiller.param_groups(cfg)
    assert {id(p) for p in distiller.student.parameters()} <= {id(p) for p in own["params"]}
    assert {id(p) for p in distiller.teacher.parameters()} <= {id(p) for p in others["params"]}
    assert others["lr_scale"] == 0.1
    assert kind.needs(cfg)[OUR_TRAINER] == f"{method}.TEACHER.LR_SCALE 0.1 wants a second rate"
    cfg[method].TEACHER.LR_SCALE = 1.0
    assert OUR_TRAINER not in kind.needs(cfg)


def test_means_are_over_images_and_read_once():
    means = Means("a", "b")
    means.add(2, torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
    means.add(1, torch.tensor([6.0]), torch.tensor([True]))
    kept = means.state()
    assert means.read() == {"a": 3.0, "b": pytest.approx(2 / 3)}
    assert means.read() == {}
    means.load_state(kept)
    assert means.read()["a"] == 3.0
    assert not means.state_dict()


@every_method
def test_the_log_has_the_teachers_top1_on_both_kinds_of_images(config, method):
    distiller = distiller_of(config(method)).train()
    images, target = batch()
    hits = (distiller.teacher(images)[0].argmax(1) == target).sum().item()  # batch statistics: the same twice
    distiller(image=images, target=target)
    figures = distiller.after_epoch(1, tiny_loader()).figures
    distiller.eval()
    by_hand = evaluate(lambda x: distiller.teacher(x)[0], tiny_loader(), torch.device("cpu"))["top1"]
    assert figures["teacher_train_top1"] == pytest.approx(100 * hits / 6)
    assert figures["teacher_top1"] == by_hand


# ---- whole runs ----


@pytest.mark.parametrize("method", EVERY)
def test_a_run_broken_inside_an_epoch_loses_no_count(config, tmp_path, method):
    cfg = config(method, "SOLVER.EPOCHS", 1, "LOG.CHECKPOINT_STEPS", 2)  # of three steps
    trainer_of(cfg, tmp_path / "whole").train()
    broken = trainer_of(cfg, tmp_path / "broken")
    broken.step = Before(broken.step, dying(3))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    trainer_of(cfg, tmp_path / "broken").train(resume=True)
    lines = [[without_times(line) for line in log_of(tmp_path / name)] for name in ("whole", "broken")]
    assert lines[0] == lines[1]


def test_a_resumed_run_with_two_rates_ends_as_the_uninterrupted_one(config, tmp_path):
    cfg = config("DML", "DML.TEACHER.LR_SCALE", 0.1)
    assert_a_continued_run_is_the_whole_one(cfg, tmp_path, trainer_of)


def test_the_command_trains_no_teacher_for_a_scratch_start_and_adapted_gives_out_what_it_became(
    here, capsys, tiny_networks
):
    assert train("dml", *TINY) == 0
    folder = run_folder(here)
    assert "training one" not in capsys.readouterr().out
    assert not (here / "output" / "teachers").exists()
    result = json.loads((folder / "result.json").read_text())
    assert result["params_deployed"] == result["params_student"] < result["params_trained"]
    (teacher,) = result["networks"]
    assert (teacher["name"], teacher["title"], teacher["moved"]) == ("teacher", "tiny_teacher", True)
    assert result["teacher_top1_before"] == teacher["top1_before"]
    assert main(["adapted", str(folder), "--out", "left.pth"]) == 0
    left, latest = checkpoint.load("left.pth")["model"], checkpoint.load(folder / "latest")["model"]
    assert torch.equal(left["fc.weight"], latest["teacher.fc.weight"])
    # What it became is what a pretrained start begins with.
    words = ["DML.TEACHER.INIT", "pretrained", "DISTILLER.TEACHER_CKPT", "left.pth"]
    assert train("dml", *TINY, *words, name="after") == 0
    after = json.loads((run_folder(here, "after") / "result.json").read_text())
    assert after["teacher_top1_before"] == result["teacher_top1_after"]


def test_a_network_drawn_anew_has_the_arguments_of_the_one_whose_name_it_has(config, monkeypatch):
    cfg, given = config("PEERS"), []
    cfg.DISTILLER.STUDENT_ARGS, cfg.DISTILLER.TEACHER_ARGS = ["width=3"], ["width=5"]
    monkeypatch.setattr(named, "new_network", lambda *words: given.append(words[-1]))
    for name in ("small", "tiny", "deep"):
        fresh_network(cfg, name, 10, "PEER")
    cfg.DISTILLER.TEACHER = "small"  # the student's name too
    for kin in ("TEACHER", "STUDENT"):
        fresh_network(cfg, "small", 10, "PEER", kin=kin)
    assert given == [["width=3"], ["width=5"], (), ["width=5"], ["width=3"]]
