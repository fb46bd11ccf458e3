"""What ATSC refuses before anything is trained, all at once."""

import pytest
from small_atsc import RELEASED, atsc_config
from small_runs import refused, train
from tiny import HeadlessNet, TinyNet, batch
from torch import nn

from atsc_plugin.errors import ModelRefused, PluginError
from atsc_plugin.methods.atsc import ATSC


@pytest.fixture
def cfg():
    return atsc_config("DISTILLER.TEACHER", "oddnet")


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [(HeadlessNet(), "no layers, such as an nn.Linear"), (TinyNet(num_classes=7), "7")],
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


def teacher_without_bias():
    teacher = TinyNet(width=6)
    teacher.fc = nn.Linear(6, 10, bias=False)
    return teacher


@pytest.mark.parametrize("learns", ["features", "task"])
def test_a_classifier_without_bias_serves_the_fused_update(cfg, learns):
    cfg.ATSC.TEACHER.LEARNS = learns
    teacher = teacher_without_bias()
    images, target = batch()
    logits, losses = ATSC(TinyNet(), teacher, cfg).train()(image=images, target=target)
    sum(losses.values()).backward()
    assert logits.shape == (6, 10)
    assert teacher.fc.weight.grad.abs().sum() > 0


def test_a_classifier_without_bias_is_refused_where_the_bias_is_what_learns(cfg):
    cfg.merge_from_list(RELEASED)
    with pytest.raises(ModelRefused, match="not its classifier.s bias, which .* Use ATSC.UPDATE fused"):
        ATSC(TinyNet(), teacher_without_bias(), cfg)


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
        (["ATSC.TEACHER.AVERAGE", "0.9"], ["ATSC.TEACHER.AVERAGE is gone: it is called ATSC.TEACHER.EMA"]),
        (["ATSC.TEACHER.WARMUP_EPOCHS", "1"], ["WARMUP_EPOCHS is 1 and SOLVER.EPOCHS 1", "would never learn"]),
        (["ATSC.TEACHER.LR_SCALE", "0.5", "SOLVER.TRAINER", "base"], ["LR_SCALE 0.5 wants a second rate"]),
        (["ATSC.GUARD", "stop", "SOLVER.TRAINER", "base"], ["GUARD stop looks at the teacher", "TRAINER plugin"]),
    ],
)
def test_a_mistake_in_the_keys_costs_nothing(here, capsys, words, parts):
    refused(capsys, train("atsc", *words), *parts)
    assert list(here.iterdir()) == []
