"""The embedded host's engine: schedule, validation, the base trainer with its files and its resume, checkpoints."""

import math
import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset

from atsc_plugin.minidistiller.distillers import Vanilla
from atsc_plugin.minidistiller.engine import trainer_dict
from atsc_plugin.minidistiller.engine import utils as engine
from atsc_plugin.minidistiller.engine.cfg import CFG


class TinyNet(nn.Module):
    """A convolution, a BatchNorm and a classifier, with the host's answer."""

    def __init__(self, classes=5):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, classes)

    def forward(self, x):
        feature = self.bn(self.conv(x)).relu()
        pooled = feature.mean((2, 3))
        return self.fc(pooled), {"feats": [feature], "pooled_feat": pooled}


class Labelled(Dataset):
    """Images whose brightness tells the class; the extra entries of a training tuple on demand."""

    def __init__(self, extras):
        self.extras, self.classes = extras, torch.arange(40) % 5
        noise = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        self.images = noise * 0.1 + self.classes.reshape(-1, 1, 1, 1)

    def __len__(self):
        return len(self.classes)

    def __getitem__(self, i):
        return (self.images[i], self.classes[i], *([i, np.arange(3) + i][: self.extras]))


def loaders(extras=1):
    return DataLoader(Labelled(extras), batch_size=8), DataLoader(Labelled(0), batch_size=16)


def settings(folder, **solver):
    cfg = CFG.clone()
    cfg.defrost()
    cfg.LOG.PREFIX = str(folder)
    cfg.LOG.SAVE_CHECKPOINT_FREQ = 2
    cfg.SOLVER.EPOCHS = 2
    cfg.SOLVER.update(solver)
    return cfg


def trainer(cfg, distiller=None, extras=1, wrap=nn.DataParallel):
    torch.manual_seed(0)
    distiller = Vanilla(TinyNet()) if distiller is None else distiller
    return trainer_dict["base"]("trial", wrap(distiller), *loaders(extras), cfg)


def test_the_learning_rate_falls_in_the_epoch_after_each_stage_and_for_every_group():
    cfg = settings("unused", LR=0.5, LR_DECAY_STAGES=[3, 5], LR_DECAY_RATE=0.1)
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    expected = {1: (0.5, 0.5, 0.02), 3: (0.5, 0.5, 0.02), 4: (0.05, 0.05, 0.05), 6: (0.005, 0.005, 0.005)}
    for epoch, (returned, first, second) in expected.items():
        assert engine.adjust_learning_rate(epoch, cfg, optimizer) == pytest.approx(returned)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([first, second])


class Lookup(nn.Module):
    """Takes the logits out of the image."""

    def forward(self, image):
        assert not self.training
        return image[:, 0, 0]


def test_validate_counts_images_and_not_batches():
    logits = torch.zeros(3, 6)
    logits[0, 2] = 9  # label 2: right at once
    logits[1] = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])  # label 4: fifth
    logits[2] = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])  # label 5: sixth of six
    target = torch.tensor([2, 4, 5])
    images = logits.reshape(3, 1, 1, 6)
    batches = [(images[:2], target[:2]), (images[2:], target[2:])]
    top1, top5, loss = engine.validate(batches, Lookup())
    assert top1 == pytest.approx(100 / 3)
    assert top5 == pytest.approx(200 / 3)
    tail = math.log(sum(math.exp(z) for z in range(1, 7)))
    expected = [math.log(math.exp(9) + 5) - 9, tail - 2, tail - 1]
    assert loss == pytest.approx(sum(expected) / 3, rel=1e-6)
    assert all(type(figure) is float for figure in (top1, top5, loss))


def test_accuracy_is_in_percent_and_asks_no_more_classes_than_there_are():
    output = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 1.0]])
    top1, top5 = engine.accuracy(output, torch.tensor([1, 2]), topk=(1, 5))
    assert (top1.tolist(), top5.tolist()) == ([50.0], [100.0])


def test_a_meter_weighs_a_value_by_its_count():
    meter = engine.AverageMeter()
    meter.update(2.0, 3)
    meter.update(6.0)
    assert (meter.val, meter.sum, meter.count, meter.avg) == (6.0, 12.0, 4, 3.0)


# The trainer


@pytest.mark.parametrize("wrap", [nn.DataParallel, nn.Identity], ids=["DataParallel", "bare"])
def test_the_trainer_learns_and_writes_its_files(tmp_path, wrap):
    unwrapped = wrap is nn.Identity
    run = trainer(settings(tmp_path, LR=0.02), wrap=(lambda d: d) if unwrapped else wrap)
    before = engine.validate(run.val_loader, run.distiller)[2]
    run.train()
    assert engine.validate(run.val_loader, run.distiller)[2] < before
    folder = tmp_path / "trial"
    names = {"latest", "best", "student_latest", "student_best", "epoch_2", "student_2", "worklog.txt", "train.events"}
    assert {path.name for path in folder.iterdir()} == names
    latest = engine.load_checkpoint(folder / "latest")
    assert set(latest) == {"epoch", "model", "optimizer", "best_acc"}
    assert latest["epoch"] == 2
    student = engine.load_checkpoint(folder / "student_latest")
    assert set(student) == {"model"}
    TinyNet().load_state_dict(student["model"], strict=True)
    prefix = "student." if unwrapped else "module.student."
    assert {prefix + key for key in student["model"]} == set(latest["model"])
    worklog = (folder / "worklog.txt").read_text()
    assert worklog.count("epoch: ") == 2
    assert f"best_acc\t{run.best_acc:.2f}" in worklog
    assert "lr: 0.02\n" in worklog


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path):
    whole = trainer(settings(tmp_path / "whole", EPOCHS=3, LR_DECAY_STAGES=[2]))
    whole.train()
    trainer(settings(tmp_path / "parts", EPOCHS=2, LR_DECAY_STAGES=[2])).train()
    second = trainer(settings(tmp_path / "parts", EPOCHS=3, LR_DECAY_STAGES=[2]))
    with torch.no_grad():  # whatever it starts from has to be replaced
        second.distiller.module.student.fc.weight.fill_(7)
    second.train(resume=True)
    expected = whole.distiller.state_dict()
    for key, value in second.distiller.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert second.best_acc == whole.best_acc
    assert (tmp_path / "parts" / "trial" / "worklog.txt").read_text().count("epoch: ") == 3


def test_best_keeps_the_epoch_that_was_best(tmp_path, monkeypatch):
    accuracies = iter([(30.0, 50.0, 1.0), (20.0, 50.0, 1.0), (30.0, 50.0, 1.0), (10.0, 50.0, 1.0)])
    monkeypatch.setattr("atsc_plugin.minidistiller.engine.trainer.validate", lambda *_: next(accuracies))
    run = trainer(settings(tmp_path, EPOCHS=4))
    run.train()
    assert run.best_acc == 30.0
    assert engine.load_checkpoint(tmp_path / "trial" / "best")["epoch"] == 3  # a tie goes to the later epoch
    assert engine.load_checkpoint(tmp_path / "trial" / "latest")["best_acc"] == 30.0


class Recorder(Vanilla):
    def forward_train(self, image, target, **kwargs):
        self.seen = kwargs
        logits, losses = super().forward_train(image, target)
        return logits, {"per_image": losses["ce"] * torch.ones(len(target)), "twice": 2 * losses["ce"]}


@pytest.mark.parametrize(("extras", "names"), [(1, {"index"}), (2, {"index", "contrastive_index"})])
def test_the_distiller_gets_the_epoch_and_every_index_of_the_batch(tmp_path, extras, names):
    recorder = Recorder(TinyNet())
    trainer(settings(tmp_path, EPOCHS=1), recorder, extras).train()
    assert set(recorder.seen) == {"epoch", *names}
    assert recorder.seen["epoch"] == 1
    assert recorder.seen["index"].tolist() == list(range(32, 40))


def test_the_step_is_on_the_sum_of_the_means_of_the_losses(tmp_path):
    recorder = Recorder(TinyNet())
    run = trainer(settings(tmp_path, LR=0.5, MOMENTUM=0.0, WEIGHT_DECAY=0.0), recorder)
    run.distiller.train()
    batch = next(iter(run.train_loader))
    _, losses = Vanilla(recorder.student)(image=batch[0], target=batch[1])
    gradient = torch.autograd.grad(3 * losses["ce"], recorder.student.fc.bias)[0]
    expected = recorder.student.fc.bias.detach() - 0.5 * gradient
    meters = {name: engine.AverageMeter() for name in ("losses", "top1", "top5")}
    run.train_iter(batch, 1, meters)
    assert torch.allclose(recorder.student.fc.bias, expected, atol=1e-6)
    assert meters["losses"].avg == pytest.approx(3 * losses["ce"].item(), rel=1e-5)


# Checkpoints


def test_a_failed_write_leaves_the_old_checkpoint_and_no_debris(tmp_path, monkeypatch):
    path = tmp_path / "latest"
    engine.save_checkpoint({"epoch": 1}, path)

    def half_written(obj, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        engine.save_checkpoint({"epoch": 2}, path)
    assert engine.load_checkpoint(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["latest"]


class Trap:
    """Unpickling it creates the file it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    trace = tmp_path / "it_ran"
    torch.save({"model": Trap(trace)}, tmp_path / "bad")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        engine.load_checkpoint(tmp_path / "bad")
    assert not trace.exists()
    torch.load(tmp_path / "bad", weights_only=False)["model"].close()
    assert trace.exists()  # the trap works where nothing guards against it


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_a_checkpoint_with_numpy_numbers_in_it_loads(tmp_path, module):
    torch.save({"lr": np.float64(0.005), "steps": np.int64(2)}, tmp_path / "new", _use_new_zipfile_serialization=False)
    written = (tmp_path / "new").read_bytes()
    here = np.float64(0).__reduce__()[0].__module__.encode()
    assert here in written
    (tmp_path / "old").write_bytes(written.replace(here, module.encode()))
    assert engine.load_checkpoint(tmp_path / "old") == {"lr": 0.005, "steps": 2}
