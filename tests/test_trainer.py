"""Our trainer: the schedule, the files it leaves, what the result says, theta_0, resuming, memory that runs out."""

import json

import pytest
import torch
from runs import (
    Before,
    assert_the_same_run,
    config,
    dying,
    latest_of,
    log_of,
    tiny_loader,
    trainer_of,
    without_times,
)
from tiny import TinyNet, batch

from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.engine import checkpoint, resume
from atsc_plugin.engine.batches import inputs_of
from atsc_plugin.engine.devices import processor_name
from atsc_plugin.engine.evaluate import evaluate
from atsc_plugin.engine.optim import learning_rate
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import PluginError
from atsc_plugin.host import distiller_dict
from atsc_plugin.methods.simkd import SimKD
from atsc_plugin.networks.drift import StartingPoint, relative_motion
from atsc_plugin.seeds import stream

CPU = torch.device("cpu")


@pytest.fixture
def cfg(tmp_path):
    return config(tmp_path, "DISTILLER.TYPE", "SIMKD", "LOG.SAVE_CHECKPOINT_FREQ", 2)


def simkd_trainer(cfg, folder=None, test=True):
    torch.manual_seed(1)
    distiller = SimKD(TinyNet(width=4), TinyNet(width=6), cfg)
    loaders = {"test_loader": tiny_loader(start=2)} if test else {}
    return PluginTrainer("run", distiller, tiny_loader(seed=5), tiny_loader(start=1), cfg, folder=folder, **loaders)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(trainer, result) of a run that is over, for tests that only look."""
    top = tmp_path_factory.mktemp("finished")
    trainer = simkd_trainer(config(top, "DISTILLER.TYPE", "SIMKD", "LOG.SAVE_CHECKPOINT_FREQ", 2))
    return trainer, trainer.train()


# ---- the schedule ----


def test_the_rate_falls_after_each_stage(cfg):
    cfg.merge_from_list(["SOLVER.LR", 0.5, "SOLVER.LR_DECAY_STAGES", [2, 4], "SOLVER.LR_DECAY_RATE", 0.1])
    rates = [learning_rate(cfg, epoch) for epoch in (1, 2, 3, 4, 5)]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])


def test_a_groups_scale_multiplies_the_scheduled_rate_also_after_a_stage(tmp_path):
    cfg = config(tmp_path, "ATSC.TEACHER.LR_SCALE", 0.5)
    trainer = trainer_of(cfg, tmp_path / "run")
    trainer.train()
    rates = [group["lr"] for group in trainer.step.optimizer.param_groups]
    assert rates == pytest.approx([cfg.SOLVER.LR * 0.1, cfg.SOLVER.LR * 0.1 * 0.5])


# ---- what a run leaves ----


def test_a_run_leaves_every_file_of_its_directory_and_the_result_says_what_it_is(finished):
    trainer, result = finished
    folder = trainer.folder
    assert folder.parts[-3:] == ("distill", "run", "seed_1")
    assert {path.name for path in folder.iterdir()} == {
        "cfg.yaml", "about.json", "log.jsonl", "worklog.txt", "train.events", "latest", "latest_previous", "best",
        "student_latest", "student_best", "logits_last.safetensors", "deploy_best.safetensors", "deploy_best.json",
        "deploy_last.safetensors", "deploy_last.json", "run.lock", "epoch_2", "result.json",
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == result
    assert [line["epoch"] for line in log_of(folder)] == [1, 2, 3]
    assert result["params_student"] == 3 * 4 * 9 + 2 * 4 + 4 * 10 + 10 == 166
    # student without its fc, projector 4->3->6 (12 + 81 + 18 weights, BN 2*(3+3+6)), teacher's fc 6*10+10
    assert result["params_deployed"] == (166 - 50) + (12 + 81 + 18 + 24) + 70
    assert result["params_trained"] == (166 - 50) + (12 + 81 + 18 + 24)
    assert result["selected_on"] == "val"
    assert (result["method"], result["method_name"]) == ("SIMKD", "SimKD")
    assert result["teacher_top1_before"] == result["teacher_top1_after"]
    (teacher,) = result["networks"]
    assert teacher["name"] == "teacher"
    assert teacher["moved"] is False
    assert teacher["top1_before"] == teacher["top1_after"] == result["teacher_top1_before"]
    assert checkpoint.load(folder / "student_best")["model"].keys() == trainer.distiller.student.state_dict().keys()


def test_the_deployed_file_holds_nothing_of_the_unused_head_or_the_teachers_trunk(finished):
    folder = finished[0].folder
    names = checkpoint.load_tensors(folder / "deploy_last.safetensors")
    assert {name.split(".")[0] for name in names} == {"backbone", "projector", "classifier"}
    assert not any(name.startswith("backbone.fc") for name in names)
    assert json.loads((folder / "deploy_last.json").read_text())["unused"] == ["fc"]


def test_the_last_and_best_accuracies_are_those_of_the_test_images(finished):
    trainer, result = finished
    log = log_of(trainer.folder)
    assert result["best_epoch"] == max(log, key=lambda line: line["top1"])["epoch"]
    for name, figure in (("latest", "top1_last"), ("best", "top1_best")):
        trainer.distiller.load_state_dict(checkpoint.load(trainer.folder / name)["model"])
        trainer.distiller.eval()
        scores = evaluate(lambda image: trainer.distiller(image=image), tiny_loader(start=2), CPU)
        assert result[figure] == scores["top1"]
        if name == "latest":
            assert (result["nll"], result["ece"]) == (scores["loss"], scores["ece"])


def test_without_a_validation_split_the_test_images_choose_and_the_result_says_so(cfg):
    trainer = simkd_trainer(cfg, test=False)
    result = trainer.train()
    assert result["selected_on"] == "test"
    assert result["top1_best"] == max(line["top1"] for line in log_of(trainer.folder))
    assert result["top1_last"] == log_of(trainer.folder)[-1]["top1"]


def test_the_time_of_checkpoints_is_counted_beside_the_time_of_training(finished, monkeypatch, tmp_path):
    trainer, result = finished
    lines = log_of(trainer.folder)
    assert result["seconds"] == pytest.approx(sum(line["seconds"] for line in lines))
    assert lines[0]["checkpoint_seconds"] == 0  # a line has the checkpoints since the line before
    assert all(line["checkpoint_seconds"] > 0 for line in lines[1:])
    assert result["checkpoint_seconds"] > sum(line["checkpoint_seconds"] for line in lines)  # the last epoch's


def test_the_fit_of_a_network_on_the_way_writes_no_result(cfg, tmp_path):
    cfg.DISTILLER.TYPE = "NONE"
    distiller = distiller_dict["NONE"](TinyNet())
    PluginTrainer("t", distiller, tiny_loader(seed=1), tiny_loader(), cfg, folder=tmp_path / "t").fit()
    assert (tmp_path / "t" / "latest").is_file()
    assert not (tmp_path / "t" / "result.json").exists()


# ---- theta_0 ----


def test_theta_0_is_written_once_a_run_and_no_checkpoint_repeats_it(tmp_path, monkeypatch):
    written, original = [], checkpoint.write_tensors
    monkeypatch.setattr(checkpoint, "write_tensors", lambda *args: (written.append(args[1]), original(*args)))
    trainer = trainer_of(config(tmp_path, "LOG.CHECKPOINT_STEPS", 1), tmp_path / "run")
    trainer.train()
    assert [str(path).endswith("start.safetensors") for path in written].count(True) == 1
    theta_0 = checkpoint.load_tensors(trainer.folder / "start.safetensors")
    start = dict(trainer.distiller.theta_0[0].items())
    assert {name.removeprefix("0.") for name in theta_0} == set(start)
    assert all(torch.equal(theta_0[f"0.{name}"], tensor) for name, tensor in start.items())
    assert not torch.equal(start["conv.weight"], trainer.distiller.teacher.conv.weight)  # it learned
    for name in ("latest", "best"):
        stored = str(checkpoint.load(trainer.folder / name).keys()) + str(latest_of(trainer.folder)["method"].keys())
        assert "theta" not in stored
        model = checkpoint.load(trainer.folder / name)["model"]
        assert not any(torch.equal(tensor, start["conv.weight"]) for tensor in model.values())


def test_a_resumed_run_reads_theta_0_and_leaves_its_file_alone(tmp_path):
    cfg = config(tmp_path)
    cfg.SOLVER.EPOCHS = 2
    first = trainer_of(cfg, tmp_path / "run")
    first.train()
    file = first.folder / "start.safetensors"
    before = (file.stat().st_mtime_ns, file.read_bytes())
    cfg.SOLVER.EPOCHS = 3
    again = trainer_of(cfg, tmp_path / "run")
    with torch.no_grad():
        again.distiller.teacher.conv.weight += 1  # another teacher than the run began with
    again.train(resume=True)
    assert (file.stat().st_mtime_ns, file.read_bytes()) == before
    for (name, tensor), (_, other) in zip(again.distiller.theta_0[0].items(), first.distiller.theta_0[0].items(),
                                          strict=True):  # fmt: skip
        assert torch.equal(tensor, other), name


def test_the_drift_of_all_weights_waits_for_the_device_once(monkeypatch):
    network = TinyNet()
    start, reads = StartingPoint(network), []
    with torch.no_grad():
        network.fc.bias += 1
    for name in ("item", "tolist", "__float__", "__bool__", "cpu"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *a, _n=name, _o=original: reads.append(_n) or _o(*a))
    motion = relative_motion(network, start, {"fc.bias": ["fc.bias"], "conv": ["conv.weight"]})
    assert reads == ["tolist"]
    assert motion["conv"] == 0
    length = dict(start.items())["fc.bias"].norm().item()
    assert motion["fc.bias"] == pytest.approx(10**0.5 / length, rel=1e-5)  # ten entries moved by 1


# ---- the same run again ----


def test_the_same_seed_gives_the_same_run_and_another_seed_another(cfg, tmp_path):
    lines = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        cfg.EXPERIMENT.SEED = seed
        trainer = simkd_trainer(cfg, folder=tmp_path / name)
        trainer.train_loader.seed = stream(seed, "data")
        trainer.train()
        lines.append([without_times(line) for line in log_of(tmp_path / name)])
    assert lines[0] == lines[1]
    assert lines[0] != lines[2]


def test_a_run_resumed_after_an_epoch_ends_as_the_uninterrupted_one(cfg, tmp_path):
    whole = simkd_trainer(cfg, folder=tmp_path / "whole")
    whole.train()
    broken = simkd_trainer(cfg, folder=tmp_path / "broken")
    broken.step = Before(broken.step, dying(7))  # three steps an epoch
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert not (tmp_path / "broken" / "result.json").exists()
    resumed = simkd_trainer(cfg, folder=tmp_path / "broken")
    resumed.train(resume=True)
    assert_the_same_run(whole, resumed)


def test_a_continuation_with_another_loader_is_told_that_digits_may_differ(cfg, tmp_path, capsys):
    cfg.SOLVER.EPOCHS = 1
    simkd_trainer(cfg, folder=tmp_path / "run").train()
    cfg.SOLVER.EPOCHS = 2
    longer = simkd_trainer(cfg, folder=tmp_path / "run")
    longer.train_loader.__class__ = type("WorkerLoader", (DeviceLoader,), {})
    longer.train(resume=True)
    assert "note: loader was DeviceLoader, is WorkerLoader: the last digits may differ" in capsys.readouterr().out
    about = json.loads((tmp_path / "run" / "about.json").read_text())
    assert (about["loader"], about["resumed"][0]["loader"]) == ("DeviceLoader", "WorkerLoader")


def test_a_run_knows_its_processor_and_a_continuation_on_another_one_is_told(cfg, tmp_path, capsys, monkeypatch):
    cfg.SOLVER.EPOCHS = 1
    simkd_trainer(cfg, folder=tmp_path / "run").train()
    here = json.loads((tmp_path / "run" / "about.json").read_text())["processor"]
    assert here == processor_name() and here.endswith(torch.backends.cpu.get_cpu_capability())
    cfg.SOLVER.EPOCHS = 2
    monkeypatch.setattr("atsc_plugin.engine.trainer.processor_name", lambda: "Abacus, BEADS")
    simkd_trainer(cfg, folder=tmp_path / "run").train(resume=True)
    assert f"note: processor was {here}, is Abacus, BEADS: the last digits may differ" in capsys.readouterr().out


def test_a_checkpoint_of_the_first_edition_is_refused_by_name(cfg, tmp_path):
    """Its `latest` had no entry "edition"."""
    cfg.SOLVER.EPOCHS = 1
    trainer = simkd_trainer(cfg, folder=tmp_path / "run")
    trainer.train()
    state = latest_of(trainer.folder)
    assert state.pop("edition") == resume.EDITION == 2
    checkpoint.save(state, trainer.folder / "latest")
    cfg.SOLVER.EPOCHS = 2
    with pytest.raises(PluginError, match="latest was written by the first edition .*--overwrite"):
        simkd_trainer(cfg, folder=tmp_path / "run").train(resume=True)


# ---- batches ----


def test_batches_with_two_to_four_entries_reach_the_distiller_by_name():
    images, target = batch()
    assert set(inputs_of((images, target), CPU)) == {"image", "target"}
    views = inputs_of(((images, images), target, target, target), CPU)
    assert set(views) == {"image", "target", "index", "contrastive_index"}
    assert isinstance(views["image"], tuple)
    with pytest.raises(PluginError, match="batches of 5 entries; expected 2 to 4"):
        inputs_of((images,) * 5, CPU)
