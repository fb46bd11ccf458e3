"""Our trainer: the schedule, the files it leaves, which images choose the best epoch, resuming, bad numbers."""

import json

import pytest
import torch
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.engine import checkpoint
from atsc_plugin.engine.batches import inputs_of
from atsc_plugin.engine.evaluate import correct, evaluate
from atsc_plugin.engine.trainer import PluginTrainer, learning_rate
from atsc_plugin.errors import PluginError
from atsc_plugin.host import CFG, distiller_dict
from atsc_plugin.methods.simkd import SimKD
from atsc_plugin.seeds import stream


@pytest.fixture
def cfg(tmp_path):
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["LOG.PREFIX", str(tmp_path), "SOLVER.EPOCHS", 3, "SOLVER.LR_DECAY_STAGES", [2]])
    cfg.merge_from_list(["EXPERIMENT.NAME", "run", "LOG.SAVE_CHECKPOINT_FREQ", 2])
    return cfg


def tiny_loader(seed=None, count=24, start=0):
    draw = torch.Generator().manual_seed(9 + start)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return DeviceLoader(images, torch.arange(count) % 10, 8, [0.5] * 3, [0.25] * 3, seed=seed, padding=2)


def simkd_trainer(cfg, folder=None, test=True):
    torch.manual_seed(1)
    distiller = SimKD(TinyNet(width=4), TinyNet(width=6), cfg)
    loaders = {"test_loader": tiny_loader(start=2)} if test else {}
    return PluginTrainer("run", distiller, tiny_loader(seed=5), tiny_loader(start=1), cfg, folder=folder, **loaders)


def without_times(line):
    return {k: v for k, v in line.items() if k not in ("seconds", "data_seconds", "images_per_second", "memory_mb")}


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_rate_falls_after_each_stage(cfg):
    cfg.merge_from_list(["SOLVER.LR", 0.5, "SOLVER.LR_DECAY_STAGES", [2, 4], "SOLVER.LR_DECAY_RATE", 0.1])
    rates = [learning_rate(cfg, epoch) for epoch in (1, 2, 3, 4, 5)]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])


def test_a_groups_scale_multiplies_the_scheduled_rate_also_after_a_stage(cfg):
    distiller = distiller_dict["NONE"](TinyNet())
    slow, fast = list(distiller.parameters())[:2], list(distiller.parameters())[2:]
    distiller.param_groups = lambda cfg: [{"params": slow, "lr_scale": 0.5}, {"params": fast}]
    trainer = PluginTrainer("run", distiller, tiny_loader(seed=1), tiny_loader(), cfg)
    trainer.train()
    rates = [group["lr"] for group in trainer.step.optimizer.param_groups]
    assert rates == pytest.approx([cfg.SOLVER.LR * 0.1 * 0.5, cfg.SOLVER.LR * 0.1])


def test_a_run_leaves_every_file_of_its_directory_and_the_result_says_what_it_is(cfg, tmp_path):
    trainer = simkd_trainer(cfg)
    result = trainer.train()
    folder = tmp_path / "distill" / "run" / "seed_1"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "cfg.yaml", "about.json", "log.jsonl", "worklog.txt", "train.events", "latest", "best", "student_latest",
        "logits_last.safetensors",
        "student_best", "deploy_best.safetensors", "deploy_best.json", "deploy_last.safetensors", "deploy_last.json",
        "latest_previous", "run.lock", "epoch_2", "result.json",
    }  # fmt: skip
    assert json.loads((folder / "result.json").read_text()) == result
    assert [line["epoch"] for line in log_of(folder)] == [1, 2, 3]
    assert result["params_student"] == 3 * 4 * 9 + 2 * 4 + 4 * 10 + 10 == 166
    # student without its fc, projector 4->3->6 (12 + 81 + 18 weights, BN 2*(3+3+6)), teacher's fc 6*10+10
    assert result["params_deployed"] == (166 - 50) + (12 + 81 + 18 + 24) + 70
    assert result["params_trained"] == (166 - 50) + (12 + 81 + 18 + 24)
    assert result["selected_on"] == "val"
    assert result["teacher_top1_before"] == result["teacher_top1_after"]
    assert checkpoint.load(folder / "student_best")["model"].keys() == trainer.distiller.student.state_dict().keys()


def test_the_deployed_file_holds_nothing_of_the_unused_head_or_the_teachers_trunk(cfg, tmp_path):
    simkd_trainer(cfg).train()
    folder = tmp_path / "distill" / "run" / "seed_1"
    names = checkpoint.load_tensors(folder / "deploy_last.safetensors")
    assert {name.split(".")[0] for name in names} == {"backbone", "projector", "classifier"}
    assert not any(name.startswith("backbone.fc") for name in names)
    assert json.loads((folder / "deploy_last.json").read_text())["unused"] == ["fc"]


def test_the_last_and_best_accuracies_are_those_of_the_test_images(cfg, tmp_path):
    trainer = simkd_trainer(cfg)
    result = trainer.train()
    test = tiny_loader(start=2)
    trainer.distiller.eval()
    last = evaluate(lambda image: trainer.distiller(image=image), test, torch.device("cpu"))
    assert result["top1_last"] == last["top1"]
    log = log_of(trainer.folder)
    assert result["best_epoch"] == max(log, key=lambda line: line["top1"])["epoch"]
    trainer.distiller.load_state_dict(checkpoint.load(trainer.folder / "best")["model"])
    best = evaluate(lambda image: trainer.distiller(image=image), test, torch.device("cpu"))
    assert result["top1_best"] == best["top1"]


def test_without_a_validation_split_the_test_images_choose_and_the_result_says_so(cfg):
    trainer = simkd_trainer(cfg, test=False)
    result = trainer.train()
    assert result["selected_on"] == "test"
    assert result["top1_best"] == max(line["top1"] for line in log_of(trainer.folder))
    assert result["top1_last"] == log_of(trainer.folder)[-1]["top1"]


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
    result = whole.train()
    broken = simkd_trainer(cfg, folder=tmp_path / "broken")

    original = broken._epoch

    def dying(epoch, inside):
        if epoch == 3:
            raise KeyboardInterrupt
        return original(epoch, inside)

    broken._epoch = dying
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert not (tmp_path / "broken" / "result.json").exists()
    resumed = simkd_trainer(cfg, folder=tmp_path / "broken")
    again = resumed.train(resume=True)
    for name, tensor in whole.distiller.state_dict().items():
        assert torch.equal(tensor, resumed.distiller.state_dict()[name]), name
    assert [without_times(a) for a in log_of(tmp_path / "whole")] == [
        without_times(b) for b in log_of(tmp_path / "broken")
    ]
    assert {k: again[k] for k in ("top1_last", "top1_best", "best_epoch", "teacher_top1_before")} == {
        k: result[k] for k in ("top1_last", "top1_best", "best_epoch", "teacher_top1_before")
    }


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


def test_a_loss_that_is_no_number_stops_the_run_by_name_and_keeps_the_last_checkpoint(cfg, tmp_path):
    trainer = simkd_trainer(cfg, folder=tmp_path / "nan")
    original = trainer.distiller.forward_train

    def poisoned(image, target, epoch, **rest):
        logits, losses = original(image=image, target=target)
        return logits, {**losses, "loss_extra": losses["loss_feat"] * (float("nan") if epoch == 2 else 0.0)}

    trainer.distiller.forward_train = poisoned
    with pytest.raises(PluginError, match=r"epoch 2.*'loss_extra' is nan since step 1.*`latest`"):
        trainer.train()
    assert checkpoint.load(tmp_path / "nan" / "latest")["epoch"] == 1


def test_batches_with_two_to_four_entries_reach_the_distiller_by_name():
    images, target = batch()
    cpu = torch.device("cpu")
    assert set(inputs_of((images, target), cpu)) == {"image", "target"}
    views = inputs_of(((images, images), target, target, target), cpu)
    assert set(views) == {"image", "target", "index", "contrastive_index"}
    assert isinstance(views["image"], tuple)
    with pytest.raises(PluginError, match="batches of 5 entries; expected 2 to 4"):
        inputs_of((images,) * 5, cpu)


def test_the_fit_of_a_network_on_the_way_writes_no_result(cfg, tmp_path):
    PluginTrainer(
        "t", distiller_dict["NONE"](TinyNet()), tiny_loader(seed=1), tiny_loader(), cfg, folder=tmp_path / "t"
    ).fit()
    assert (tmp_path / "t" / "latest").is_file()
    assert not (tmp_path / "t" / "result.json").exists()


def test_evaluation_counts_hits_by_hand():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [2.0, 3.0, 1.0]])
    target = torch.tensor([0, 0, 0])  # ranked first, third, second
    assert correct(logits, target, 1).item() == 1
    assert correct(logits, target, 2).item() == 2
    assert correct(logits, target, 5).item() == 3
    scores = evaluate(lambda image: image, [(logits, target)], torch.device("cpu"))
    assert scores["top1"] == pytest.approx(100 / 3)
    assert scores["top5"] == 100.0
    by_hand = sum(torch.logsumexp(row, 0).item() - row[0].item() for row in logits) / 3
    assert scores["loss"] == pytest.approx(by_hand)
