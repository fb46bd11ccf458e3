"""TEACHER.EMA: what learns, what the average is, what the student is matched with, predicts through and keeps."""

import copy

import pytest
import torch
from small_atsc import EMA, atsc_config, double_batch, moved_by, names_of, one_forward, tiny_atsc, trainer_of
from tiny import TinyNet

from atsc_plugin.errors import ConfigError
from atsc_plugin.losses import pool
from atsc_plugin.networks.ema import update_ema


@pytest.fixture
def cfg():
    return atsc_config(*EMA)


def test_the_average_moves_by_one_minus_the_decay_in_weights_and_statistics_and_copies_counts():
    average, online = TinyNet(), TinyNet()
    with torch.no_grad():
        average.fc.bias.fill_(1.0), online.fc.bias.fill_(3.0)
        average.bn.running_var.fill_(2.0), online.bn.running_var.fill_(4.0)
        online.bn.num_batches_tracked.fill_(7)
    update_ema(average, online, 0.75)
    assert torch.equal(average.fc.bias, torch.full_like(average.fc.bias, 0.75 * 1 + 0.25 * 3))
    assert torch.equal(average.bn.running_var, torch.full_like(average.bn.running_var, 0.75 * 2 + 0.25 * 4))
    assert average.bn.num_batches_tracked == 7


def test_the_online_copy_begins_at_the_filled_teacher(cfg):
    distiller = tiny_atsc(cfg, displacement=0.0)
    for name, tensor in distiller.teacher.state_dict().items():
        assert torch.equal(tensor, distiller.online_teacher.state_dict()[name]), name


def test_the_online_copy_gets_the_teachers_gradients_and_the_average_none(cfg):
    cfg.merge_from_list(["ATSC.LOSS.CE_WEIGHT", 1.0, "ATSC.LOSS.KD_WEIGHT", 1.0])
    distiller = tiny_atsc(cfg, displacement=0.3)
    online = names_of(distiller.online_teacher, "online_teacher")
    student = {"student.conv.weight", "student.bn.weight", "student.bn.bias"}
    student |= names_of(distiller.projector, "projector")
    assert moved_by(distiller, "loss_teacher_ce") == online
    assert moved_by(distiller, "loss_drift") == online
    for term in ("loss_feat", "loss_ce", "loss_kd"):
        assert moved_by(distiller, term) == student, term
    learnable = {id(p) for p in distiller.get_learnable_parameters()}
    assert learnable >= {id(p) for p in distiller.online_teacher.parameters()}
    assert not learnable & {id(p) for p in distiller.teacher.parameters()}


def test_the_student_is_matched_with_the_average_in_eval_mode_and_predicts_through_its_classifier(cfg):
    distiller = tiny_atsc(cfg, displacement=0.3)
    prediction, losses = one_forward(distiller)
    images, _ = double_batch()
    assert not distiller.teacher.training and distiller.online_teacher.training
    wanted = distiller.teacher(images)[1]["feats"][-1]
    projected = distiller.projector(distiller.student(images)[1]["feats"][-1])
    torch.testing.assert_close(losses["loss_feat"], (projected - wanted).square().mean())
    torch.testing.assert_close(prediction, distiller.teacher.fc(pool(projected)))
    distiller.eval()
    projected = distiller.projector(distiller.student(images)[1]["feats"][-1])
    torch.testing.assert_close(distiller(image=images), distiller.teacher.fc(pool(projected)))


def test_a_forward_leaves_the_average_alone_and_after_a_step_it_has_moved(cfg):
    distiller = tiny_atsc(cfg, displacement=0.3)
    start, online = copy.deepcopy(distiller.teacher), copy.deepcopy(distiller.online_teacher)
    one_forward(distiller)
    assert torch.equal(distiller.teacher.conv.weight, start.conv.weight)
    distiller.after_step()
    for name, tensor in distiller.teacher.named_parameters():
        wanted = 0.9 * start.get_parameter(name) + 0.1 * online.get_parameter(name)
        torch.testing.assert_close(tensor, wanted, rtol=1e-12, atol=1e-12)


def steps(cfg, count=3):
    """A distiller after steps of the engine."""
    distiller = tiny_atsc(cfg)
    trainer = trainer_of(distiller, cfg)
    for seed in range(count):
        images, target = double_batch(seed=seed)
        trainer.step({"image": images, "target": target, "epoch": 1})
    return distiller


def test_the_online_copy_takes_the_steps_of_a_teacher_without_average(cfg):
    followed = steps(cfg)
    cfg.ATSC.TEACHER.EMA = 0.0
    alone = steps(cfg)
    for name, tensor in alone.teacher.state_dict().items():
        assert torch.equal(tensor, followed.online_teacher.state_dict()[name]), name
    assert not torch.equal(followed.teacher.conv.weight, followed.online_teacher.conv.weight)


def test_with_gradient_accumulation_the_average_moves_once_per_optimizer_step(cfg, monkeypatch):
    cfg.SOLVER.ACCUMULATE = 3
    moves = []
    monkeypatch.setattr("atsc_plugin.methods.atsc.update_ema", lambda *args: moves.append(args))
    steps(cfg, count=2)
    assert len(moves) == 2


def test_the_monitor_watches_the_average_and_a_checkpoint_has_the_online_copy(cfg):
    distiller = tiny_atsc(cfg, displacement=0.3)
    kernel = distiller.teacher.conv.weight.detach().clone()
    way = (distiller.online_teacher.conv.weight.detach() - kernel).norm() / kernel.norm()
    assert distiller.after_epoch(1, [double_batch()]).figures["drift_conv"] == 0
    distiller.after_step()  # the average goes a tenth of the way to the online copy
    assert distiller.after_epoch(1, [double_batch()]).figures["drift_conv"] == pytest.approx(0.1 * way.item())
    again = tiny_atsc(cfg)
    again.load_state_dict(distiller.state_dict())
    assert torch.equal(again.online_teacher.conv.weight, distiller.online_teacher.conv.weight)


def test_the_averaged_teacher_is_a_network_that_the_run_changes(cfg):
    distiller = tiny_atsc(cfg)
    (network,) = distiller.networks()
    assert (network.name, network.module, network.moves) == ("teacher", distiller.teacher, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["ATSC.TEACHER.EMA", 1.0], "EMA is 1; expected below 1"),
        (["ATSC.TEACHER.LR_SCALE", 0.0], "nothing moves that could be averaged"),
        (["ATSC.TEACHER.LEARNS", "features"], "the feature loss cannot move what learns"),
        (["SOLVER.TRAINER", "base"], "averages weights after every step.*Use SOLVER.TRAINER plugin"),
    ],
)
def test_an_average_of_what_cannot_learn_is_refused(cfg, change, message):
    cfg.merge_from_list(change)
    with pytest.raises(ConfigError, match=message):
        tiny_atsc(cfg)
