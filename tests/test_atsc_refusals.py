"""What ATSC refuses before anything is trained, and that it tells everything at once."""

import pytest
from small_runs import refused, train
from tiny import HeadlessNet, MaxPoolNet, TinyNet

import atsc_plugin
from atsc_plugin.distillers.atsc_published import make_atsc
from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import CFG


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
        make_atsc(TinyNet(), teacher, cfg)
    assert reason in str(refusal.value)


def test_classes_that_differ_and_a_factor_beyond_the_channels_are_told_together(cfg):
    cfg.ATSC.PROJECTOR.FACTOR = 7
    with pytest.raises(ModelRefused) as refusal:
        make_atsc(TinyNet(width=4), TinyNet(num_classes=7, width=6), cfg)
    classes, factor = str(refusal.value).splitlines()
    assert ("10" in classes, "7" in classes) == (True, True)
    assert factor == "ATSC.PROJECTOR.FACTOR is 7, but the teacher's map has 6 channels; expected 1 to 6."


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["ATSC.DRIFT.WEIGHT", "-1.0", "ATSC.LOSS.FEAT_WEIGHT", "-2.0"], ["2 mistakes", "DRIFT.WEIGHT", "FEAT_WEIGHT"]),
        (["ATSC.PROJECTOR.FACTOR", "0"], ["ATSC.PROJECTOR.FACTOR"]),
        (["ATSC.DRIFT.PARAMS", "some"], ["ATSC.DRIFT.PARAMS", "kernels"]),
        (["ATSC.DRIFT.WEIGHT", "38.0"], ["is 3.8; SGD with momentum 0.9 diverges at 3.8"]),  # .05 * 2 * 38
        (["ATSC.TEACHER.WARMUP_EPOCHS", "2", "ATSC.TEACHER.LAST_EPOCH", "2"], ["LAST_EPOCH is 2", "would never learn"]),
        (["ATSC.GUARD", "stop", "SOLVER.TRAINER", "base"], ["ATSC.GUARD is stop", "asks no guard"]),
    ],
)
def test_a_mistake_in_the_keys_costs_nothing(here, capsys, words, parts):
    refused(capsys, train("atsc", *words), *parts)
    assert list(here.iterdir()) == []
