"""The released step: its recorded figures, a description in plain torch, the fused step beside it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from recorded import assert_close, fill, image, labels, load_contract, traced_tensors
from small_atsc import RELEASED, atsc_config, moved_by, net, one_forward, tiny_atsc, trainer_of
from tiny import TinyNet

from atsc_plugin.errors import ConfigError
from atsc_plugin.methods.atsc import ATSC


@pytest.fixture
def cfg():
    return atsc_config()


def filled(distiller):
    """The closed-form weights in double precision, and theta_0 the teacher's."""
    fill(distiller.student, 1), fill(distiller.teacher, 0), fill(distiller.projector, 2)
    distiller.theta_0.double()
    distiller.begin()


def test_three_published_steps_equal_the_trace_of_the_released_code(cfg):
    trace = load_contract()["published_step_traces"]["atsc resnet32x4->resnet8x4"]
    cfg.merge_from_list([*RELEASED, "SOLVER.LR", trace["lr"], "SOLVER.WEIGHT_DECAY", trace["weight_decay"]])
    distiller = ATSC(net("resnet8x4"), net("resnet32x4"), cfg)
    filled(distiller)
    trainer = trainer_of(distiller, cfg)
    distiller.train()
    for step, figures in enumerate(trace["steps"]):
        inputs = {"image": image(8, seed=70 + step), "target": labels(8, shift=step), "epoch": 1}
        logits, losses = trainer.step(inputs)
        first = sum(part for name, part in losses.items() if name != "loss_teacher_ce")
        assert first.item() == pytest.approx(figures["loss"], rel=1e-7)
        assert 100 * (logits.argmax(1) == inputs["target"]).double().mean() == pytest.approx(figures["top1_projected"])
        for name, tensor in traced_tensors(distiller).items():
            assert_close(tensor, figures[name], rel=1e-7)


def released_step_by_hand(student, teacher, projector, start, images, target, weights, temperature, optimizers):
    """The released training step in plain torch, written from its description: no part of ours is used."""
    first, second = optimizers
    own, feats = student(images)
    wanted, teacher_feats = teacher(images)
    source, goal = feats["feats"][-1], teacher_feats["feats"][-1]
    side = min(source.shape[-1], goal.shape[-1])
    projected = projector(F.adaptive_avg_pool2d(source, side))
    mse = ((projected - F.adaptive_avg_pool2d(goal, side)) ** 2).mean()
    drift = sum(
        ((p - s) ** 2).sum() for p, s in zip(list(teacher.parameters())[:-1], start, strict=False) if p.ndim > 1
    )
    log_p, q = torch.log_softmax(own / temperature, 1), torch.softmax(wanted / temperature, 1)
    kl = (q * (q.log() - log_p)).sum() / len(target) * temperature**2
    ce = -torch.log_softmax(own, 1)[range(len(target)), target].mean()
    feat_weight, drift_weight, ce_weight, kd_weight = weights
    first.zero_grad()
    (feat_weight * mse + drift_weight * drift + ce_weight * ce + kd_weight * kl).backward()
    first.step()
    again = -torch.log_softmax(teacher(images)[0], 1)[range(len(target)), target].mean()
    second.zero_grad()
    again.backward()
    second.step()


@pytest.mark.parametrize(
    ("student", "teacher", "weights"),
    [
        ("resnet8", "resnet14", (1.0, 1.0, 0.0, 0.0)),
        ("resnet8", "resnet8x4", (0.7, 3.0, 0.5, 0.9)),
        ("vgg8", "vgg11", (1.0, 1.0, 0.3, 0.0)),
        ("resnet8", "vgg8", (1.0, 10.0, 0.0, 0.4)),
    ],
)
@pytest.mark.usefixtures("narrow_vgg")
def test_published_steps_equal_the_description_also_with_ce_kd_other_widths_and_vgg(cfg, student, teacher, weights):
    cfg.merge_from_list([*RELEASED, "SOLVER.LR", 0.002])
    for key, value in zip(
        ("LOSS.FEAT_WEIGHT", "DRIFT.WEIGHT", "LOSS.CE_WEIGHT", "LOSS.KD_WEIGHT"), weights, strict=True
    ):
        cfg.merge_from_list([f"ATSC.{key}", value])
    distiller = ATSC(net(student), net(teacher), cfg)
    filled(distiller)
    s, t, p = (copy.deepcopy(m).train() for m in (distiller.student, distiller.teacher, distiller.projector))
    start = [parameter.detach().clone() for parameter in t.parameters()]
    solver = {"lr": cfg.SOLVER.LR, "momentum": cfg.SOLVER.MOMENTUM, "weight_decay": cfg.SOLVER.WEIGHT_DECAY}
    both = [*s.parameters(), *p.parameters(), *t.parameters()]
    optimizers = torch.optim.SGD(both, **solver), torch.optim.SGD([list(t.parameters())[-1]], **solver)
    trainer = trainer_of(distiller, cfg)
    distiller.train()
    for step in range(3):
        inputs = {"image": image(2, seed=70 + step), "target": labels(2, shift=step), "epoch": 1}
        released_step_by_hand(s, t, p, start, inputs["image"], inputs["target"], weights, 4.0, optimizers)
        trainer.step(inputs)
    for ours, theirs in ((distiller.student, s), (distiller.teacher, t), (distiller.projector, p)):
        for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_the_fused_gradients_are_the_published_ones_for_every_parameter_but_the_classifiers(cfg):
    cfg.merge_from_list([*RELEASED, "ATSC.DRIFT.PARAMS", "kernels"])
    published = tiny_atsc(cfg)
    cfg.ATSC.UPDATE = "fused"
    fused = tiny_atsc(cfg)
    for distiller in (published, fused):
        sum(one_forward(distiller)[1].values()).backward()
    compared = 0
    for (name, a), (_, b) in zip(published.named_parameters(), fused.named_parameters(), strict=True):
        if "fc." not in name:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12, msg=name)
            compared += 1
    # conv, BN weight and bias of both networks; three convolutions with BN in the projector
    assert compared == 3 + 3 + 9


def test_the_drift_term_holds_the_kernels_whatever_drift_params_says(cfg):
    cfg.merge_from_list([*RELEASED, "ATSC.DRIFT.PARAMS", "all"])
    assert moved_by(tiny_atsc(cfg), "loss_drift") == {"teacher.conv.weight", "teacher.fc.weight"}


def test_the_second_step_moves_the_classifiers_bias_and_nothing_else(cfg):
    cfg.merge_from_list(RELEASED)
    distiller = tiny_atsc(cfg)
    assert [id(p) for p in distiller.second_parameters()] == [id(distiller.teacher.fc.bias)]
    cfg.ATSC.UPDATE = "fused"
    assert tiny_atsc(cfg).second_parameters() == []


def test_published_with_what_the_released_step_has_not_is_refused_all_at_once(cfg):
    cfg.merge_from_list([*RELEASED, "SOLVER.TRAINER", "base", "ATSC.TEACHER.BN", "affine_frozen"])
    cfg.merge_from_list(["ATSC.TEACHER.LR_SCALE", 0.1, "ATSC.TEACHER.LEARNS", "task", "ATSC.TEACHER.WARMUP_EPOCHS", 2])
    with pytest.raises(ConfigError) as error:
        ATSC(TinyNet(), TinyNet(), cfg)
    assert [problem.split(" ")[0] for problem in error.value.problems] == [
        "ATSC.TEACHER.LEARNS", "ATSC.TEACHER.LR_SCALE", "ATSC.TEACHER.WARMUP_EPOCHS", "ATSC.TEACHER.BN",
        "ATSC.UPDATE", "ATSC.TEACHER.LR_SCALE",  # a second step and a second rate, under the host's trainer
    ]  # fmt: skip
