"""Several teachers: the losses and the prediction, each against its equation."""

import pytest
import torch
import torch.nn.functional as F
from several import K, multi, multi_config
from small_atsc import double_batch

from atsc_plugin.methods.atsc_multi import ATSCMulti
from atsc_plugin.methods.averkd import AverKD, averaged_kd
from atsc_plugin.methods.dkd_multi import DKDMulti
from atsc_plugin.methods.simkd_multi import SimKDMulti


@pytest.fixture
def cfg():
    return multi_config()


def kl(first, second):
    """KL(first || second) of two lists of probabilities."""
    return (first * (first.log() - second.log())).sum()


Z_S = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]], dtype=torch.float64)
Z_1 = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
Z_2 = torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 5.0]], dtype=torch.float64)


def test_averkd_is_the_mean_of_the_teachers_kd_losses(cfg):
    t = 4.0
    each = [t**2 * sum(kl((z[i] / t).softmax(0), (Z_S[i] / t).softmax(0)) for i in range(2)) / 2 for z in (Z_1, Z_2)]
    torch.testing.assert_close(averaged_kd(Z_S, [Z_1, Z_2], t, "losses"), (each[0] + each[1]) / 2)


def test_averkd_logits_is_the_kd_loss_of_the_mean_logits(cfg):
    t, mean = 4.0, (Z_1 + Z_2) / 2
    wanted = t**2 * sum(kl((mean[i] / t).softmax(0), (Z_S[i] / t).softmax(0)) for i in range(2)) / 2
    got = averaged_kd(Z_S, [Z_1, Z_2], t, "logits")
    torch.testing.assert_close(got, wanted)
    assert abs(got - averaged_kd(Z_S, [Z_1, Z_2], t, "losses")) > 0.01


@pytest.mark.parametrize("mode", ["losses", "logits"])
def test_averkds_parts_carry_their_weights(cfg, mode):
    cfg.merge_from_list(["AVERKD.MODE", mode, "AVERKD.LOSS.CE_WEIGHT", 0.25, "AVERKD.LOSS.KD_WEIGHT", 0.5])
    distiller = multi(AverKD, cfg)
    images, target = double_batch()
    logits, losses = distiller(image=images, target=target, epoch=1)
    with torch.no_grad():
        wanted = [teacher(images)[0] for teacher in distiller.teacher]
    torch.testing.assert_close(losses["loss_ce"], 0.25 * F.cross_entropy(logits, target))
    torch.testing.assert_close(losses["loss_kd"], 0.5 * averaged_kd(logits, wanted, 4.0, mode))


def dkd_by_hand(z_s, z_t, y, alpha, beta, t):
    """T^2 (alpha KL of label against rest + beta KL among the rest), mean over images."""
    total = 0.0
    for student, teacher, label in zip(z_s, z_t, y.tolist(), strict=True):
        p, q = (student / t).softmax(0), (teacher / t).softmax(0)
        rest = [i for i in range(len(p)) if i != label]
        pairs = [torch.stack([d[label], 1 - d[label]]) for d in (q, p)]
        total = total + alpha * kl(*pairs) + beta * kl(*(d[rest] / d[rest].sum() for d in (q, p)))
    return t**2 * total / len(y)


def test_dkd_multi_is_the_mean_of_the_decoupled_losses_fading_in_over_the_warm_up(cfg):
    cfg.merge_from_list(["DKD.ALPHA", 0.7, "DKD.BETA", 3.0, "DKD.T", 2.0, "DKD.WARMUP", 10, "DKD.CE_WEIGHT", 0.4])
    distiller = multi(DKDMulti, cfg)
    images, target = double_batch()
    logits, losses = distiller(image=images, target=target, epoch=4)
    with torch.no_grad():
        each = [dkd_by_hand(logits, net(images)[0], target, 0.7, 3.0, 2.0) for net in distiller.teacher]
    torch.testing.assert_close(losses["loss_kd"], 0.4 * sum(each) / K)  # epoch 4 of a warm-up of 10
    torch.testing.assert_close(losses["loss_ce"], 0.4 * F.cross_entropy(logits, target))
    late = distiller(image=images, target=target, epoch=40)[1]["loss_kd"]
    torch.testing.assert_close(late.detach(), (losses["loss_kd"] / 0.4).detach())
    distiller.node.WARMUP = 1
    at_once = distiller(image=images, target=target, epoch=1)[1]["loss_kd"]
    torch.testing.assert_close(at_once.detach(), late.detach())


def test_a_warm_up_of_no_epoch_is_refused_as_by_the_hosts_dkd(cfg):
    cfg.DKD.WARMUP = 0
    assert DKDMulti.problems(cfg) == ["DKD.WARMUP: got 0, expected at least 1."]


def test_feature_losses_are_each_teachers_own_at_its_own_map_size(cfg):
    cfg.merge_from_list(["ATSC.LOSS.FEAT_WEIGHT", 2.0])
    distiller = multi(ATSCMulti, cfg)
    images, target = double_batch()
    losses = distiller(image=images, target=target, epoch=1)[1]
    with torch.no_grad():
        f_s = distiller.student(images)[1]["feats"][-1]
        pooled = [f_s, F.avg_pool2d(f_s, 2), f_s]  # 8 against 8, 4 and 16 pixels
        for number, source in enumerate(pooled):
            f_t = distiller.teacher[number](images)[1]["feats"][-1]
            f_t = F.avg_pool2d(f_t, 2) if number == 2 else f_t
            wanted = 2.0 * ((distiller.projector[number](source) - f_t) ** 2).mean()
            torch.testing.assert_close(losses[f"loss_feat_{number + 1}"], wanted)


@pytest.mark.parametrize(("kind", "key"), [(ATSCMulti, "ATSC.ENSEMBLE"), (SimKDMulti, "SIMKD.ENSEMBLE")])
def test_the_prediction_is_the_mean_of_logits_or_of_probabilities(cfg, kind, key):
    images, _ = double_batch()
    for rule in ("logits", "probs"):
        cfg.merge_from_list([key, rule])
        distiller = multi(kind, cfg).eval()
        with torch.no_grad():
            f_s = distiller.student(images)[1]["feats"][-1]
            pooled = [f_s, F.avg_pool2d(f_s, 2), f_s]
            z = [
                t.fc(p(f).mean((2, 3))) for t, p, f in zip(distiller.teacher, distiller.projector, pooled, strict=True)
            ]
            got = distiller(image=images)
            assert torch.equal(got, distiller.deployed()(images))
        wanted = sum(z) / K if rule == "logits" else sum(each.softmax(1) for each in z) / K
        torch.testing.assert_close(got if rule == "logits" else got.exp(), wanted)
