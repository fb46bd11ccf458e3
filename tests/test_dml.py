"""DML: its losses written out, who is moved by which, and what equal or exchanged networks do."""

import pytest
import torch
from co_trained import (
    assert_same_losses,
    co_trained_config,
    distiller_of,
    logits_of,
    losses_of,
    network,
    reached,
)
from small_runs import QUICK
from tiny import batch

import atsc_plugin
from atsc_plugin.config import load_cfg
from atsc_plugin.errors import ConfigError


@pytest.fixture
def config(tmp_path, monkeypatch):
    return lambda *pairs: co_trained_config(tmp_path, monkeypatch, "DML", *pairs)


def test_the_losses_are_two_cross_entropies_and_two_divergences(config):
    cfg = config("DML.TEMPERATURE", 2.0, "DML.LOSS.CE_WEIGHT", 0.5, "DML.LOSS.KD_WEIGHT", 3.0)
    cfg.DML.TEACHER.KD_WEIGHT = 7.0
    distiller = distiller_of(cfg)
    losses, target = losses_of(distiller), batch()[1]
    own, others = logits_of(distiller)
    rows, p_s, p_t = torch.arange(6), torch.softmax(own / 2, 1), torch.softmax(others / 2, 1)
    by_hand = {
        "loss_ce": -0.5 * torch.log_softmax(own, 1)[rows, target].mean(),
        "loss_kd": 3 * 4 * (p_t * (p_t / p_s).log()).sum(1).mean(),
        "loss_teacher_ce": -0.5 * torch.log_softmax(others, 1)[rows, target].mean(),
        "loss_teacher_kd": 7 * 4 * (p_s * (p_s / p_t).log()).sum(1).mean(),
    }
    assert losses.keys() == by_hand.keys()
    for name, value in by_hand.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name


def test_every_loss_reaches_its_own_network_and_no_other(config):
    distiller = distiller_of(config())
    moved = {name: reached(distiller, loss) for name, loss in losses_of(distiller).items()}
    assert moved == {
        "loss_ce": {"student"},
        "loss_kd": {"student"},
        "loss_teacher_ce": {"teacher"},
        "loss_teacher_kd": {"teacher"},
    }


def test_equal_networks_have_nothing_to_learn_from_each_other(config):
    distiller = distiller_of(
        config("DML.TEACHER.INIT", "pretrained"), student=network("tiny", 4), teacher=network("tiny", 4)
    )
    losses = losses_of(distiller)
    assert losses["loss_kd"].item() == losses["loss_teacher_kd"].item() == pytest.approx(0, abs=1e-7)
    distiller.zero_grad()
    (losses["loss_kd"] + losses["loss_teacher_kd"]).backward()
    assert all(p.grad.abs().max() < 1e-7 for p in distiller.parameters())


def test_swapping_the_networks_swaps_their_losses(config):
    cfg = config("DML.TEACHER.INIT", "pretrained", "DML.TEMPERATURE", 3.0)
    one = losses_of(distiller_of(cfg, student=network("small", 1), teacher=network("tiny", 2)))
    other = losses_of(distiller_of(cfg, student=network("tiny", 2), teacher=network("small", 1)))
    swapped = {name.replace("_teacher", "") if "_teacher" in name else name.replace("loss", "loss_teacher"): loss
               for name, loss in other.items()}  # fmt: skip
    assert_same_losses({name: swapped[name] for name in one}, one)


def test_the_student_learns_from_the_momentary_teacher(config):
    """KD from a teacher that stands still is another method: one step later the target has moved."""
    distiller = distiller_of(config())
    before = losses_of(distiller)["loss_kd"].item()
    optimizer = torch.optim.SGD(distiller.other_side(), lr=0.5)
    losses_of(distiller)["loss_teacher_ce"].backward()
    optimizer.step()
    assert losses_of(distiller)["loss_kd"].item() != pytest.approx(before, rel=1e-3)


def test_mistakes_of_its_keys_are_told_together():
    atsc_plugin.register()
    words = ["DML.TEACHER.INIT", "fresh", "DML.TEMPERATURE", "0", "DML.LOSS.KD_WEIGHT", "-1"]
    with pytest.raises(ConfigError) as error:
        load_cfg(QUICK / "dml.yaml", words)
    told = "\n".join(error.value.problems)
    for part in ("INIT: got 'fresh', expected one of scratch, pretrained", "TEMPERATURE: got 0.0", "KD_WEIGHT: got -1"):
        assert part in told, told
