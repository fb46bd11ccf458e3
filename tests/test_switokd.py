"""SWITOKD: the decision against worked numbers, and what a pause leaves alone."""

import pytest
import torch
from co_trained import (
    assert_same_losses,
    co_trained_config,
    distiller_of,
    logits_of,
    losses_of,
    network,
    reached,
    trainer_of,
)
from runs import log_of
from tiny import batch

from atsc_plugin.contract import IDLE_PARAMETERS
from atsc_plugin.errors import PluginError
from atsc_plugin.methods.base import class_of
from atsc_plugin.methods.switokd import distances, pauses, threshold


@pytest.fixture
def config(tmp_path, monkeypatch):
    return lambda *pairs: co_trained_config(
        tmp_path, monkeypatch, "SWITOKD", "SWITOKD.TEACHER.INIT", "pretrained", *pairs
    )


def with_decision(distiller, paused):
    distiller.pauses = lambda *_: paused
    return distiller


def test_the_distances_and_the_threshold_are_those_of_worked_numbers():
    p_s, p_t = torch.tensor([[0.4, 0.3, 0.3]]), torch.tensor([[0.9, 0.05, 0.05]])
    gap, student, teacher = distances(p_s.log(), p_t.log(), torch.tensor([0]))[:, 0]
    assert [gap.item(), student.item(), teacher.item()] == pytest.approx([1.0, 1.2, 0.2])
    # exp(-.2 / 1.4) = .8669 and 1.2 - .8669 * .2 = 1.0266, which is more than 1: both learn
    assert threshold(student, teacher).item() == pytest.approx(1.0266, abs=1e-4)
    assert not pauses(gap, student, teacher)
    # arithmetic of our own: one class more wrong. t .2, s 1.8, G 1.6, exp(-.1) = .9048, delta 1.6190
    p_s = torch.tensor([[0.1, 0.45, 0.45]])
    gap, student, teacher = distances(p_s.log(), p_t.log(), torch.tensor([0]))[:, 0]
    assert threshold(student, teacher).item() == pytest.approx(1.6190, abs=1e-4)
    assert not pauses(gap, student, teacher)
    # and errors that lie elsewhere, p_t (.6, .4, 0), p_s (.5, 0, .5): s 1, t .8, G 1, exp(-.8 / 1.8) = .6412,
    # delta .4870
    p_s, p_t = torch.tensor([[0.5, 1e-9, 0.5]]), torch.tensor([[0.6, 0.4, 1e-9]])
    gap, student, teacher = distances(p_s.log(), p_t.log(), torch.tensor([0]))[:, 0]
    assert threshold(student, teacher).item() == pytest.approx(0.4870, abs=1e-4)
    assert pauses(gap, student, teacher)
    assert not pauses(gap, teacher, student)  # a teacher that is worse learns


def test_gap_and_threshold_are_at_least_the_difference_of_the_errors():
    draw = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(200, 5, generator=draw) for _ in range(2)]
    gap, student, teacher = distances(*logits, torch.arange(200) % 5)
    assert (gap >= student - teacher - 1e-6).all()
    assert (threshold(student, teacher) >= student - teacher - 1e-6).all()
    equal = distances(logits[0], logits[0], torch.arange(200) % 5)
    assert not pauses(*equal).any()
    assert threshold(*equal[1:]).tolist() == pytest.approx((0.3935 * equal[1]).tolist(), rel=1e-3)


def test_the_decision_is_that_of_the_batchs_means(config):
    distiller = distiller_of(config()).train()
    target = batch()[1]
    own, others = logits_of(distiller)
    means = distances(own, others, target).mean(1)
    assert distiller.pauses(own, others, target) == bool(pauses(*means))
    sharp, wrong = 20 * torch.nn.functional.one_hot(target, 10).float(), torch.zeros(6, 10)
    wrong[:, :] = torch.nn.functional.one_hot((target + 1) % 10, 10) * 2.0 + sharp / 10
    assert not distiller.pauses(sharp, wrong, target)


def test_every_loss_reaches_its_own_network_and_none_of_a_paused_teachers_reaches_any(config):
    distiller = distiller_of(config())
    learning = losses_of(distiller)
    paused = losses_of(with_decision(distiller, True))
    assert_same_losses(paused, learning)
    moved = {name: (reached(distiller, learning[name]), reached(distiller, paused[name])) for name in learning}
    assert moved == {
        "loss_ce": ({"student"}, {"student"}),
        "loss_kd": ({"student"}, {"student"}),
        "loss_teacher_ce": ({"teacher"}, set()),
        "loss_teacher_kd": ({"teacher"}, set()),
    }


def test_a_pause_rests_weights_momentum_and_decay_and_moves_the_running_statistics(config, tmp_path):
    cfg = config("SOLVER.EPOCHS", 1)
    trainer = trainer_of(cfg, tmp_path / "run")
    trainer.fit()  # the teacher has momentum now
    teacher, momentum = trainer.distiller.teacher, trainer.step.optimizer.state
    before = [(p.detach().clone(), momentum[p]["momentum_buffer"].clone()) for p in teacher.parameters()]
    mean, student = teacher.bn.running_mean.clone(), trainer.distiller.student.conv.weight.detach().clone()
    assert any(moved.any() for _, moved in before)
    with_decision(trainer.distiller, True)
    images, target = batch()
    trainer.distiller.train()
    trainer.step({"image": images, "target": target, "epoch": 2})
    for p, (weight, moved) in zip(teacher.parameters(), before, strict=True):
        assert torch.equal(p, weight) and torch.equal(momentum[p]["momentum_buffer"], moved)
    assert not torch.equal(teacher.bn.running_mean, mean)
    assert not torch.equal(trainer.distiller.student.conv.weight, student)


def test_the_log_has_the_share_of_paused_images(config, tmp_path):
    trainer = trainer_of(config("SOLVER.EPOCHS", 1), tmp_path / "run")
    answers = iter([True, False, False])  # batches of 8
    trainer.distiller.pauses = lambda *_: next(answers)
    trainer.fit()
    assert log_of(tmp_path / "run")[0]["teacher_paused"] == pytest.approx(1 / 3)


def test_what_it_needs_is_said_and_copies_are_refused(config):
    cfg = config()
    assert "pauses its teacher" in class_of("SWITOKD").needs(cfg)[IDLE_PARAMETERS]
    distiller = distiller_of(cfg, teacher=network("tiny", 2)).train()
    distiller._is_replica = True
    with pytest.raises(PluginError, match="copies would decide apart.*CUDA_VISIBLE_DEVICES"):
        losses_of(distiller)
