"""The baselines of equal architecture: SimKD's network to the last parameter, a classifier of its own, plain losses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin.host import CFG
from atsc_plugin.losses import pool
from atsc_plugin.methods.projected import ProjectedKD, ProjectedVanilla
from atsc_plugin.methods.simkd import SimKD
from atsc_plugin.networks.deployed import tensors_of


@pytest.fixture
def cfg():
    atsc_plugin.register()
    return CFG.clone()


def tiny(kind, cfg):
    torch.manual_seed(0)
    return kind(TinyNet(width=4), TinyNet(width=6), cfg)


@pytest.mark.parametrize("kind", [ProjectedVanilla, ProjectedKD])
def test_what_is_deployed_has_the_shapes_of_simkds_student(cfg, kind):
    ours, simkd = tiny(kind, cfg), tiny(SimKD, cfg)
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in tensors_of(one.deployed()).items()} for one in (ours, simkd)
    ]
    assert shapes[0] == shapes[1]
    assert ours.get_extra_parameters() == simkd.get_extra_parameters() + 6 * 10 + 10  # the classifier is its own


def test_the_losses_are_cross_entropy_and_kd_through_the_projector(cfg):
    images, target = batch()
    plain, kd = tiny(ProjectedVanilla, cfg).train(), tiny(ProjectedKD, cfg).train()
    kd.load_state_dict(copy.deepcopy(plain.state_dict()))
    logits, losses = plain(image=images, target=target)
    again = F.linear(pool(kd.projector(kd.student(images)[1]["feats"][-1])), plain.head.weight, plain.head.bias)
    assert torch.equal(logits, again)
    assert losses == {"loss_ce": F.cross_entropy(again, target)}
    p = F.softmax(plain.teacher(images)[0] / 4, dim=1)  # mdistiller's KD keys: T 4, CE .1, KD .9
    divergence = 16 * (p * (p.log() - F.log_softmax(again / 4, dim=1))).sum(1).mean()
    _, losses = kd(image=images, target=target)
    assert losses["loss_ce"].item() == pytest.approx(0.1 * F.cross_entropy(again, target).item(), rel=1e-5)
    assert losses["loss_kd"].item() == pytest.approx(0.9 * divergence.item(), rel=1e-4)


@pytest.mark.parametrize("kind", [ProjectedVanilla, ProjectedKD])
def test_the_gradient_reaches_backbone_projector_and_own_classifier_and_neither_teacher_nor_old_head(cfg, kind):
    distiller = tiny(kind, cfg).train()
    images, target = batch()
    _, losses = distiller(image=images, target=target)
    sum(losses.values()).backward()
    moved = {id(p) for p in distiller.get_learnable_parameters()}
    for name, parameter in distiller.named_parameters():
        wanted = not name.startswith(("teacher.", "student.fc."))
        assert (parameter.grad is not None) == wanted == (id(parameter) in moved), name


def test_the_prediction_does_not_ask_the_teacher(cfg):
    distiller = tiny(ProjectedVanilla, cfg).eval()
    images, _ = batch()
    before = distiller(image=images)
    for parameter in distiller.teacher.parameters():
        parameter.data.zero_()
    assert torch.equal(before, distiller(image=images))


@pytest.mark.parametrize("kind", [ProjectedVanilla, ProjectedKD])
def test_several_projectors_are_refused(cfg, kind):
    cfg.SIMKD.PROJECTOR.COUNT = 2
    assert kind.problems(cfg) == ["SIMKD.PROJECTOR.COUNT is 2, but a projected student has one. Use 1."]
