"""TEACHER.EVERY: in which steps the teacher learns, and what rests in the others."""

import copy

import pytest
import torch
from runs import Before, config, dying, log_of, trainer_of, without_times
from small_atsc import EMA, RELEASED, atsc_config, double_batch, tiny_atsc

from atsc_plugin.engine import distributed
from atsc_plugin.engine.meters import Meters
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


def sums_of(*steps):
    """Meters after steps of (number of images, losses)."""
    meters = Meters(torch.device("cpu"))
    for images, losses in steps:
        losses = {name: torch.tensor(value) for name, value in losses.items()}
        meters.add(losses, torch.zeros(images, 3), torch.ones(images, dtype=torch.int64))
    return meters


def test_a_terms_mean_is_over_the_images_of_the_steps_that_have_it(monkeypatch):
    """feat (8 * 1 + 8 * 2 + 4 * 5) / 20, ce (8 * 3 + 4 * 6) / 12, late 7 alone; the middle step has no ce."""
    first, *others = (8, {"ce": 3.0, "feat": 1.0}), (8, {"feat": 2.0}), (4, {"ce": 6.0, "feat": 5.0, "late": 7.0})
    assert sums_of(first, *others).means() == {"ce": 4.0, "feat": 2.2, "late": 7.0}
    again = Meters(torch.device("cpu"))
    again.load_state(sums_of(first, *others[:1]).state())  # left after two steps, and continued
    again.add({"ce": torch.tensor(6.0), "feat": torch.tensor(5.0)}, torch.zeros(4, 3), torch.zeros(4).long())
    assert again.means() == {"ce": 4.0, "feat": 2.2}
    again.load_more(sums_of((8, {"ce": 1.0, "feat": 1.0}), (8, {"feat": 1.0})).state())  # another rank's share
    assert again.means() == {"ce": (48 + 8) / 20, "feat": (44 + 16) / 36}
    monkeypatch.setattr(distributed, "world", lambda: 2)
    monkeypatch.setattr(distributed, "total", lambda tensor, least=False: tensor if least else tensor.mul_(2))
    both = sums_of(first, *others)
    both.add_up()  # with a rank that saw the same
    assert (both.means(), both.images) == ({"ce": 4.0, "feat": 2.2, "late": 7.0}, 40)
    older = sums_of(first).state()
    del older["images_of"]
    again.load_state(older)
    assert again.means() == {"ce": 3.0, "feat": 1.0}


def test_the_log_of_a_teacher_that_rests_has_the_mean_of_its_steps_and_so_has_a_resumed_one(tmp_path, monkeypatch):
    cfg = config(tmp_path, "ATSC.TEACHER.EVERY", 2, "SOLVER.EPOCHS", 1, "LOG.CHECKPOINT_STEPS", 2)
    steps, add = [], Meters.add
    monkeypatch.setattr(Meters, "add", lambda self, losses, *rest: (steps.append(losses), add(self, losses, *rest)))
    trainer_of(cfg, tmp_path / "whole").train()
    first, resting, last = steps  # of 8 images each
    assert "loss_teacher_ce" not in resting
    (line,) = log_of(tmp_path / "whole")
    assert line["loss_teacher_ce"] == pytest.approx((first["loss_teacher_ce"] + last["loss_teacher_ce"]).item() / 2)
    assert line["loss_feat"] == pytest.approx(sum(losses["loss_feat"] for losses in steps).item() / 3)
    broken = trainer_of(cfg, tmp_path / "broken")
    broken.step = Before(broken.step, dying(3))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    trainer_of(cfg, tmp_path / "broken").train(resume=True)
    assert without_times(log_of(tmp_path / "broken")[0]) == without_times(line)
