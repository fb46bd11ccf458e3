"""LOSS.REVERSE_KD_WEIGHT: its arithmetic, what it moves, when it begins, and what the guard says."""

import math

import pytest
import torch
from small_atsc import EMA, RELEASED, atsc_config, double_batch, moved_by, names_of, one_forward, tiny_atsc
from torch.optim import SGD

from atsc_plugin.errors import ConfigError
from atsc_plugin.losses import softened_divergence

TERM = "loss_reverse_kd"
REVERSE = ["ATSC.TEACHER.LEARNS", "task", "ATSC.LOSS.REVERSE_KD_WEIGHT", 0.5]


@pytest.fixture
def cfg():
    return atsc_config(*REVERSE)


def test_the_divergence_from_the_student_and_its_gradient_by_hand():
    """T 2: p_s = (3/4, 1/4), p_t = (1/2, 1/2). 4 KL = 4 (3/4 ln 3/2 + 1/4 ln 1/2); its gradient is T (p_t - p_s)."""
    z_s, z_t = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2, requires_grad=True)
    value = softened_divergence(z_t, z_s, 2.0)
    assert value.item() == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))
    value.backward()
    assert z_t.grad.tolist() == [pytest.approx([2 * (0.5 - 0.75), 2 * (0.5 - 0.25)])]


@pytest.mark.parametrize("keys", [[], EMA], ids=["alone", "EMA"])
def test_the_reverse_term_moves_the_teachers_trunk_and_head_and_nothing_of_the_student(cfg, keys):
    cfg.merge_from_list(keys)
    distiller = tiny_atsc(cfg, displacement=0.3)
    name = "online_teacher" if keys else "teacher"
    assert moved_by(distiller, TERM) == names_of(distiller.learning[0], name)


@pytest.mark.parametrize("keys", [[], EMA], ids=["alone", "EMA"])
def test_it_is_the_divergence_of_what_learns_from_the_students_prediction(cfg, keys):
    cfg.merge_from_list([*keys, "ATSC.LOSS.KD_TEMPERATURE", 3.0])
    distiller = tiny_atsc(cfg, displacement=0.3)
    prediction, losses = one_forward(distiller)
    images, _ = double_batch()
    with torch.no_grad():
        log_p_s, log_p_t = ((z / 3).log_softmax(1) for z in (prediction, distiller.learning[0](images)[0]))
    divergence = (log_p_s.exp() * (log_p_s - log_p_t)).sum(1).mean()
    torch.testing.assert_close(losses[TERM].detach(), 0.5 * 9 * divergence)


def test_the_other_terms_are_those_of_a_teacher_without_it_to_the_bit(cfg):
    with_it = one_forward(tiny_atsc(cfg))[1]
    cfg.ATSC.LOSS.REVERSE_KD_WEIGHT = 0.0
    without = one_forward(tiny_atsc(cfg))[1]
    assert with_it.keys() - without.keys() == {TERM}
    assert all(torch.equal(with_it[name], term) for name, term in without.items())


def test_while_it_warms_up_the_teacher_learns_its_task_alone(cfg):
    cfg.ATSC.LOSS.REVERSE_KD_WARMUP_EPOCHS = 2
    distiller = tiny_atsc(cfg)
    teacher = names_of(distiller.teacher, "teacher")
    for epoch in (1, 2):
        assert TERM not in one_forward(distiller, epoch)[1]
        assert moved_by(distiller, "loss_teacher_ce", epoch) == teacher
    assert moved_by(distiller, TERM, epoch=3) == teacher


def test_a_frozen_teacher_is_not_moved_by_it(cfg):
    cfg.ATSC.TEACHER.WARMUP_EPOCHS = 1
    distiller = tiny_atsc(cfg)
    assert not one_forward(distiller, epoch=1)[1][TERM].requires_grad
    assert one_forward(distiller, epoch=2)[1][TERM].requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["ATSC.TEACHER.LEARNS", "features"], "Use ATSC.TEACHER.LEARNS task"),
        (["ATSC.TEACHER.LR_SCALE", 0.0], "the teacher it should move stays"),
        (["SOLVER.EPOCHS", 3, "ATSC.LOSS.REVERSE_KD_WARMUP_EPOCHS", 3], "is 3 and SOLVER.EPOCHS 3.*would never act"),
        ([*RELEASED, "ATSC.TEACHER.LEARNS", "features"], "REVERSE_KD_WEIGHT is 0.5; the released step has no such"),
    ],
)
def test_a_term_that_cannot_do_its_work_is_refused(cfg, change, message):
    cfg.merge_from_list(change)
    with pytest.raises(ConfigError, match=message) as refusal:
        tiny_atsc(cfg)
    assert len(refusal.value.problems) == 1


def test_the_guard_tells_when_the_teacher_falls_to_an_untrained_student_and_names_the_term(cfg):
    """Without a CE that holds it, the teacher's smallest loss is to predict as the student does."""
    cfg.merge_from_list(["ATSC.LOSS.REVERSE_KD_WEIGHT", 1.0, "ATSC.LOSS.TEACHER_CE_WEIGHT", 0.0])
    cfg.ATSC.DRIFT.WEIGHT = 0.0
    distiller = tiny_atsc(cfg, displacement=0.0)
    with torch.no_grad():
        distiller.teacher.fc.bias.zero_(), distiller.teacher.fc.weight.mul_(10)
        distiller.projector[-2].weight.zero_()  # the student's map is nought: p_s is the same for every class
    distiller.theta_0[0].remember(distiller.teacher)
    images, _ = double_batch(40)
    with torch.no_grad():
        loader = [(images, distiller.eval().teacher(images)[0].argmax(1))]  # its accuracy begins at 100
    optimizer = SGD(distiller.teacher_parameters(), lr=0.2, momentum=0.9)
    distiller.train()
    for seed in range(60):
        optimizer.zero_grad()
        one_forward(distiller, seed=seed)[1][TERM].backward()
        optimizer.step()
    report = distiller.after_epoch(1, loader)
    assert (report.figures["start_top1"], report.figures["teacher_top1"] < 50) == (100.0, True)
    assert "has collapsed" in report.warning and "Lower ATSC.LOSS.REVERSE_KD_WEIGHT" in report.warning
