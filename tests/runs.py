"""Small runs on tiny networks, for tests that look at them or break them off: 3 epochs of 3 steps."""

import json

import torch
from tiny import TinyNet
from torch import nn

import atsc_plugin
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.engine import checkpoint, distributed
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.host import CFG
from atsc_plugin.methods.atsc import ATSC

EMA = ["ATSC.TEACHER.EMA", 0.9, "ATSC.TEACHER.LEARNS", "task"]
MODERN = [
    "SOLVER.TYPE", "AdamW", "SOLVER.LR", 0.01, "SOLVER.SCHEDULE", "cosine", "SOLVER.WARMUP_EPOCHS", 1,
    "SOLVER.MIN_LR", 1e-4, "SOLVER.EMA", 0.9, "SOLVER.NO_DECAY", "norms", "ATSC.DRIFT.WEIGHT", 0.0,
    "ATSC.TEACHER.LEARNS", "task",
]  # fmt: skip
TIMES = ("seconds", "data_seconds", "checkpoint_seconds", "images_per_second", "memory_mb", "peak_memory_mb")


class DroppingNet(TinyNet):
    """Draws from torch's global generator in every step, as a network with dropout does."""

    def forward(self, x):
        return super().forward(x * (torch.rand(x.shape[0], 1, 1, 1) < 0.9))


def config(prefix, *pairs):
    """The configuration of such a run below `prefix`."""
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["LOG.PREFIX", str(prefix), "SOLVER.EPOCHS", 3, "SOLVER.LR_DECAY_STAGES", [2]])
    cfg.merge_from_list(["SOLVER.TRAINER", "plugin", "EXPERIMENT.NAME", "run"])
    cfg.merge_from_list(["DISTILLER.TYPE", "ATSC", "ATSC.DRIFT.WEIGHT", 1.0, *pairs])
    return cfg


def tiny_loader(seed=None, count=24, start=0):
    """Random images of ten classes in batches of 8, shuffled and cropped where there is a seed; divided among ranks."""
    draw = torch.Generator().manual_seed(9 + start)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    ranks = {"rank": distributed.rank(), "world": distributed.world()} if seed else {}
    return DeviceLoader(images, torch.arange(count) % 10, 8, [0.5] * 3, [0.25] * 3, seed=seed, padding=2, **ranks)


def without_bn(module):
    """Every batch norm in it replaced, in place: its statistics depend on how a batch is divided."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    return module


def trainer_of(cfg, folder, update="fused", loader=None):
    """The trainer of such a run, the same every time."""
    torch.manual_seed(1)
    cfg.ATSC.UPDATE = update
    distiller = ATSC(DroppingNet(width=4), TinyNet(width=6), cfg)
    return PluginTrainer("run", distiller, loader or tiny_loader(seed=5), tiny_loader(start=1), cfg, folder=folder)


class Before:
    """A trainer's step with something done before each: act(number of the step in this life)."""

    def __init__(self, step, act):
        self.step, self.act, self.number = step, act, 0

    def __call__(self, *inputs):
        self.number += 1
        self.act(self.number)
        return self.step(*inputs)

    def __getattr__(self, name):
        return getattr(self.step, name)


def dying(number, error=KeyboardInterrupt):
    """For Before: step `number` raises."""

    def act(step):
        if step == number:
            raise error

    return act


def without_times(line):
    return {name: value for name, value in line.items() if name not in TIMES}


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def latest_of(folder):
    """The content of `latest`, its checksum verified."""
    return checkpoint.load(folder / "latest", checked=True)


def assert_same_files(folder, other):
    """Logs, weights and results of two runs agree bit for bit; what a run took in time and memory apart."""
    assert list(map(without_times, log_of(folder))) == list(map(without_times, log_of(other)))
    for name in ("best", "latest", "student_best"):
        one, two = checkpoint.load(folder / name), checkpoint.load(other / name)
        assert checkpoint.digest(one["model"]) == checkpoint.digest(two["model"]), name
    one, two = latest_of(folder), latest_of(other)
    for name in one.keys() - {"progress"}:
        assert checkpoint.digest(one[name]) == checkpoint.digest(two[name]), name
    results = [json.loads((each / "result.json").read_text()) for each in (folder, other)]
    assert without_times(results[0]) == without_times(results[1])


def assert_the_same_run(whole, other):
    for name, tensor in whole.distiller.state_dict().items():
        assert torch.equal(tensor, other.distiller.state_dict()[name]), name
    assert_same_files(whole.folder, other.folder)


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
