"""Several teachers: where each gradient goes, how they are handed over, and that a list of one is the single method."""

import copy
import re

import pytest
import torch
from several import K, multi, multi_config, student_and_teachers, tiny
from small_atsc import double_batch
from tiny import batch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atsc_plugin.engine.step import Step
from atsc_plugin.errors import ConfigError, ModelRefused
from atsc_plugin.host import distiller_dict
from atsc_plugin.methods.atsc import ATSC
from atsc_plugin.methods.atsc_multi import ATSCMulti
from atsc_plugin.methods.averkd import AverKD
from atsc_plugin.methods.dkd_multi import DKDMulti
from atsc_plugin.methods.simkd import SimKD
from atsc_plugin.methods.simkd_multi import SimKDMulti
from atsc_plugin.networks.deployed import tensors_of


@pytest.fixture
def cfg():
    return multi_config()


# ---- a list of one ----


def steps(distiller, cfg, epochs=(1, 1, 2, 2)):
    """(state after steps of the engine, losses and logits of each step) in float32."""
    distiller.train()
    step, seen = Step(distiller, cfg), []
    for number, epoch in enumerate(epochs):
        images, target = batch(6, seed=number)
        logits, losses = step({"image": images, "target": target, "epoch": epoch})
        seen.append((logits, losses))
    return distiller.state_dict(), seen


def assert_same_run(single, several, cfg):
    (state, seen), (listed, again) = steps(single, cfg), steps(several, cfg)
    own = {name: re.sub(r"^(teacher|online_teacher|projector|monitors)\.0\.", r"\1.", name) for name in listed}
    assert set(own.values()) == set(state)
    for name, tensor in listed.items():
        assert torch.equal(tensor, state[own[name]]), name
    for (logits, losses), (other, parts) in zip(seen, again, strict=True):
        assert torch.equal(logits, other)
        assert {name: part.item() for name, part in losses.items()} == {name: p.item() for name, p in parts.items()}


KNOBS = [
    [],
    ["ATSC.TEACHER.LR_SCALE", 0.3],
    ["ATSC.TEACHER.WARMUP_EPOCHS", 1],
    ["ATSC.TEACHER.LEARNS", "task", "ATSC.ENSEMBLE", "probs"],
    ["ATSC.TEACHER.EMA", 0.9, "ATSC.TEACHER.LEARNS", "task"],
    ["ATSC.TEACHER.LEARNS", "task", "ATSC.LOSS.REVERSE_KD_WEIGHT", 0.5],
    ["ATSC.TEACHER.BN", "affine_frozen", "ATSC.DRIFT.PARAMS", "kernels"],
    ["ATSC.LOSS.CE_WEIGHT", 0.5, "ATSC.LOSS.KD_WEIGHT", 0.5],
]


@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: ",".join(map(str, knobs)) or "default")
def test_one_teacher_in_the_list_is_single_teacher_atsc_to_the_last_digit(cfg, knobs):
    cfg.merge_from_list(knobs)
    made = []
    for kind, wrap in ((ATSC, lambda net: net), (ATSCMulti, lambda net: [net])):
        student, teachers = student_and_teachers()
        torch.manual_seed(1)
        made.append(kind(student, wrap(teachers[1]), cfg))
    assert_same_run(*made, cfg)


def test_one_teacher_in_the_list_is_simkd_to_the_last_digit(cfg):
    made = []
    for kind in (SimKD, SimKDMulti):
        student, teachers = student_and_teachers()
        torch.manual_seed(1)
        made.append(kind(student, teachers[2], cfg))
    assert_same_run(*made, cfg)


@pytest.mark.parametrize(("ours", "theirs"), [("DKD_MULTI", "DKD"), ("AVERKD", "KD")])
def test_one_teacher_is_the_hosts_dkd_and_with_its_weights_the_hosts_kd(cfg, ours, theirs):
    cfg.merge_from_list(
        ["AVERKD.LOSS.CE_WEIGHT", cfg.KD.LOSS.CE_WEIGHT, "AVERKD.LOSS.KD_WEIGHT", cfg.KD.LOSS.KD_WEIGHT]
    )
    images, target = double_batch()
    values = []
    for name in (ours, theirs):
        student, teachers = student_and_teachers()
        distiller = distiller_dict[name](student, teachers[0], cfg).double().train()
        losses = distiller(image=images, target=target, epoch=3)[1]
        values.append([losses["loss_ce"].item(), losses["loss_kd"].item()])
    assert values[0] == pytest.approx(values[1], rel=1e-12)


# ---- where each gradient goes ----


def gradients(distiller):
    images, target = double_batch()
    distiller.zero_grad()
    sum(distiller(image=images, target=target, epoch=1)[1].values()).backward()
    return {name: p.grad for name, p in distiller.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("kind", "single"), [(ATSCMulti, ATSC), (SimKDMulti, SimKD)])
def test_the_student_gets_the_mean_over_teachers_and_each_teacher_and_projector_the_undivided_gradient(
    cfg, kind, single
):
    cfg.merge_from_list(["ATSC.LOSS.CE_WEIGHT", 0.5, "ATSC.LOSS.KD_WEIGHT", 0.5])
    distiller = multi(kind, cfg)
    got = gradients(distiller)
    student = {name: 0 for name in got if name.startswith("student")}
    compared = 0
    for number in range(K):
        alone = single(copy.deepcopy(distiller.student), copy.deepcopy(distiller.teacher[number]), cfg).double().train()
        alone.projector.load_state_dict(distiller.projector[number].state_dict())
        alone.begin()
        if single is ATSC:
            for (_, start), (_, theirs) in zip(
                alone.theta_0[0].items(), distiller.theta_0[number].items(), strict=True
            ):
                start.copy_(theirs)
        for name, gradient in gradients(alone).items():
            part, _, rest = name.partition(".")
            if part == "student":
                student[name] = student[name] + gradient / K
            else:
                torch.testing.assert_close(got[f"{part}.{number}.{rest}"], gradient, msg=f"{name} of {number}")
                compared += 1
    assert compared == K * (9 + (5 if single is ATSC else 0))  # three convolutions with BN; conv, BN and fc
    assert set(student) == {"student.conv.weight", "student.bn.weight", "student.bn.bias"}
    for name, mean in student.items():
        torch.testing.assert_close(got[name], mean, msg=name)


@pytest.mark.parametrize("kind", [ATSCMulti, SimKDMulti])
def test_no_teachers_loss_reaches_another_teacher_or_its_projector(cfg, kind):
    cfg.merge_from_list(["ATSC.LOSS.CE_WEIGHT", 1.0, "ATSC.LOSS.KD_WEIGHT", 1.0])
    cfg.merge_from_list(["ATSC.TEACHER.LEARNS", "task", "ATSC.LOSS.REVERSE_KD_WEIGHT", 1.0])
    distiller = multi(kind, cfg)
    images, target = double_batch()
    parts = distiller(image=images, target=target, epoch=1)[1]
    assert len(parts) == K * (6 if kind is ATSCMulti else 1)
    for name in parts:
        distiller.zero_grad()
        distiller(image=images, target=target, epoch=1)[1][name].backward()
        moved = [n for n, p in distiller.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        number = int(name.rpartition("_")[2]) - 1
        assert moved
        assert all(n.startswith(("student.", f"teacher.{number}.", f"projector.{number}.")) for n in moved), name


def test_a_frozen_teacher_gets_no_gradient_and_stays_in_eval_mode(cfg):
    for kind in (SimKDMulti, AverKD, DKDMulti):
        distiller = multi(kind, cfg)
        before = copy.deepcopy(distiller.teacher.state_dict())
        moved = gradients(distiller)
        assert moved
        assert not any(name.startswith("teacher") for name in moved)
        assert not any(module.training for module in distiller.teacher.modules())
        assert all(torch.equal(tensor, before[name]) for name, tensor in distiller.teacher.state_dict().items())


@pytest.mark.parametrize("kind", [ATSCMulti, SimKDMulti, AverKD, DKDMulti])
def test_the_student_and_each_teacher_run_once_a_step(cfg, kind):
    cfg.SIMKD.PROJECTOR.COUNT = 2
    distiller = multi(kind, cfg)
    passes = []
    for network in (distiller.student, *distiller.teacher):
        network.conv.register_forward_hook(lambda module, *_: passes.append(id(module)))
    gradients(distiller)
    assert len(passes) == len(set(passes)) == 1 + K


@pytest.mark.parametrize("kind", [ATSCMulti, SimKDMulti, AverKD, DKDMulti])
def test_several_teachers_cost_less_than_as_many_steps_with_one(cfg, kind):
    """By counted work: the student is not run again for each teacher."""
    cost = []
    for count in (1, K):
        student, teachers = student_and_teachers()
        distiller = kind(student, [copy.deepcopy(teachers[0]) for _ in range(count)], cfg).train()
        images, target = batch(6)
        with FlopCounterMode(display=False) as counter:
            sum(distiller(image=images, target=target, epoch=1)[1].values()).backward()
        cost.append(counter.get_total_flops())
    assert cost[0] < cost[1] < K * cost[0]


# ---- the control: one teacher, several projectors ----


def test_one_teacher_with_several_projectors_shares_its_map_and_classifier(cfg):
    cfg.SIMKD.PROJECTOR.COUNT = 3
    student, teachers = student_and_teachers()
    distiller = SimKDMulti(student, teachers[:1], cfg).double().train()
    images, target = double_batch()
    losses = distiller(image=images, target=target)[1]
    assert len({part.item() for part in losses.values()}) == len(losses) == 3  # different initial weights
    names = {name.split(".")[0] for name in tensors_of(distiller.deployed())}
    assert names == {"backbone", "projector", "projector_2", "projector_3", "classifier"}
    got = gradients(distiller)
    assert sum(name.endswith(".0.weight") and name.startswith("projector") for name in got) == 3
    extra = sum(p.numel() for p in distiller.projector.parameters())
    assert distiller.get_extra_parameters() == extra == 3 * sum(p.numel() for p in distiller.projector[0].parameters())


# ---- how teachers are handed over, and bad ones ----


@pytest.mark.parametrize("kind", [ATSCMulti, SimKDMulti, AverKD, DKDMulti])
def test_a_list_a_module_list_and_a_single_network_are_accepted(cfg, kind):
    for wrap in (list, tuple, nn.ModuleList):
        student, teachers = student_and_teachers()
        assert len(kind(student, wrap(teachers), cfg).teacher) == K
    student, teachers = student_and_teachers()
    assert len(kind(student, teachers[0], cfg).teacher) == 1


@pytest.mark.parametrize("kind", [ATSCMulti, SimKDMulti, AverKD, DKDMulti])
def test_no_teacher_no_network_and_the_same_one_twice_are_refused(cfg, kind):
    student, teachers = student_and_teachers()
    for wrong, told in (([], "an empty list"), ([None], "NoneType"), ([teachers[0]] * 2, "same network object twice")):
        with pytest.raises(ModelRefused, match=told):
            kind(student, wrong, cfg)


@pytest.mark.parametrize("kind", [ATSCMulti, SimKDMulti, AverKD, DKDMulti])
def test_fewer_networks_than_the_configuration_lists_are_refused(cfg, kind):
    """A host's own script builds one teacher, whatever the list says."""
    cfg.DISTILLER.TYPE = kind.NAME
    cfg.DISTILLER.TEACHERS = ["one", "two", "three"]
    student, teachers = student_and_teachers()
    with pytest.raises(ModelRefused, match=f"has 3 entries, but {kind.NAME} was handed 1 networks"):
        kind(student, teachers[0], cfg)


def test_a_single_teacher_method_refuses_several_and_takes_a_list_of_one(cfg):
    for kind, key in ((ATSC, "ATSC"), (SimKD, "SIMKD")):
        cfg.DISTILLER.TYPE = key
        student, teachers = student_and_teachers()
        with pytest.raises(ModelRefused, match=f"got 3. Hand over one or DISTILLER.TYPE {key}_MULTI"):
            kind(student, teachers, cfg)
        assert kind(student, teachers[:1], cfg).teacher is teachers[0]


@pytest.mark.parametrize("kind", [ATSCMulti, SimKDMulti, AverKD, DKDMulti])
def test_teachers_of_other_classes_are_refused_together_by_number_and_name(cfg, kind):
    cfg.DISTILLER.TEACHERS = ["one", "two", "three"]
    student, _ = student_and_teachers()
    with pytest.raises(ModelRefused) as refusal:
        kind(student, [tiny(classes=7), tiny(), tiny(classes=20)], cfg)
    for part in ("10", "teacher 1 (one)", "7", "teacher 3 (three)", "20"):
        assert part in str(refusal.value)
    assert "two" not in str(refusal.value)


@pytest.mark.parametrize("kind", [ATSCMulti, SimKDMulti])
def test_map_sizes_that_do_not_divide_are_refused_together(cfg, kind):
    student, _ = student_and_teachers()
    with pytest.raises(ModelRefused) as refusal:
        kind(student, [tiny(6, 7), tiny(6, 4), tiny(5, 7)], cfg)  # 5 pixels against 8
    assert str(refusal.value).count("8 is no multiple of 5") == 2
    assert "teacher 1" in str(refusal.value) and "teacher 3" in str(refusal.value)


def test_the_published_update_is_refused_for_several_teachers(cfg):
    cfg.ATSC.UPDATE = "published"
    with pytest.raises(ConfigError, match="no step for several teachers"):
        multi(ATSCMulti, cfg)
