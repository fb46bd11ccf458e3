"""COTEACH's whole runs: resumed, broken, under the host's trainer, in bf16, evaluated and deployed."""

import json

import pytest
import torch
from runs import Before, assert_a_continued_run_is_the_whole_one, dying, log_of, tiny_loader, without_times
from small_coteach import coteach_config, losses_of, tiny_coteach
from small_runs import run_folder, train
from tiny_stages import TinyStages

from atsc_plugin import host
from atsc_plugin.__main__ import main
from atsc_plugin.engine.precision import keep_logits_full, precision_of
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.host import cifar_model_dict, distiller_dict


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    return coteach_config(tmp_path, monkeypatch)


def trainer(cfg, folder):
    return PluginTrainer("run", tiny_coteach(cfg), tiny_loader(seed=5), tiny_loader(start=1), cfg, folder=folder)


def test_a_resumed_run_with_a_shared_stem_ends_as_the_uninterrupted_one(cfg, tmp_path):
    cfg.COTEACH.SHARE_STEM = True
    assert_a_continued_run_is_the_whole_one(cfg, tmp_path, trainer)
    assert {"scratch_top1", "scratch_train_top1"} <= log_of(tmp_path / "whole")[0].keys()


@pytest.mark.skipif(host.NAME != "embedded", reason="mdistiller's base trainer needs a GPU")
def test_the_hosts_base_trainer_runs_it(here, staged):
    words = ["COTEACH.SCRATCH_TEACHER", "staged_teacher", "SOLVER.TRAINER", "base"]
    assert train("coteach", *staged, *words) == 0
    state = torch.load(run_folder(here) / "latest", weights_only=False)["model"]
    assert any(name.startswith("module.scratch.") for name in state)


def test_a_run_broken_inside_an_epoch_loses_no_count_of_its_scratch_teacher(cfg, tmp_path):
    cfg.SOLVER.EPOCHS = 1
    trainer(cfg, tmp_path / "whole").train()
    broken = trainer(cfg, tmp_path / "broken")
    cfg.LOG.CHECKPOINT_STEPS = 2  # of three steps
    broken.step = Before(broken.step, dying(3))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    trainer(cfg, tmp_path / "broken").train(resume=True)
    lines = [[without_times(line) for line in log_of(tmp_path / name)] for name in ("whole", "broken")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("method", ["DIH", "COTEACH"])
def test_under_bf16_the_losses_are_fp32_and_near_the_full_ones(cfg, method):
    cfg.DISTILLER.TYPE = method
    torch.manual_seed(0)
    distiller = distiller_dict[method](TinyStages(width=2), TinyStages(), cfg)
    if method == "DIH":
        distiller.heads.trained.fill_(1)
    full = losses_of(distiller)
    precision = precision_of("bf16", torch.device("cpu"))
    keep_logits_full(distiller.children(), precision)
    with precision.autocast():
        half = losses_of(distiller)
    for name, part in half.items():
        assert part.dtype == torch.float32, name
        assert part.item() == pytest.approx(full[name].item(), rel=0.1), name


def test_the_quickstart_trains_its_evaluation_agrees_and_the_student_leaves_alone(here, capsys, staged):
    assert train("coteach", *staged, "COTEACH.SCRATCH_TEACHER", "staged_teacher") == 0
    folder = run_folder(here)
    result = json.loads((folder / "result.json").read_text())
    assert result["params_deployed"] == result["params_student"]
    scratch = sum(p.numel() for p in cifar_model_dict["staged_teacher"][0](num_classes=100).parameters())
    assert result["params_trained"] == result["params_student"] + scratch
    assert result["teacher_top1_after"] == result["teacher_top1_before"]
    capsys.readouterr()
    for what in (folder, folder / "latest"):
        assert main(["eval", str(what), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["top1"] == result["top1_last"]
