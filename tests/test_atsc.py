"""ATSC: the route of each gradient, the formulas, the teacher's own rate, every teacher's map, bad keys."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_atsc import atsc_config, double_batch, moved_by, names_of, one_forward, tiny_atsc
from tiny import TinyNet

from atsc_plugin.engine.optim import set_learning_rate
from atsc_plugin.engine.step import Step
from atsc_plugin.errors import ConfigError
from atsc_plugin.methods.atsc import ATSC
from atsc_plugin.networks.drift import StartingPoint, drift_penalty


@pytest.fixture
def cfg():
    return atsc_config()


# ---- where each gradient goes ----

TRUNK = {"teacher.conv.weight", "teacher.bn.weight", "teacher.bn.bias"}
CLASSIFIER = {"teacher.fc.weight", "teacher.fc.bias"}
STUDENT = {"student.conv.weight", "student.bn.weight", "student.bn.bias"}  # all but its own head


def test_the_feature_loss_moves_student_projector_and_the_teachers_trunk(cfg):
    distiller = tiny_atsc(cfg)
    assert moved_by(distiller, "loss_feat") == STUDENT | TRUNK | names_of(distiller.projector, "projector")


def test_teacher_ce_moves_the_classifier_and_nothing_else(cfg):
    assert moved_by(tiny_atsc(cfg), "loss_teacher_ce") == CLASSIFIER


def test_where_the_teacher_learns_its_task_its_ce_moves_all_of_it_and_the_feature_loss_none(cfg):
    cfg.ATSC.TEACHER.LEARNS = "task"
    distiller = tiny_atsc(cfg)
    assert moved_by(distiller, "loss_teacher_ce") == TRUNK | CLASSIFIER
    assert moved_by(distiller, "loss_feat") == STUDENT | names_of(distiller.projector, "projector")


def test_drift_holds_all_weights_or_the_kernels(cfg):
    assert moved_by(tiny_atsc(cfg), "loss_drift") == TRUNK | CLASSIFIER
    cfg.ATSC.DRIFT.PARAMS = "kernels"
    assert moved_by(tiny_atsc(cfg), "loss_drift") == {"teacher.conv.weight", "teacher.fc.weight"}


@pytest.mark.parametrize("learns", ["features", "task"])
def test_the_students_own_losses_do_not_move_the_shared_classifier_or_the_teacher(cfg, learns):
    cfg.merge_from_list(["ATSC.LOSS.CE_WEIGHT", 1.0, "ATSC.LOSS.KD_WEIGHT", 1.0, "ATSC.TEACHER.LEARNS", learns])
    distiller = tiny_atsc(cfg)
    for term in ("loss_ce", "loss_kd"):
        assert moved_by(distiller, term) == STUDENT | names_of(distiller.projector, "projector")


def test_the_students_own_head_is_frozen_and_gets_no_weight_decay(cfg):
    distiller = tiny_atsc(cfg)
    learnable = {id(p) for p in distiller.get_learnable_parameters()}
    for parameter in distiller.student.fc.parameters():
        assert not parameter.requires_grad
        assert id(parameter) not in learnable


def test_optional_terms_are_there_only_when_weighted(cfg):
    assert set(one_forward(tiny_atsc(cfg))[1]) == {"loss_feat", "loss_drift", "loss_teacher_ce"}
    cfg.merge_from_list(["ATSC.LOSS.CE_WEIGHT", 0.5, "ATSC.LOSS.KD_WEIGHT", 0.5, "ATSC.DRIFT.WEIGHT", 0.0])
    assert set(one_forward(tiny_atsc(cfg))[1]) == {"loss_feat", "loss_teacher_ce", "loss_ce", "loss_kd"}


# ---- formulas ----


def test_drift_is_a_plain_sum_of_squares_and_its_gradient_is_twice_the_weighted_difference():
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)
    value = drift_penalty([a, b], [torch.tensor([0.0, 4.0]), torch.tensor([[1.0]])], 10.0)
    assert value.item() == pytest.approx(10 * (1 + 4 + 4))
    (3 * value).backward()
    assert a.grad.tolist() == [3 * 20 * 1.0, 3 * 20 * -2.0]
    assert b.grad.tolist() == [[3 * 20 * 2.0]]


def test_the_drift_gradient_is_autograds():
    parameters = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((3, 2), (4,))]
    start = [torch.randn_like(p) for p in parameters]
    torch.autograd.gradcheck(lambda *p: drift_penalty(list(p), start, 0.7), tuple(parameters))


@pytest.mark.parametrize("learns", ["features", "task"])
def test_losses_are_the_equations(cfg, learns):
    cfg.merge_from_list(["ATSC.LOSS.FEAT_WEIGHT", 2.0, "ATSC.LOSS.TEACHER_CE_WEIGHT", 0.5, "ATSC.DRIFT.WEIGHT", 3.0])
    cfg.merge_from_list(["ATSC.LOSS.CE_WEIGHT", 0.25, "ATSC.LOSS.KD_WEIGHT", 0.75, "ATSC.TEACHER.LEARNS", learns])
    distiller = tiny_atsc(cfg)
    images, target = double_batch()
    logits, losses = one_forward(distiller)
    with torch.no_grad():
        f_s, f_t = distiller.student(images)[1]["feats"][-1], distiller.teacher(images)[1]["feats"][-1]
        p = distiller.projector(f_s)
        head = distiller.teacher.fc
        z_s, z_t = (f.mean(dim=(2, 3)) @ head.weight.T + head.bias for f in (p, f_t))
        start = dict(distiller.theta_0[0].items())
        drift = sum(((w - start[n]) ** 2).sum() for n, w in distiller.teacher.named_parameters())
        q = torch.softmax(z_t / 4, 1)
        kl = (q * (q.log() - torch.log_softmax(z_s / 4, 1))).sum(1).mean()
    torch.testing.assert_close(logits, z_s)
    wanted = {
        "loss_feat": 2.0 * ((p - f_t) ** 2).mean(),
        "loss_drift": 3.0 * drift,
        "loss_teacher_ce": 0.5 * F.cross_entropy(z_t, target),
        "loss_ce": 0.25 * F.cross_entropy(z_s, target),
        "loss_kd": 0.75 * 16 * kl,
    }
    assert losses.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name], value, msg=name)


def test_the_starting_point_takes_the_networks_place_and_gives_it_back():
    network = TinyNet()
    start = StartingPoint(network)
    first = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        network.conv.weight += 1
        network.bn.running_mean += 2
    moved = copy.deepcopy(network.state_dict())
    with start.in_place_of(network):
        assert all(torch.equal(tensor, first[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(tensor, moved[name]) for name, tensor in network.state_dict().items())
    assert start.state_dict() == {}


def test_theta_0_is_the_teacher_as_it_was_filled_after_the_distiller_was_built_and_is_remembered_once(cfg):
    distiller = ATSC(TinyNet(width=4), TinyNet(width=6), cfg).double().train()
    with torch.no_grad():
        distiller.teacher.fc.bias.fill_(3.0)  # `build` fills the teacher in place
    assert one_forward(distiller)[1]["loss_drift"] == 0
    with torch.no_grad():
        distiller.teacher.fc.bias += 0.5
    assert one_forward(distiller)[1]["loss_drift"].item() == pytest.approx(10 * 10 * 0.25)  # DRIFT, ten biases


# ---- the teacher's own rate, and when it learns ----


def test_the_teachers_rate_is_a_group_of_its_own_whose_scale_multiplies_the_schedules_rate(cfg):
    assert isinstance(tiny_atsc(cfg).param_groups(cfg)[0], torch.nn.Parameter)  # one rate: no groups
    cfg.ATSC.TEACHER.LR_SCALE = 0.3
    distiller = tiny_atsc(cfg)
    optimizer = Step(distiller, cfg).optimizer
    set_learning_rate(optimizer, 0.02)
    student, teacher = optimizer.param_groups
    assert (student["lr"], teacher["lr"]) == (0.02, pytest.approx(0.3 * 0.02))
    assert {id(p) for p in teacher["params"]} == {id(p) for p in distiller.teacher.parameters()}
    assert {id(p) for p in student["params"]} == {id(p) for p in distiller.student_parameters()}


def teacher_moved(distiller):
    """step(epoch): one SGD step with momentum and weight decay; names of the teacher's tensors that it changed."""
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)

    def step(epoch):
        before = copy.deepcopy(distiller.teacher.state_dict())
        optimizer.zero_grad()
        sum(one_forward(distiller, epoch)[1].values()).backward()
        optimizer.step()
        after = distiller.teacher.state_dict()
        return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}

    return step


MOVING = {"conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "fc.weight", "fc.bias"}


def test_a_teacher_that_warms_up_is_simkds_and_moves_afterwards(cfg):
    cfg.ATSC.TEACHER.WARMUP_EPOCHS = 2
    distiller = tiny_atsc(cfg)
    step = teacher_moved(distiller)
    assert step(1) == step(2) == set()
    assert not distiller.teacher.training
    assert all(p.requires_grad for p in distiller.teacher_parameters())
    assert step(3) >= MOVING
    assert distiller.teacher.training


def test_a_teacher_of_rate_zero_gets_no_gradient_hence_no_decay(cfg):
    cfg.ATSC.TEACHER.LR_SCALE = 0.0
    distiller = tiny_atsc(cfg)
    sum(one_forward(distiller)[1].values()).backward()
    assert all(p.grad is None for p in distiller.teacher.parameters())


def test_frozen_affine_bn_keeps_scales_and_shifts_and_takes_the_batchs_statistics(cfg):
    assert teacher_moved(tiny_atsc(cfg))(1) >= MOVING
    cfg.ATSC.TEACHER.BN = "affine_frozen"
    moved = teacher_moved(tiny_atsc(cfg))(1)
    assert MOVING - moved == {"bn.weight", "bn.bias"}


def test_evaluation_puts_the_teacher_in_eval_mode_and_predicts_through_its_classifier(cfg):
    distiller = tiny_atsc(cfg).eval()
    images, _ = double_batch()
    assert not any(module.training for module in distiller.teacher.modules())
    with torch.no_grad():
        p = distiller.projector(distiller.student(images)[1]["feats"][-1]).mean(dim=(2, 3))
        torch.testing.assert_close(distiller(image=images), distiller.teacher.fc(p))


# ---- every stock teacher, bad keys ----


def test_a_drift_so_stiff_that_sgd_diverges_is_refused(cfg):
    cfg.merge_from_list(["SOLVER.LR", 0.05, "SOLVER.MOMENTUM", 0.9, "ATSC.DRIFT.WEIGHT", 38.0])
    with pytest.raises(ConfigError, match="is 3.8; SGD with momentum 0.9 diverges at 3.8"):  # 0.05 * 2 * 38 = 2 * 1.9
        tiny_atsc(cfg)
    cfg.ATSC.DRIFT.WEIGHT = 37.9
    tiny_atsc(cfg)


def test_the_limit_is_where_sgd_really_diverges():
    for factor, grows in ((0.99, False), (1.01, True)):
        theta = torch.ones(1, requires_grad=True)
        optimizer = torch.optim.SGD([theta], lr=factor * 2 * 1.9 / (2 * 10), momentum=0.9)
        for _ in range(1000):
            optimizer.zero_grad()
            (10 * theta.square()).sum().backward()
            optimizer.step()
        assert (not theta.isfinite() or theta.abs().item() > 1) == grows
