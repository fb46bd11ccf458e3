"""What ATSC refuses before anything is trained, and that it tells everything at once."""

import pytest
from small_runs import refused, train
from tiny import HeadlessNet, MaxPoolNet, TinyNet, batch
from torch import nn

import atsc_plugin
from atsc_plugin.errors import ModelRefused, PluginError
from atsc_plugin.host import CFG
from atsc_plugin.methods.atsc import ATSC


@pytest.fixture
def cfg():
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "ATSC", "SOLVER.TRAINER", "plugin", "DISTILLER.TEACHER", "oddnet"])
    return cfg


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [(MaxPoolNet(), "none of its maps averages"), (HeadlessNet(), "no nn.Linear"), (TinyNet(num_classes=7), "7")],
)
def test_a_teacher_that_cannot_be_shared_is_refused_by_name(cfg, teacher, reason):
    with pytest.raises(ModelRefused, match="oddnet") as refusal:
        ATSC(TinyNet(), teacher, cfg)
    assert reason in str(refusal.value)


def test_classes_that_differ_and_a_factor_beyond_the_channels_are_told_together(cfg):
    cfg.ATSC.PROJECTOR.FACTOR = 7
    with pytest.raises(ModelRefused) as refusal:
        ATSC(TinyNet(width=4), TinyNet(num_classes=7, width=6), cfg)
    classes, factor = str(refusal.value).splitlines()
    assert ("10" in classes, "7" in classes) == (True, True)
    assert factor == "ATSC.PROJECTOR.FACTOR is 7, but the teacher's map has 6 channels; expected 1 to 6."


@pytest.mark.parametrize(("update", "params"), [("published", "bias"), ("fused", "bias"), ("fused", "all")])
def test_a_classifier_without_bias_serves_only_where_the_bias_is_not_what_learns(cfg, update, params):
    cfg.ATSC.UPDATE, cfg.ATSC.CLASSIFIER.PARAMS = update, params
    teacher = TinyNet(width=6)
    teacher.fc = nn.Linear(6, 10, bias=False)
    if params == "bias":
        with pytest.raises(ModelRefused, match="oddnet has no bias.*Use ATSC.UPDATE fused and CLASSIFIER.PARAMS all"):
            ATSC(TinyNet(), teacher, cfg)
        return
    images, target = batch()
    cfg.ATSC.LOSS.TRUNK_CE_WEIGHT = 1.0
    logits, losses = ATSC(TinyNet(), teacher, cfg).train().forward_train(images, target, epoch=1)
    sum(losses.values()).backward()
    assert logits.shape == (6, 10)
    assert teacher.fc.weight.grad.abs().sum() > 0


def test_copies_that_data_parallel_makes_for_several_gpus_are_refused_with_the_way_out(cfg):
    images, target = batch()
    distiller = ATSC(TinyNet(), TinyNet(width=6), cfg).train()
    replica = distiller._replicate_for_data_parallel()  # what DataParallel runs on each GPU of several
    distiller.forward_train(images, target, epoch=1)
    with pytest.raises(PluginError, match="over several GPUs.*CUDA_VISIBLE_DEVICES to one GPU"):
        replica.forward_train(images, target, epoch=1)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["ATSC.DRIFT.WEIGHT", "-1.0", "ATSC.LOSS.FEAT_WEIGHT", "-2.0"], ["2 mistakes", "DRIFT.WEIGHT", "FEAT_WEIGHT"]),
        (["ATSC.PROJECTOR.FACTOR", "0"], ["ATSC.PROJECTOR.FACTOR"]),
        (["ATSC.DRIFT.PARAMS", "some"], ["ATSC.DRIFT.PARAMS", "kernels"]),
        (["ATSC.DRIFT.WEIGHT", "38.0"], ["is 3.8; SGD with momentum 0.9 diverges at 3.8"]),  # .05 * 2 * 38
        (["ATSC.TEACHER.WARMUP_EPOCHS", "2", "ATSC.TEACHER.LAST_EPOCH", "2"], ["LAST_EPOCH is 2", "would never learn"]),
        (["ATSC.TEACHER.WARMUP_EPOCHS", "1"], ["WARMUP_EPOCHS is 1 and SOLVER.EPOCHS 1", "would never learn"]),
        (["ATSC.GUARD", "stop", "SOLVER.TRAINER", "base"], ["ATSC.GUARD is stop", "asks no guard"]),
    ],
)
def test_a_mistake_in_the_keys_costs_nothing(here, capsys, words, parts):
    refused(capsys, train("atsc", *words), *parts)
    assert list(here.iterdir()) == []
