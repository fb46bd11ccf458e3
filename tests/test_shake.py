"""SHAKE: the normalisations and losses written out, who is moved by which, the head's sums, what is deployed."""

import math

import pytest
import torch
import torch.nn.functional as F
from runs import log_of, tiny_loader
from small_runs import refused, train
from tiny import batch
from tiny_stages import TinyStages

import atsc_plugin
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import CFG, cifar_model_dict
from atsc_plugin.methods.shake import SHAKE, normalised
from atsc_plugin.networks.deployed import deployed_of, tensors_of

NO_SHADOW = ["SHAKE.LOSS.KD_WEIGHT", 0.0, "SHAKE.SHADOW.CE_WEIGHT", 0.0, "SHAKE.SHADOW.KD_WEIGHT", 0.0,
             "SHAKE.SHADOW.MSE_WEIGHT", 0.0]  # fmt: skip


@pytest.fixture
def cfg(tmp_path):
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "SHAKE", "DISTILLER.TEACHER", "tiny", "DISTILLER.STUDENT", "small"])
    cfg.merge_from_list(["LOG.PREFIX", str(tmp_path), "EXPERIMENT.NAME", "run", "SOLVER.LR", 0.05])
    return cfg


def tiny(cfg, *overrides, **teacher):
    cfg.merge_from_list(list(overrides))
    torch.manual_seed(0)
    return SHAKE(TinyStages(width=2), TinyStages(stages=3, **teacher), cfg)


def losses_of(distiller):
    images, target = batch()
    return distiller.train()(image=images, target=target)[1]


def reached(distiller, loss):
    """Which of its modules a loss gives a gradient to."""
    distiller.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {name.partition(".")[0] for name, p in distiller.named_parameters() if p.grad is not None}


# ---- the formulas ----


def test_layer_divides_by_the_deviation_of_all_classes_and_zscore_by_that_of_one_less():
    logits = torch.tensor([[1.0, 2.0, 3.0, 6.0]])  # mean 3; squares 4 + 1 + 0 + 9 = 14
    centred = torch.tensor([[-2.0, -1.0, 0.0, 3.0]])
    torch.testing.assert_close(normalised(logits, "layer"), 3.1415 * centred / math.sqrt(14 / 4))
    torch.testing.assert_close(normalised(logits, "zscore"), centred / math.sqrt(14 / 3))
    assert normalised(logits, "none") is logits


@pytest.mark.parametrize("how", ["layer", "zscore"])
def test_a_normalised_vector_knows_neither_scale_nor_shift(how):
    logits = batch()[0].flatten(1)[:, :10].double()
    torch.testing.assert_close(normalised(5 * logits - 3, how), normalised(logits, how), rtol=1e-5, atol=1e-6)
    assert torch.isfinite(normalised(torch.ones(2, 10), how)).all()  # no class stands out


def kl(wanted, logits, temperature):
    p, q = (torch.softmax(each / temperature, 1) for each in (wanted, logits))
    return (p * (p / q).log()).sum() / len(p)


@pytest.mark.parametrize("how", ["layer", "zscore", "none"])
def test_the_five_losses_are_the_formulas_with_their_weights(cfg, how):
    weights = ["SHAKE.LOSS.CE_WEIGHT", 2.0, "SHAKE.LOSS.KD_WEIGHT", 3.0, "SHAKE.SHADOW.CE_WEIGHT", 5.0,
               "SHAKE.SHADOW.KD_WEIGHT", 7.0, "SHAKE.SHADOW.MSE_WEIGHT", 11.0, "SHAKE.TEMPERATURE", 2.0]  # fmt: skip
    distiller = tiny(cfg, *weights, "SHAKE.NORM", how).train()
    images, target = batch()
    logits, losses = distiller(image=images, target=target)
    with torch.no_grad():
        own, wanted = distiller.student(images)[0], distiller.teacher(images)[0]
        shadow, frozen = distiller.shadow(distiller.teacher, images)
    torch.testing.assert_close(logits, own)
    torch.testing.assert_close(frozen, wanted)
    s, h, t = (normalised(each, how) for each in (own, shadow, wanted))
    rows = torch.arange(6)
    ce, shadow_ce = (
        -torch.log_softmax(each, 1)[rows, target].mean() for each in ((own, shadow) if how == "zscore" else (s, h))
    )
    by_hand = {
        "loss_ce": 2 * ce,
        "loss_kd": 3 * 4 * kl(h, s, 2),
        "loss_shadow_ce": 5 * shadow_ce,
        "loss_shadow_kd": 7 * 4 * kl(s, h, 2),
        "loss_shadow_mse": 11 * ((h - t) ** 2).sum() / 60,
    }
    assert losses.keys() == by_hand.keys()
    for name, value in by_hand.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_the_head_adds_each_stage_to_the_reduced_sum_of_those_before_it(cfg):
    distiller = tiny(cfg).eval()
    images, head, teacher = batch()[0], distiller.shadow, distiller.teacher
    with torch.no_grad():
        _, one, two, three = teacher(images)[1]["feats"]
        x = head.reduce[1](head.reduce[0](one) + head.lateral[0](two)) + head.lateral[1](three)
        by_hand = teacher.fc(head.out(x).mean(dim=(2, 3)))
        torch.testing.assert_close(head(teacher, images)[0], by_hand)


def test_the_heads_size_on_the_networks_of_the_released_code(cfg):
    """ResNet32x4's maps: 64 x 32 x 32, 128 x 16 x 16, 256 x 8 x 8; BN has two parameters a channel, and no fc."""
    student, teacher = (cifar_model_dict[name][0](num_classes=100) for name in ("resnet8x4", "resnet32x4"))
    distiller = SHAKE(student, teacher, cfg)
    kernels = 9 * 64 * 128 + 128 * 128 + 9 * 128 * 256 + 256 * 256 + 9 * 256 * 256
    assert distiller.get_extra_parameters() == kernels + 2 * (128 + 128 + 256 + 256 + 256)
    assert distiller.shadow.reduce[0][0].stride == distiller.shadow.reduce[1][0].stride == (2, 2)


def test_at_the_teachers_logits_the_distance_is_zero(cfg):
    distiller = tiny(cfg)
    images, target = batch()
    wanted = distiller.teacher(images)[0].detach()
    distiller.shadow.forward = lambda teacher, image: (wanted.clone(), wanted)
    losses = distiller.train()(image=images, target=target)[1]
    assert losses["loss_shadow_mse"].item() == 0


# ---- who is moved by what ----


@pytest.mark.parametrize("how", ["layer", "zscore", "none"])
def test_every_loss_reaches_its_own_side_and_never_the_teacher(cfg, how):
    distiller = tiny(cfg, "SHAKE.NORM", how)
    losses = losses_of(distiller)
    assert {name: reached(distiller, loss) for name, loss in losses.items()} == {
        "loss_ce": {"student"},
        "loss_kd": {"student"},
        "loss_shadow_ce": {"shadow"},
        "loss_shadow_kd": {"shadow"},
        "loss_shadow_mse": {"shadow"},
    }
    reached(distiller, sum(losses.values()))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in distiller.shadow.parameters())


def test_a_step_moves_student_and_head_with_their_statistics_and_no_number_of_the_teacher(cfg):
    distiller = tiny(cfg)
    before = {name: tensor.clone() for name, tensor in distiller.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.1, weight_decay=0.1)
    sum(losses_of(distiller).values()).backward()
    optimizer.step()
    assert not distiller.teacher.training and distiller.shadow.out[1].training
    for name, tensor in distiller.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("teacher."), name


def test_without_a_shadow_and_a_norm_the_student_has_the_gradient_of_cross_entropy_to_the_bit(cfg):
    distiller = tiny(cfg, *NO_SHADOW, "SHAKE.NORM", "none")
    images, target = batch()
    parameters = list(distiller.student.parameters())
    plain = torch.autograd.grad(F.cross_entropy(distiller.student.train()(images)[0], target), parameters)
    sum(losses_of(distiller).values()).backward()
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(parameters, plain, strict=True))
    assert all(not p.grad.any() for p in distiller.shadow.parameters())


def test_the_head_alone_comes_nearer_to_the_teacher_from_step_to_step(cfg):
    distiller = tiny(cfg, *NO_SHADOW, "SHAKE.SHADOW.MSE_WEIGHT", 1.0)
    optimizer = torch.optim.SGD(distiller.shadow.parameters(), lr=0.02)
    distances = []
    for _ in range(6):
        distance = losses_of(distiller)["loss_shadow_mse"]
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        distances.append(distance.item())
    assert distances == sorted(distances, reverse=True) and distances[-1] < 0.7 * distances[0]


# ---- the run ----


def test_a_run_measures_the_head_before_and_after_and_deploys_the_student_alone(cfg, tmp_path):
    cfg.SOLVER.EPOCHS = 1
    loaders = tiny_loader(seed=5), tiny_loader(start=1)
    result = PluginTrainer("run", tiny(cfg), *loaders, cfg, folder=tmp_path / "run").train()
    teacher, shadow = result["networks"]
    assert (teacher["moved"], shadow["moved"], shadow["title"]) == (False, True, "shadow head on tiny")
    assert result["teacher_top1_after"] == result["teacher_top1_before"]
    assert log_of(tmp_path / "run")[-1]["shadow_top1"] == shadow["top1_after"]
    assert result["params_deployed"] == result["params_student"] < result["params_trained"]


def test_the_student_leaves_alone(cfg):
    distiller = tiny(cfg).eval()
    module, images = deployed_of(distiller), batch()[0]
    assert tensors_of(module).keys() == {f"backbone.{name}" for name in distiller.student.state_dict()}
    assert torch.equal(module(images), distiller.student(images)[0])
    assert torch.equal(distiller(image=images), distiller.student(images)[0])


# ---- bad input ----


def test_stages_are_chosen_and_wrong_ones_refused_by_name(cfg, here, capsys):
    assert len(tiny(cfg).shadow.lateral) == 2
    assert len(tiny(cfg, "SHAKE.SHADOW.STAGES", [0, 3]).shadow.lateral) == 1
    assert len(tiny(cfg, "SHAKE.SHADOW.STAGES", [3]).shadow.lateral) == 0
    with pytest.raises(ModelRefused, match="SHAKE.SHADOW.STAGES names 4; teacher tiny has maps 0"):
        tiny(cfg, "SHAKE.SHADOW.STAGES", [1, 4])
    refused(capsys, train("shake", "SHAKE.SHADOW.STAGES", "[2, 1]"), "SHAKE.SHADOW.STAGES: got [2, 1], expected rising")


def test_maps_that_do_not_shrink_by_whole_steps_and_other_classes_are_refused_by_name(cfg):
    class Uneven(TinyStages):
        def forward(self, x):
            logits, feats = super().forward(x)
            feats["feats"][2] = F.interpolate(feats["feats"][2], size=3)
            return logits, feats

    with pytest.raises(ModelRefused, match="teacher tiny has a map of 3 pixels in stage 2 behind one of 4"):
        SHAKE(TinyStages(), Uneven(stages=2), cfg)
    with pytest.raises(ModelRefused, match="student small has 10 classes, teacher tiny 7"):
        tiny(cfg, num_classes=7)
