"""BDKD: both divergences and the weights against worked numbers, and who is moved by which."""

import pytest
import torch
from co_trained import co_trained_config, distiller_of, logits_of, losses_of, reached

from atsc_plugin.methods.bdkd import balance, divergences, entropy

RULES = ["entropy", "gap", "jeffreys", "forward", "reverse"]
P, Q = torch.tensor([[0.9, 0.1]], dtype=torch.double), torch.tensor([[0.6, 0.4]], dtype=torch.double)


@pytest.fixture
def config(tmp_path, monkeypatch):
    return lambda *pairs: co_trained_config(tmp_path, monkeypatch, "BDKD", "BDKD.TEACHER.INIT", "pretrained", *pairs)


def random_logits(count=6):
    draw = torch.Generator().manual_seed(0)
    return [2 * torch.randn(count, 5, generator=draw, dtype=torch.double) for _ in range(2)]


# ---- the formulas ----


def test_divergences_and_entropies_are_those_of_worked_numbers():
    forward, reverse = divergences(Q.log(), P.log(), 1.0)  # the student is q, the teacher p
    assert (forward.item(), reverse.item()) == pytest.approx((0.226289, 0.311239), abs=1e-6)
    assert (entropy(P.log(), 1.0).item(), entropy(Q.log(), 1.0).item()) == pytest.approx((0.325083, 0.673012), abs=1e-6)


def test_of_equal_logits_both_are_zero_and_have_no_gradient():
    logits = random_logits()[0].requires_grad_()
    both = sum(divergences(logits, logits.detach(), 2.0))
    both.sum().backward()
    assert both.abs().max() < 1e-12 and logits.grad.abs().max() < 1e-12


def test_the_gradients_are_the_known_ones():
    """forward: (p_s - p_t) / T;  reverse: p_s (u - KL(p_s || p_t)) / T with u = log p_s - log p_t"""
    logits, wanted = random_logits()
    logits.requires_grad_()
    forward, reverse = divergences(logits, wanted, 3.0)
    p_s, p_t = torch.softmax(logits.detach() / 3, 1), torch.softmax(wanted / 3, 1)
    (gradient,) = torch.autograd.grad(forward.sum(), logits, retain_graph=True)
    assert torch.allclose(gradient, (p_s - p_t) / 3, atol=1e-12)
    (gradient,) = torch.autograd.grad(reverse.sum(), logits)
    u = p_s.log() - p_t.log()
    assert torch.allclose(gradient, p_s * (u - reverse.detach()[:, None]) / 3, atol=1e-9)


def test_a_vague_and_a_sharp_image_get_their_weights_in_any_order():
    student, teacher = torch.tensor([1.5, 0.2]), torch.tensor([0.5, 0.9])
    assert [w.tolist() for w in balance(student, teacher, "entropy", 2.0)] == [[1, 2], [2, 1]]
    assert [w.tolist() for w in balance(student.flip(0), teacher.flip(0), "entropy", 2.0)] == [[2, 1], [1, 2]]
    forward, reverse = balance(student, teacher, "gap", 2.0)
    assert reverse.tolist() == pytest.approx([1 + 2 * 0.731059, 1 + 2 * 0.331812], abs=1e-5)  # sigmoid of 1 and -.7
    assert (forward + reverse).tolist() == pytest.approx([4, 4])
    one, none = torch.ones(2), torch.zeros(2)
    for rule, wanted in {"jeffreys": (one, one), "forward": (one, none), "reverse": (none, one)}.items():
        assert all(torch.equal(a, b) for a, b in zip(balance(student, teacher, rule, 2.0), wanted, strict=True)), rule


def test_a_constant_on_all_logits_changes_nothing_and_a_common_scale_of_logits_and_t_neither():
    logits, wanted = random_logits()
    plain = torch.stack(divergences(logits, wanted, 2.0))
    torch.testing.assert_close(torch.stack(divergences(logits + 7, wanted - 3, 2.0)), plain)
    torch.testing.assert_close(torch.stack(divergences(5 * logits, 5 * wanted, 10.0)), plain)


def test_large_logits_and_half_precision_stay_finite():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    both = sum(divergences(logits, -logits.detach(), 1.0))
    both.sum().backward()
    assert torch.isfinite(both).all() and torch.isfinite(logits.grad).all()
    assert divergences(logits.detach().bfloat16(), logits.detach().bfloat16(), 1.0)[1].dtype == torch.float32


# ---- the method ----


@pytest.mark.parametrize("rule", RULES)
def test_the_students_loss_is_the_weighted_mean_with_t_squared(config, rule):
    distiller = distiller_of(config("BDKD.RULE", rule, "BDKD.TEMPERATURE", 2.0, "BDKD.LOSS.KD_WEIGHT", 3.0))
    loss = losses_of(distiller)["loss_kd"].item()
    own, others = logits_of(distiller)
    p_s, p_t = torch.softmax(own / 2, 1), torch.softmax(others / 2, 1)
    h_s, h_t = (-(p * p.log()).sum(1) for p in (p_s, p_t))
    total = 0
    for i in range(6):
        gap = torch.sigmoid(h_s[i] - h_t[i]).item()
        favoured = (1, 2) if h_s[i] > h_t[i] else (2, 1)
        f, r = {"entropy": favoured, "gap": (3 - 2 * gap, 1 + 2 * gap), "jeffreys": (1, 1), "forward": (1, 0),
                "reverse": (0, 1)}[rule]  # fmt: skip
        forward, reverse = (p_t[i] * (p_t[i] / p_s[i]).log()).sum(), (p_s[i] * (p_s[i] / p_t[i]).log()).sum()
        total += f * forward + r * reverse
    assert loss == pytest.approx(3 * 4 * total.item() / 6, rel=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_every_loss_reaches_its_own_network_and_no_other(config, rule):
    distiller = distiller_of(config("BDKD.RULE", rule))
    moved = {name: reached(distiller, loss) for name, loss in losses_of(distiller).items()}
    assert moved == {"loss_ce": {"student"}, "loss_kd": {"student"}, "loss_teacher_ce": {"teacher"},
                     "loss_teacher_kd": {"teacher"}}  # fmt: skip


def test_the_weights_are_constants_to_autograd(config):
    distiller = distiller_of(config("BDKD.RULE", "gap"))
    logits, wanted = random_logits()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(distiller.student_divergence(logits, wanted), logits)
    numbers = [w.detach().clone() for w in balance(entropy(logits, 4.0), entropy(wanted, 4.0), "gap", 2.0)]
    forward, reverse = divergences(logits, wanted, 4.0)
    (wanted_gradient,) = torch.autograd.grad((numbers[0] * forward + numbers[1] * reverse).mean() * 16, logits)
    torch.testing.assert_close(gradient, wanted_gradient)


def test_jeffreys_is_symmetric_in_student_and_teacher(config):
    distiller = distiller_of(config("BDKD.RULE", "jeffreys"))
    logits, wanted = random_logits()
    torch.testing.assert_close(
        distiller.student_divergence(logits, wanted), distiller.student_divergence(wanted, logits)
    )


def test_the_log_has_the_entropies(config):
    distiller = distiller_of(config()).train()
    losses_of(distiller)
    figures = distiller.means.read()
    h_s, h_t = (entropy(logits, 4.0) for logits in logits_of(distiller))
    assert figures["student_entropy"] == pytest.approx(h_s.mean().item())
    assert figures["teacher_entropy"] == pytest.approx(h_t.mean().item())
    assert figures["student_vaguer"] == pytest.approx((h_s > h_t).double().mean().item())
