"""A run killed anywhere and taken up again ends as the uninterrupted one, bit for bit."""

import random
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import EMA, MODERN, assert_the_same_run, config, latest_of, log_of, tiny_loader, trainer_of
from torch.utils.data import DataLoader, Dataset

from atsc_plugin.engine import checkpoint, run_dir
from atsc_plugin.engine.resume import random_states, restore, seed_all
from atsc_plugin.errors import PluginError
from atsc_plugin.keys import flatten


@pytest.fixture
def cfg(tmp_path):
    return config(tmp_path)


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours answers it."""


class Drawing(Dataset):
    """A host's data set whose transform draws from all three global generators."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        noise = random.random() + np.random.random() + torch.rand(()).item()
        return torch.randn(3, 32, 32, generator=draw) * noise, index % 10, index


def killed_at(trainer, place, resume=False):
    """Run until the `place`-th time that the run writes or makes a step, and die there without another word."""
    seen, original = [0], {"step": trainer.step.__class__.__call__, "save": checkpoint.save}

    def dying(name):
        def call(*args, **kwargs):
            seen[0] += 1
            if seen[0] > place:
                raise Killed
            return original[name](*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.step.__class__, "__call__", dying("step"))
        patch.setattr(checkpoint, "save", dying("save"))
        try:
            trainer.train(resume=resume)
        except Killed:
            return True
    return False


@pytest.mark.parametrize(
    ("update", "keys"), [("fused", EMA), ("fused", ["ATSC.TEACHER.EVERY", 2]), ("published", []), ("fused", MODERN)]
)
def test_a_run_killed_again_and_again_ends_as_the_whole_one(cfg, tmp_path, update, keys):
    """24 images in batches of 8 are 3 steps an epoch; `latest` after every step; each life is seven actions long."""
    cfg.merge_from_list(["LOG.CHECKPOINT_STEPS", 1, *keys])
    whole = trainer_of(cfg, tmp_path / "whole", update)
    whole.train()
    lives, alive = 0, True
    while alive:
        broken = trainer_of(cfg, tmp_path / "broken", update)
        alive, lives = killed_at(broken, 7, resume=lives > 0), lives + 1
    assert lives > 3
    assert_the_same_run(whole, broken)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_hosts_loader_is_taken_up_inside_an_epoch_by_drawing_again(cfg, tmp_path, workers):
    cfg.LOG.CHECKPOINT_STEPS = 2
    loader = DataLoader(Drawing(), 8, shuffle=True, num_workers=workers)
    whole = trainer_of(cfg, tmp_path / "whole", loader=loader)
    whole.train()
    broken = trainer_of(cfg, tmp_path / "broken", loader=loader)
    assert killed_at(broken, 3)  # two steps and the state after them; dies in the third step
    state = latest_of(tmp_path / "broken")
    assert (state["epoch"], state["inside"]["epoch"], state["inside"]["meters"]["steps"]) == (0, 1, 2)
    again = trainer_of(cfg, tmp_path / "broken", loader=loader)
    again.train(resume=True)
    assert_the_same_run(whole, again)


def test_a_pass_that_starts_at_a_later_batch_gives_what_the_whole_pass_gives_there():
    loader = tiny_loader(seed=3)
    loader.flip = True
    loader.set_epoch(4)
    whole = list(loader)
    for first in range(4):
        loader.set_epoch(4)
        rest = list(loader.batches_from(first))
        assert len(rest) == 3 - first
        for one, other in zip(whole[first:], rest, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_all_generators_go_on_where_they_were():
    def draws():
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.standard_normal(),
            torch.rand(2).tolist(),
        )

    cpu = torch.device("cpu")
    seed_all(2**63 - 1)
    draws()
    kept = random_states(cpu)
    first, _ = draws(), draws()
    restore(kept, cpu)
    assert draws() == first
    seed_all(2**63 - 1)
    draws()
    assert draws() == first


def test_minutes_also_make_a_checkpoint_inside_an_epoch(cfg, tmp_path, monkeypatch):
    cfg.LOG.CHECKPOINT_MINUTES = 1.0
    clock = iter(range(0, 100000, 40))  # 40 seconds pass between two looks at the clock by the engine, by nobody else
    seen = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    for module in ("resume", "trainer"):
        monkeypatch.setattr(f"atsc_plugin.engine.{module}.time", seen)
    trainer = trainer_of(cfg, tmp_path / "run")
    saved, original = [], trainer.checkpoints.save_inside
    trainer.checkpoints.save_inside = lambda inside: (saved.append(inside["meters"]["steps"]), original(inside))
    trainer.train()
    assert saved == [2, 2, 2]  # 40 s after step 1, 80 s after step 2; the epoch's own follows step 3


def test_what_cannot_be_continued_is_refused(cfg, tmp_path):
    trainer = trainer_of(cfg, tmp_path / "run")
    trainer.facts["data"] = "digits-24-aa"
    trainer.train()
    other = trainer_of(cfg, tmp_path / "run")
    other.facts["data"] = "digits-24-bb"
    with pytest.raises(PluginError, match="trained on digits-24-aa; these data are digits-24-bb"):
        other.train(resume=True)
    fewer = trainer_of(cfg, tmp_path / "run")
    cfg.SOLVER.EPOCHS = 2
    with pytest.raises(PluginError, match="is in epoch 3; SOLVER.EPOCHS asks for 2"):
        fewer.train(resume=True)


def test_a_teachers_file_that_has_no_effect_on_a_continued_run_does_not_enter_its_configuration(cfg, tmp_path):
    cfg.DISTILLER.TEACHER_CKPT = "taught.pth"
    trainer_of(cfg, tmp_path / "run").train()
    cfg.DISTILLER.TEACHER_CKPT, cfg.SOLVER.EPOCHS = "other.pth", 4
    trainer_of(cfg, tmp_path / "run").train(resume=True)
    stored = flatten(run_dir.read_tree(tmp_path / "run" / "cfg.yaml"))
    assert (stored["DISTILLER.TEACHER_CKPT"], stored["SOLVER.EPOCHS"]) == ("taught.pth", 4)


def test_a_log_line_that_was_written_half_is_dropped_and_worklog_has_each_epoch_once(cfg, tmp_path, whole):
    shutil.copytree(whole.folder, tmp_path / "run")
    with open(tmp_path / "run" / "log.jsonl", "a") as file:
        file.write('{"epoch": 4, "lr"')
    trainer = trainer_of(cfg, tmp_path / "run")
    cfg.SOLVER.EPOCHS = 4
    trainer.train(resume=True)
    assert [line["epoch"] for line in log_of(trainer.folder)] == [1, 2, 3, 4]
    assert (trainer.folder / "worklog.txt").read_text().count("epoch: ") == 4


def test_only_the_newest_numbered_checkpoints_are_kept(cfg, tmp_path):
    cfg.LOG.SAVE_CHECKPOINT_FREQ, cfg.LOG.KEEP_CHECKPOINTS = 1, 2
    trainer_of(cfg, tmp_path / "run").train()
    assert sorted(path.name for path in (tmp_path / "run").glob("epoch_*")) == ["epoch_2", "epoch_3"]
