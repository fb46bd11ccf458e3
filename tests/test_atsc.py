"""ATSC: the route of each gradient, the formulas, the teacher's own rate, every pair of networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_atsc import atsc_config, double_batch, net, tiny_atsc
from tiny import TinyNet, batch

from atsc_plugin.errors import ConfigError
from atsc_plugin.methods.atsc import ATSC
from atsc_plugin.networks.drift import StartingPoint, drift_penalty


@pytest.fixture
def cfg():
    return atsc_config()


# ---- where each gradient goes ----


def moved_by(distiller, part, **inputs):
    images, target = double_batch()
    distiller.zero_grad()
    distiller(image=images, target=target, epoch=inputs.get("epoch", 1))[1][part].backward()
    return {name for name, p in distiller.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


TEACHER_TRUNK = {"teacher.conv.weight", "teacher.bn.weight", "teacher.bn.bias"}
STUDENT = {"student.conv.weight", "student.bn.weight", "student.bn.bias"}


def projector_of(distiller):
    return {f"projector.{name}" for name, _ in distiller.projector.named_parameters()}


def test_the_feature_loss_moves_student_projector_and_the_teachers_trunk(cfg):
    distiller = tiny_atsc(cfg)
    assert moved_by(distiller, "loss_feat") == STUDENT | TEACHER_TRUNK | projector_of(distiller)


def test_teacher_ce_moves_the_classifier_and_nothing_else(cfg):
    assert moved_by(tiny_atsc(cfg), "loss_teacher_ce") == {"teacher.fc.weight", "teacher.fc.bias"}
    cfg.ATSC.CLASSIFIER.PARAMS = "bias"
    assert moved_by(tiny_atsc(cfg), "loss_teacher_ce") == {"teacher.fc.bias"}


def test_drift_holds_all_weights_or_the_kernels(cfg):
    assert moved_by(tiny_atsc(cfg), "loss_drift") == TEACHER_TRUNK | {"teacher.fc.weight", "teacher.fc.bias"}
    cfg.ATSC.DRIFT.PARAMS = "kernels"
    assert moved_by(tiny_atsc(cfg), "loss_drift") == {"teacher.conv.weight", "teacher.fc.weight"}


def test_the_trunks_ce_moves_the_teachers_trunk_and_not_the_classifier_or_the_student(cfg):
    cfg.ATSC.LOSS.TRUNK_CE_WEIGHT = 1.0
    assert moved_by(tiny_atsc(cfg), "loss_trunk_ce") == TEACHER_TRUNK


def test_a_feature_loss_that_does_not_pull_moves_student_and_projector_only(cfg):
    cfg.ATSC.LOSS.FEAT_PULL = 0.0
    distiller = tiny_atsc(cfg)
    assert moved_by(distiller, "loss_feat") == STUDENT | projector_of(distiller)


def test_a_quarter_of_the_pull_is_a_quarter_of_the_teachers_gradient_and_all_of_the_students(cfg):
    images, target = double_batch()
    gradients = []
    for pull in (1.0, 0.25):
        cfg.ATSC.LOSS.FEAT_PULL = pull
        distiller = tiny_atsc(cfg)
        loss = distiller(image=images, target=target, epoch=1)[1]["loss_feat"]
        loss.backward()
        gradients.append((distiller.teacher.conv.weight.grad, distiller.student.conv.weight.grad, loss.detach()))
    (teacher, student, value), (quarter, same, again) = gradients
    torch.testing.assert_close(quarter, 0.25 * teacher)
    assert torch.equal(same, student) and torch.equal(again, value)


def test_the_students_own_losses_do_not_move_the_shared_classifier_or_the_teacher(cfg):
    cfg.merge_from_list(["ATSC.LOSS.CE_WEIGHT", 1.0, "ATSC.LOSS.KD_WEIGHT", 1.0])
    distiller = tiny_atsc(cfg)
    for part in ("loss_ce", "loss_kd"):
        assert moved_by(distiller, part) == STUDENT | projector_of(distiller)


def test_the_students_own_head_is_frozen_and_gets_no_weight_decay(cfg):
    distiller = tiny_atsc(cfg)
    learnable = {id(p) for p in distiller.get_learnable_parameters()}
    for parameter in distiller.student.fc.parameters():
        assert not parameter.requires_grad
        assert id(parameter) not in learnable


def test_parts_by_name_and_the_optional_ones_only_when_weighted(cfg):
    images, target = double_batch()
    parts = tiny_atsc(cfg)(image=images, target=target, epoch=1)[1]
    assert set(parts) == {"loss_feat", "loss_drift", "loss_teacher_ce"}
    cfg.merge_from_list(["ATSC.LOSS.CE_WEIGHT", 0.5, "ATSC.LOSS.KD_WEIGHT", 0.5])
    assert set(tiny_atsc(cfg)(image=images, target=target, epoch=1)[1]) == {*parts, "loss_ce", "loss_kd"}
    cfg.ATSC.LOSS.TRUNK_CE_WEIGHT = 0.5
    assert "loss_trunk_ce" in tiny_atsc(cfg)(image=images, target=target, epoch=1)[1]


# ---- formulas ----


def test_drift_is_a_plain_sum_of_squares_and_its_gradient_is_twice_the_weighted_difference():
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]], requires_grad=True)
    value = drift_penalty([a, b], [torch.tensor([0.0, 4.0]), torch.tensor([[1.0]])], 10.0)
    assert value.item() == pytest.approx(10 * (1 + 4 + 4))
    (3 * value).backward()
    assert a.grad.tolist() == [3 * 20 * 1.0, 3 * 20 * -2.0]
    assert b.grad.tolist() == [[3 * 20 * 2.0]]


def test_the_drift_gradient_is_autograds():
    parameters = [
        torch.randn(3, 2, dtype=torch.float64, requires_grad=True),
        torch.randn(4, dtype=torch.float64, requires_grad=True),
    ]
    start = [torch.randn_like(p) for p in parameters]
    torch.autograd.gradcheck(lambda *p: drift_penalty(list(p), start, 0.7), tuple(parameters))


def test_losses_are_the_equations(cfg):
    cfg.merge_from_list(["ATSC.LOSS.FEAT_WEIGHT", 2.0, "ATSC.LOSS.TEACHER_CE_WEIGHT", 0.5, "ATSC.DRIFT.WEIGHT", 3.0])
    cfg.merge_from_list(["ATSC.LOSS.CE_WEIGHT", 0.25, "ATSC.LOSS.KD_WEIGHT", 0.75])
    cfg.merge_from_list(["ATSC.LOSS.TRUNK_CE_WEIGHT", 0.125, "ATSC.LOSS.FEAT_PULL", 0.5])
    distiller = tiny_atsc(cfg)
    images, target = double_batch()
    logits, losses = distiller(image=images, target=target, epoch=1)
    with torch.no_grad():
        f_s, f_t = distiller.student(images)[1]["feats"][-1], distiller.teacher(images)[1]["feats"][-1]
        p = distiller.projector(f_s)
        head = distiller.teacher.fc
        z_s, z_t = (f.mean(dim=(2, 3)) @ head.weight.T + head.bias for f in (p, f_t))
        start = dict(distiller.start.items())
        drift = sum(((w - start[n]) ** 2).sum() for n, w in distiller.teacher.named_parameters())
        q = torch.softmax(z_t / 4, 1)
        kl = (q * (q.log() - torch.log_softmax(z_s / 4, 1))).sum(1).mean()
    torch.testing.assert_close(logits, z_s)
    for name, wanted in {
        "loss_feat": 2.0 * ((p - f_t) ** 2).mean(),
        "loss_drift": 3.0 * drift,
        "loss_teacher_ce": 0.5 * F.cross_entropy(z_t, target),
        "loss_trunk_ce": 0.125 * F.cross_entropy(z_t, target),
        "loss_ce": 0.25 * F.cross_entropy(z_s, target),
        "loss_kd": 0.75 * 16 * kl,
    }.items():
        torch.testing.assert_close(losses[name], wanted, msg=name)


def test_the_starting_point_takes_the_networks_place_and_gives_it_back():
    network = TinyNet()
    start = StartingPoint(network)
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        network.conv.weight += 1
        network.bn.running_mean += 2
    moved = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with start.in_place_of(network):
        assert all(torch.equal(tensor, first[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(tensor, moved[name]) for name, tensor in network.state_dict().items())
    assert start.state_dict() == {}


# ---- the teacher's own rate ----


def weights_after(cfg, optimizer_of, steps=4):
    distiller = tiny_atsc(cfg)
    optimizer = optimizer_of(distiller)
    for step in range(steps):
        images, target = double_batch(seed=step)
        optimizer.zero_grad()
        sum(distiller(image=images, target=target, epoch=1)[1].values()).backward()
        optimizer.step()
    return distiller.state_dict()


def test_a_teachers_rate_and_decay_through_its_gradients_make_the_steps_of_a_group_of_its_own(cfg):
    solver = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.05}
    cfg.merge_from_list(["SOLVER.WEIGHT_DECAY", 0.05])

    def two_groups(distiller):
        own = {"params": distiller.teacher_parameters(), "lr": 0.01 * 0.3, "weight_decay": 0.2}
        return torch.optim.SGD([{"params": distiller.student_parameters()}, own], **solver)

    wanted = weights_after(cfg, two_groups)
    cfg.merge_from_list(["ATSC.TEACHER.LR_SCALE", 0.3, "ATSC.TEACHER.WEIGHT_DECAY", 0.2])
    got = weights_after(cfg, lambda distiller: torch.optim.SGD(distiller.get_learnable_parameters(), **solver))
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-9, atol=1e-12, msg=name)


def stepper(distiller):
    """step(epoch): one step of SGD with momentum and decay; names of what it changed of the teacher's state."""
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    images, target = double_batch()

    def step(epoch):
        before = copy.deepcopy(distiller.teacher.state_dict())
        optimizer.zero_grad()
        sum(distiller(image=images, target=target, epoch=epoch)[1].values()).backward()
        optimizer.step()
        return {
            name for name, tensor in distiller.teacher.state_dict().items() if not torch.equal(tensor, before[name])
        }

    return step


MOVING = {"conv.weight", "bn.weight", "bn.running_mean", "fc.weight", "fc.bias"}


def test_a_teacher_that_warms_up_is_simkds_and_moves_afterwards(cfg):
    cfg.merge_from_list(["ATSC.TEACHER.WARMUP_EPOCHS", 2])
    distiller = tiny_atsc(cfg)
    step = stepper(distiller)
    assert step(1) == step(2) == set()
    assert not distiller.teacher.training
    assert all(p.requires_grad for p in distiller.teacher_parameters())
    assert step(3) >= MOVING
    assert distiller.teacher.training


def test_a_teacher_past_its_last_epoch_is_held_still_in_spite_of_momentum_and_decay(cfg):
    cfg.merge_from_list(["ATSC.TEACHER.WARMUP_EPOCHS", 1, "ATSC.TEACHER.LAST_EPOCH", 2])
    distiller = tiny_atsc(cfg)
    step = stepper(distiller)
    assert step(1) == set()
    assert step(2) >= MOVING
    student = distiller.student.conv.weight.clone()
    assert step(3) == step(4) == set()
    assert not distiller.teacher.training
    assert not torch.equal(distiller.student.conv.weight, student)


def make_one_step(distiller):
    """SGD with weight decay, so that whatever is not frozen moves."""
    images, target = double_batch()
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.1, weight_decay=0.1)
    sum(distiller(image=images, target=target, epoch=1)[1].values()).backward()
    optimizer.step()


def test_frozen_bn_keeps_statistics_scales_and_shifts(cfg):
    cfg.merge_from_list(["ATSC.TEACHER.BN", "frozen"])
    distiller = tiny_atsc(cfg)
    before = copy.deepcopy(distiller.teacher.bn.state_dict())
    make_one_step(distiller)
    assert all(torch.equal(tensor, before[name]) for name, tensor in distiller.teacher.bn.state_dict().items())
    assert distiller.teacher.conv.weight.grad.abs().sum() > 0


def test_frozen_affine_bn_keeps_scales_and_shifts_and_takes_the_batchs_statistics(cfg):
    cfg.merge_from_list(["ATSC.TEACHER.BN", "affine_frozen"])
    distiller = tiny_atsc(cfg)
    before = copy.deepcopy(distiller.teacher.bn.state_dict())
    make_one_step(distiller)
    kept = {name for name, tensor in distiller.teacher.bn.state_dict().items() if torch.equal(tensor, before[name])}
    assert kept == {"weight", "bias"}


def test_evaluation_puts_the_teacher_in_eval_mode_and_predicts_through_its_classifier(cfg):
    distiller = tiny_atsc(cfg).eval()
    images, _ = double_batch()
    assert not any(module.training for module in distiller.teacher.modules())
    with torch.no_grad():
        p = distiller.projector(distiller.student(images)[1]["feats"][-1]).mean(dim=(2, 3))
        torch.testing.assert_close(distiller(image=images), distiller.teacher.fc(p))


# ---- every pair, bad input ----


@pytest.mark.parametrize("teacher", ["resnet56", "resnet110", "resnet32x4", "ResNet50", "wrn_40_2", "vgg13"])
@pytest.mark.parametrize("student", ["resnet8x4", "wrn_16_2", "vgg8", "ShuffleV2", "MobileNetV2"])
def test_a_step_of_every_stock_teacher_with_five_students(cfg, teacher, student):
    if teacher == "ResNet50" and student != "MobileNetV2":
        cfg.ATSC.PROJECTOR.FACTOR = 8  # the pair's own projector has 12 M weights and nothing new to show
    distiller = ATSC(net(student), net(teacher), cfg).train()
    images, target = batch(2, classes=100)
    logits, losses = distiller(image=images, target=target, epoch=1)
    sum(losses.values()).backward()
    assert logits.shape == (2, 100)
    assert all(torch.isfinite(part) for part in losses.values())
    assert all(p.grad is not None for p in distiller.get_learnable_parameters())


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
        for _ in range(2000):
            optimizer.zero_grad()
            (10 * theta.square()).sum().backward()
            optimizer.step()
        assert (not theta.isfinite() or theta.abs().item() > 1) == grows
