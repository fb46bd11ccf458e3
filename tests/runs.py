"""Small runs of ATSC on tiny networks, for tests that break them off: 3 epochs of 3 steps."""

import json

import torch
from test_trainer import log_of, tiny_loader, without_times
from tiny import TinyNet

import atsc_plugin
from atsc_plugin.engine import checkpoint
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.host import CFG
from atsc_plugin.methods.atsc import ATSC


class DroppingNet(TinyNet):
    """Draws from torch's global generator in every step, as a network with dropout does."""

    def forward(self, x):
        return super().forward(x * (torch.rand(x.shape[0], 1, 1, 1) < 0.9))


def config(prefix):
    """The configuration of such a run below `prefix`."""
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["LOG.PREFIX", str(prefix), "SOLVER.EPOCHS", 3, "SOLVER.LR_DECAY_STAGES", [2]])
    cfg.merge_from_list(["SOLVER.TRAINER", "plugin", "ATSC.DRIFT.WEIGHT", 1.0])
    return cfg


def trainer_of(cfg, folder, update="fused", loader=None):
    torch.manual_seed(1)
    cfg.ATSC.UPDATE = update
    if update == "published":
        cfg.ATSC.DRIFT.PARAMS, cfg.ATSC.CLASSIFIER.PARAMS = "kernels", "bias"
    distiller = ATSC(DroppingNet(width=4), TinyNet(width=6), cfg)
    return PluginTrainer("run", distiller, loader or tiny_loader(seed=5), tiny_loader(start=1), cfg, folder=folder)


class Before:
    """A trainer's step with something done before each: act(number of the step in this life)."""

    def __init__(self, step, act):
        self.step, self.act, self.number = step, act, 0

    def __call__(self, inputs):
        self.number += 1
        self.act(self.number)
        return self.step(inputs)

    def __getattr__(self, name):
        return getattr(self.step, name)


def assert_the_same_run(whole, other):
    for name, tensor in whole.distiller.state_dict().items():
        assert torch.equal(tensor, other.distiller.state_dict()[name]), name
    assert list(map(without_times, log_of(whole.folder))) == list(map(without_times, log_of(other.folder)))
    for name in ("best", "latest", "student_best"):
        one, two = checkpoint.load(whole.folder / name), checkpoint.load(other.folder / name)
        assert checkpoint.digest(one["model"]) == checkpoint.digest(two["model"]), name
    results = [json.loads((trainer.folder / "result.json").read_text()) for trainer in (whole, other)]
    assert without_times(results[0]) | {"peak_memory_mb": 0} == without_times(results[1]) | {"peak_memory_mb": 0}


def assert_a_continued_run_is_the_whole_one(cfg, tmp_path, trainer):
    """Three epochs in one go, and two with a third by resuming; trainer(cfg, folder) builds each."""
    cfg.SOLVER.EPOCHS = 3
    whole = trainer(cfg, tmp_path / "whole")
    whole.train()
    cfg.SOLVER.EPOCHS = 2
    trainer(cfg, tmp_path / "broken").train()
    cfg.SOLVER.EPOCHS = 3
    resumed = trainer(cfg, tmp_path / "broken")
    resumed.train(resume=True)
    assert_the_same_run(whole, resumed)
