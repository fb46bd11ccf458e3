"""TEACHER.EVERY: in which steps the teacher learns, and what rests in the others."""

import copy

import pytest
import torch
from small_atsc import EMA, RELEASED, atsc_config, double_batch, tiny_atsc

from atsc_plugin.engine.step import Step
from atsc_plugin.errors import ConfigError


@pytest.mark.parametrize("keys", [[], EMA], ids=["alone", "EMA"])
def test_of_three_steps_the_teacher_learns_in_the_first_and_rests_with_its_decay_and_momentum(keys):
    cfg = atsc_config("ATSC.TEACHER.EVERY", 3, *keys)
    distiller = tiny_atsc(cfg)
    step, moved = Step(distiller, cfg), []
    distiller.driven = True
    for number in range(4):
        before = copy.deepcopy([distiller.learning[0].state_dict(), distiller.teacher.state_dict()])
        images, target = double_batch(seed=number)
        distiller.before_step(1, number)
        losses = step({"image": images, "target": target, "epoch": 1})[1]
        after = [distiller.learning[0].state_dict(), distiller.teacher.state_dict()]
        moved.append(
            {n for old, new in zip(before, after, strict=True) for n in old if not torch.equal(old[n], new[n])}
        )
        assert ("loss_teacher_ce" in losses) == ("loss_drift" in losses) == (number in (0, 3))
    assert {"conv.weight", "fc.bias"} <= moved[0] and {"conv.weight", "fc.bias"} <= moved[3]
    statistics = set() if keys else {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}
    assert moved[1] == moved[2] == statistics


def test_the_released_step_refuses_it():
    with pytest.raises(ConfigError, match="TEACHER.EVERY is 2; the released step has no such thing"):
        tiny_atsc(atsc_config(*RELEASED, "ATSC.TEACHER.EVERY", 2))
