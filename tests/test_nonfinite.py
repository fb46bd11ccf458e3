"""NaN and infinity: by name and step, without waiting for the device; or left out and counted."""

import math

import pytest
import torch
from runs import EMA, Before, config, dying, latest_of, log_of, trainer_of
from tiny import TinyNet, batch

from atsc_plugin.config import load_cfg
from atsc_plugin.engine import checkpoint
from atsc_plugin.engine.meters import Meters, NotFinite
from atsc_plugin.engine.step import SkippedSteps, Step, all_finite
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.host import distiller_dict


@pytest.fixture
def cfg(tmp_path):
    return config(tmp_path)


def poisoned(trainer, at, what):
    """The trainer with its training step `at` (from 1, over all epochs) made bad in a loss term or in a gradient."""
    original, steps = trainer.distiller.forward_train, [0]

    def forward_train(**inputs):
        steps[0] += 1
        logits, losses = original(**inputs)
        if steps[0] == at and what == "loss":
            losses["loss_feat"] = losses["loss_feat"] * math.nan
        if steps[0] == at and what == "gradient":  # d sqrt(x) / dx at x = 0 is infinite, times 0 is NaN; the loss is 0
            losses["loss_feat"] = losses["loss_feat"] + (losses["loss_feat"] * 0).sqrt()
        return logits, losses

    trainer.distiller.forward_train = forward_train
    return trainer


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("loss", r"epoch 2: loss term 'loss_feat' is nan since step 2; .*`latest`, written after step 1 of epoch 2"),
        ("gradient", r"epoch 2: the gradient is not finite since step 2, though every loss term was.*after step 1 of"),
    ],
)
def test_the_run_stops_with_term_and_step_and_nothing_poisoned_is_written(cfg, tmp_path, what, told):
    """A state after every step: the poisoned step 5 is the second of epoch 2."""
    cfg.LOG.CHECKPOINT_STEPS = 1
    with pytest.raises(PluginError, match=told):
        poisoned(trainer_of(cfg, tmp_path / "run"), 5, what).train()
    for name in ("latest", "latest_previous", "best"):
        weights = checkpoint.load(tmp_path / "run" / name)["model"].values()
        assert all(torch.isfinite(tensor).all() for tensor in weights), name
    again = trainer_of(cfg, tmp_path / "run")
    again.train(resume=True)
    assert [line["epoch"] for line in log_of(again.folder)] == [1, 2, 3]


def test_a_gradient_that_goes_bad_in_the_last_step_of_an_epoch_is_caught_before_the_epoch_is_written(cfg, tmp_path):
    with pytest.raises(PluginError, match="epoch 1: the gradient is not finite since step 3"):
        poisoned(trainer_of(cfg, tmp_path / "run"), 3, "gradient").train()
    assert not (tmp_path / "run" / "latest").exists()
    assert not (tmp_path / "run" / "best").exists()


def test_a_weight_that_goes_bad_by_itself_is_never_written(cfg, tmp_path):
    """In the update of step 2 and the state after it: no loss and no gradient has seen it."""
    cfg.LOG.CHECKPOINT_STEPS = 2
    trainer = trainer_of(cfg, tmp_path / "run")
    original, steps = trainer.step.optimizer.step, [0]

    def overflow(*args, **kwargs):
        original(*args, **kwargs)
        steps[0] += 1
        if steps[0] == 2:
            trainer.step.parameters()[0].data[0] = math.inf

    trainer.step.optimizer.step = overflow
    with pytest.raises(PluginError, match="epoch 1: a weight is not finite"):
        trainer.train()
    assert not (tmp_path / "run" / "latest").exists()


def test_skip_leaves_the_step_out_and_counts_it(cfg, tmp_path, capsys):
    """Steps 2 and 6 of nine: one in epoch 1, one in epoch 2."""
    cfg.SOLVER.NONFINITE = "skip"
    trainer = poisoned(trainer_of(cfg, tmp_path / "run"), 2, "loss")
    poisoned(trainer, 6, "gradient").train()
    assert [line["skipped_steps"] for line in log_of(trainer.folder)] == [1, 1, 0]
    said = capsys.readouterr().out
    assert "epoch 1: step 2 left out, loss term 'loss_feat' was not finite" in said
    assert "epoch 2: step 3 left out, the gradient was not finite" in said
    assert all(math.isfinite(line["loss_feat"]) for line in log_of(trainer.folder))


def test_a_step_left_out_moves_no_weight_no_momentum_and_no_running_statistic(cfg):
    cfg.SOLVER.NONFINITE = "skip"
    cfg.DISTILLER.TYPE = "NONE"
    torch.manual_seed(0)
    distiller = distiller_dict["NONE"](TinyNet())
    step, (images, target) = Step(distiller, cfg), batch()
    distiller.train()
    assert step({"image": images, "target": target})[1] is not None
    before = {name: tensor.clone() for name, tensor in distiller.state_dict().items()}
    momentum = [entry["momentum_buffer"].clone() for entry in step.optimizer.state.values()]
    assert step({"image": images * math.nan, "target": target})[1] is None  # BN's statistics would be NaN for ever
    for name, tensor in distiller.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    after = [entry["momentum_buffer"] for entry in step.optimizer.state.values()]
    assert all(torch.equal(one, other) for one, other in zip(momentum, after, strict=True))
    assert step({"image": images, "target": target})[1] is not None
    assert not torch.equal(distiller.state_dict()["student.bn.running_mean"], before["student.bn.running_mean"])


def test_a_step_left_out_does_not_move_an_averaged_teacher(cfg, tmp_path):
    cfg.SOLVER.NONFINITE = "skip"
    cfg.merge_from_list([*EMA, "ATSC.DRIFT.WEIGHT", 0.0])
    trainer = trainer_of(cfg, tmp_path / "run")
    distiller, step, (images, target) = trainer.distiller, trainer.step, batch()
    distiller.begin()
    distiller.train()
    assert step({"image": images, "target": target, "epoch": 1})[1] is not None
    before = {name: tensor.clone() for name, tensor in distiller.state_dict().items()}
    assert step({"image": images * math.nan, "target": target, "epoch": 1})[1] is None
    for name, tensor in distiller.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert step({"image": images, "target": target, "epoch": 1})[1] is not None
    assert not torch.equal(distiller.state_dict()["teacher.conv.weight"], before["teacher.conv.weight"])


def test_an_epoch_of_nothing_but_bad_steps_ends_the_run(cfg, tmp_path):
    cfg.SOLVER.NONFINITE = "skip"
    trainer = trainer_of(cfg, tmp_path / "run")

    def poison(_):
        trainer.distiller.teacher.fc.bias.data[0] = math.nan

    trainer.step = Before(trainer.step, poison)
    with pytest.raises(PluginError, match="all 3 steps were left out"):
        trainer.train()


def test_skip_is_refused_where_a_batch_has_two_steps(cfg, tmp_path):
    cfg.SOLVER.NONFINITE = "skip"
    with pytest.raises(PluginError, match="SOLVER.NONFINITE skip cannot undo"):
        trainer_of(cfg, tmp_path / "run", update="published")
    with pytest.raises(ConfigError, match="SOLVER.NONFINITE is skip, but ATSC.UPDATE published makes two steps"):
        load_cfg("configs/cifar100/atsc_published.yaml", ["SOLVER.NONFINITE", "skip"])  # before a teacher is trained


def test_a_resumed_epoch_still_counts_what_was_left_out_before(cfg, tmp_path):
    cfg.SOLVER.NONFINITE, cfg.LOG.CHECKPOINT_STEPS = "skip", 1
    trainer = poisoned(trainer_of(cfg, tmp_path / "run"), 1, "loss")
    trainer.step = Before(trainer.step, dying(3))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert latest_of(trainer.folder)["inside"]["meters"]["skipped"] == 1
    again = trainer_of(cfg, tmp_path / "run")
    again.train(resume=True)
    assert [line["skipped_steps"] for line in log_of(again.folder)] == [1, 0, 0]


def test_the_first_to_go_bad_is_named_and_a_term_before_its_own_gradient():
    def meters(*steps):
        sums = Meters(torch.device("cpu"))
        for a, b, finite in steps:
            losses = {"a": torch.tensor(a), "b": torch.tensor(b)}
            sums.add(losses, torch.eye(2), torch.tensor([0, 1]), torch.tensor(finite))
        return sums

    meters((1.0, 2.0, True), (1.0, 2.0, True)).check()
    with pytest.raises(NotFinite, match="loss term 'b' is inf since step 2"):
        meters((1.0, 2.0, True), (1.0, math.inf, False), (math.nan, math.inf, False)).check()
    with pytest.raises(NotFinite, match="the gradient is not finite since step 1"):
        meters((1.0, 2.0, False), (math.nan, math.nan, False)).check()


def test_looking_for_bad_numbers_keeps_the_answer_on_the_device():
    """A tensor and not a bool: nobody has waited for it. Large finite entries are no infinity."""
    fine = [torch.tensor([3e38, -3e38]), torch.empty(0), torch.zeros(2, 2)]
    assert isinstance(all_finite(fine), torch.Tensor)
    assert all_finite(fine)
    assert not all_finite([*fine, torch.tensor([math.nan, 1.0])])
    assert not all_finite([*fine, torch.tensor([1.0, -math.inf])])
    assert all_finite([])


def test_buffers_that_are_not_stored_are_not_copied_every_step():
    """theta_0 of ATSC is such a buffer: as large as the teacher, and constant."""
    network = TinyNet()
    network.register_buffer("start", torch.zeros(1000), persistent=False)
    sizes = sorted(buffer.numel() for buffer in SkippedSteps(network).moving)
    assert sizes == [1, 4, 4]  # batches seen, mean, variance
