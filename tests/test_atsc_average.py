"""A teacher that is the average of a learner's weights: what learns, what follows, what the student sees and keeps."""

import copy

import pytest
import torch
from small_atsc import AVERAGED, atsc_config, double_batch, trainer_of
from tiny import TinyNet

from atsc_plugin.errors import ConfigError
from atsc_plugin.methods.atsc import ATSC
from atsc_plugin.networks.ema import follow
from atsc_plugin.networks.maps import pool


@pytest.fixture
def cfg():
    cfg = atsc_config()
    cfg.merge_from_list(AVERAGED)
    return cfg


def averaged(cfg):
    torch.manual_seed(0)
    return ATSC(TinyNet(width=4), TinyNet(width=6), cfg).double().train()


def apart(distiller):
    """The learner away from the teacher, so that both maps and classifiers differ and drift has a gradient."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in distiller.learner.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return distiller


def parts_of(distiller):
    images, target = double_batch()
    return distiller(image=images, target=target, epoch=1)


def test_the_average_keeps_its_share_of_weights_and_statistics_and_copies_counts():
    average, learner = TinyNet(), TinyNet()
    with torch.no_grad():
        average.fc.bias.fill_(1.0), learner.fc.bias.fill_(3.0)
        average.bn.running_var.fill_(2.0), learner.bn.running_var.fill_(4.0)
        learner.bn.num_batches_tracked.fill_(7)
    follow(average, learner, 0.75)
    assert torch.equal(average.fc.bias, torch.full_like(average.fc.bias, 0.75 * 1 + 0.25 * 3))
    assert torch.equal(average.bn.running_var, torch.full_like(average.bn.running_var, 0.75 * 2 + 0.25 * 4))
    assert average.bn.num_batches_tracked == 7


def test_the_learner_gets_the_teachers_gradients_and_the_teacher_none(cfg):
    distiller = apart(averaged(cfg))
    _, losses = parts_of(distiller)
    names = {part: set() for part in losses}
    for part, loss in losses.items():
        distiller.zero_grad()
        loss.backward(retain_graph=True)
        moved = [name for name, p in distiller.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        names[part] = {name for name in moved if not name.startswith(("student.", "projector."))}
    trunk = {"learner.conv.weight", "learner.bn.weight", "learner.bn.bias"}
    classifier = {"learner.fc.weight", "learner.fc.bias"}
    assert names["loss_feat"] == set()
    assert names["loss_teacher_ce"] == classifier
    assert names["loss_trunk_ce"] == trunk
    assert names["loss_drift"] == trunk | classifier
    learnable = {id(p) for p in distiller.get_learnable_parameters()}
    assert learnable >= {id(p) for p in distiller.learner.parameters()}
    assert not learnable & {id(p) for p in distiller.teacher.parameters()}


def test_the_student_is_matched_with_the_average_in_eval_mode_and_predicts_through_its_classifier(cfg):
    distiller = apart(averaged(cfg))
    start, learner = copy.deepcopy(distiller.teacher), copy.deepcopy(distiller.learner)
    prediction, losses = parts_of(distiller)
    images, _ = double_batch()
    for name, tensor in distiller.teacher.named_parameters():
        expected = 0.9 * start.get_parameter(name) + 0.1 * learner.get_parameter(name)
        torch.testing.assert_close(tensor.data, expected.data, rtol=1e-12, atol=1e-12)
    assert not distiller.teacher.training and distiller.learner.training
    wanted = distiller.teacher(images)[1]["feats"][-1]
    projected = distiller.projector(distiller.student(images)[1]["feats"][-1])
    torch.testing.assert_close(losses["loss_feat"], (projected - wanted).square().mean())
    torch.testing.assert_close(prediction, distiller.teacher.fc(pool(projected)))
    distiller.eval()
    projected = distiller.projector(distiller.student(images)[1]["feats"][-1])
    torch.testing.assert_close(distiller(image=images), distiller.teacher.fc(pool(projected)))


def test_the_learner_takes_the_steps_of_a_teacher_without_average(cfg):
    def after_three_steps(keep):
        cfg.ATSC.TEACHER.AVERAGE = keep
        distiller = averaged(cfg)
        optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            sum(parts_of(distiller)[1].values()).backward()
            optimizer.step()
        return distiller

    followed, alone = after_three_steps(0.9), after_three_steps(0.0)
    for name, tensor in alone.teacher.state_dict().items():
        assert torch.equal(tensor, followed.learner.state_dict()[name]), name
    assert not torch.equal(followed.teacher.conv.weight, followed.learner.conv.weight)


def test_a_batch_in_parts_moves_the_average_as_much_as_a_whole_one(cfg):
    whole = apart(averaged(cfg))
    cfg.SOLVER.ACCUMULATE = 4
    parted = apart(averaged(cfg))
    parts_of(whole)
    for _ in range(4):
        parts_of(parted)
    torch.testing.assert_close(parted.teacher.conv.weight, whole.teacher.conv.weight)


def test_a_learner_past_its_last_epoch_rests_and_the_average_comes_to_it(cfg):
    cfg.ATSC.TEACHER.LAST_EPOCH = 1
    distiller = apart(averaged(cfg))
    images, target = double_batch()
    rested = copy.deepcopy(distiller.learner.state_dict())
    for _ in range(200):
        _, losses = distiller(image=images, target=target, epoch=2)
    assert not losses["loss_trunk_ce"].requires_grad and not distiller.learner.training
    for name, tensor in distiller.learner.state_dict().items():
        assert torch.equal(tensor, rested[name]), name
    torch.testing.assert_close(distiller.teacher.conv.weight, distiller.learner.conv.weight)  # .9 ** 200 is 7e-10


def test_the_monitor_watches_the_average_and_a_resumed_run_has_the_learner(cfg):
    distiller = apart(averaged(cfg))
    kernel = distiller.teacher.conv.weight.detach().clone()
    way = (distiller.learner.conv.weight.detach() - kernel).norm() / kernel.norm()
    assert distiller.after_epoch(1, [double_batch()])["figures"]["drift_conv"] == 0
    parts_of(distiller)  # the average goes a tenth of the way to the learner
    drift = distiller.after_epoch(1, [double_batch()])["figures"]["drift_conv"]
    assert drift == pytest.approx(0.1 * way.item())
    again = averaged(cfg)
    again.load_state_dict(distiller.state_dict())
    assert torch.equal(again.learner.conv.weight, distiller.learner.conv.weight)


def test_the_teachers_accuracy_is_measured_again_after_the_run(cfg):
    assert trainer_of(averaged(cfg), cfg)._teacher_is_trained()
    cfg.ATSC.TEACHER.AVERAGE = 0.0
    assert trainer_of(averaged(cfg), cfg)._teacher_is_trained()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["ATSC.TEACHER.AVERAGE", 1.0], "AVERAGE is 1; expected below 1"),
        (["ATSC.TEACHER.LR_SCALE", 0.0], "there is nothing to average"),
        (["ATSC.LOSS.FEAT_PULL", 1.0], "the feature loss cannot move what learns"),
        (["ATSC.LOSS.TRUNK_CE_WEIGHT", 0.0], "the feature loss cannot move what learns"),
    ],
)
def test_an_average_of_what_cannot_learn_is_refused(cfg, change, told):
    cfg.merge_from_list(change)
    with pytest.raises(ConfigError, match=told):
        averaged(cfg)
