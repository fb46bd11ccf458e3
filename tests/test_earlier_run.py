"""What --resume does with a configuration that has changed, and with a run that is finished."""

import pytest

import atsc_plugin
from atsc_plugin.commands import earlier_run
from atsc_plugin.engine import run_dir
from atsc_plugin.errors import PluginError
from atsc_plugin.files import write_json, write_text
from atsc_plugin.host import CFG


@pytest.fixture
def cfg():
    atsc_plugin.register()
    return CFG.clone()


def started(folder, cfg):
    write_text(cfg.dump(), folder / "cfg.yaml")
    return folder


def test_each_change_is_said_with_the_value_that_holds(cfg, tmp_path, capsys):
    started(tmp_path, cfg)
    cfg.SOLVER.EPOCHS, cfg.LOG.CHECKPOINT_STEPS, cfg.DISTILLER.TEACHER_CKPT = 300, 7, "other.pth"
    cfg.DISTILLER.TEACHER_CKPTS = ["a.pth"]
    earlier_run.say_changes(tmp_path, cfg)
    assert capsys.readouterr().out.splitlines() == [
        "resuming with DISTILLER.TEACHER_CKPT: was , asked other.pth; no effect, the checkpoint's teacher holds",
        "resuming with DISTILLER.TEACHER_CKPTS: was [], asked ['a.pth']; no effect, the checkpoint's teacher holds",
        "resuming with LOG.CHECKPOINT_STEPS: was 0, asked 7; the new value holds",
        "resuming with SOLVER.EPOCHS: was 240, asked 300; the new value holds",
    ]


def test_what_may_change_leaves_the_run_in_its_directory(cfg):
    cfg.EXPERIMENT.NAME = "kd"
    words = [word for name in run_dir.FREE if not name.endswith(".") for word in (name, "other")]
    assert run_dir.experiment_name(cfg, words) == "kd"
    assert run_dir.experiment_name(cfg, [*words, "SOLVER.LR", "0.1"]) == "kd,SOLVER.LR=0.1"


def test_what_follows_from_the_networks_is_not_compared(cfg, tmp_path):
    """REVIEWKD's lists are read off the maps of a pair that nobody published; cfg.yaml has what was read."""
    cfg.DISTILLER.TYPE, cfg.DISTILLER.STUDENT = "REVIEWKD", "timm/resnet18"
    fitted = cfg.clone()
    fitted.REVIEWKD.SHAPES = [1, 2, 4]
    started(tmp_path, fitted)
    assert earlier_run.differences(tmp_path, cfg) == []
    for published in (cfg, fitted):
        published.DISTILLER.TEACHER, published.DISTILLER.STUDENT = "resnet32x4", "resnet8x4"
    started(tmp_path, fitted)
    assert [name for name, *_ in earlier_run.differences(tmp_path, cfg)] == ["REVIEWKD.SHAPES"]


def test_what_cannot_change_is_refused_all_at_once(cfg, tmp_path):
    started(tmp_path, cfg)
    cfg.SOLVER.LR, cfg.DISTILLER.STUDENT, cfg.SOLVER.EPOCHS = 0.1, "resnet8", 300
    with pytest.raises(PluginError) as error:
        earlier_run.say_changes(tmp_path, cfg)
    assert "DISTILLER.STUDENT was resnet32, asked resnet8" in str(error.value)
    assert "SOLVER.LR was 0.05, asked 0.1" in str(error.value)
    assert "EPOCHS" not in str(error.value)


def test_a_key_that_is_newer_than_the_run_counts_as_its_default(cfg, tmp_path):
    text = "\n".join(line for line in cfg.dump().splitlines() if "NONFINITE" not in line and "UPDATE" not in line)
    write_text(text, tmp_path / "cfg.yaml")
    assert earlier_run.differences(tmp_path, cfg) == []
    cfg.ATSC.UPDATE = "published"
    with pytest.raises(PluginError, match="ATSC.UPDATE was fused, asked published"):
        earlier_run.say_changes(tmp_path, cfg)


def test_a_finished_run_is_left_also_with_resume_and_another_place_of_files(cfg, tmp_path, capsys):
    started(tmp_path, cfg)
    write_json({"top1_last": 70.0, "top1_best": 71.5}, tmp_path / "result.json")
    cfg.LOG.PREFIX = "/elsewhere"
    assert earlier_run.complete(tmp_path, cfg)
    assert "is complete: test top-1 70.00 last, 71.50 best epoch. Nothing to do" in capsys.readouterr().out
    cfg.SOLVER.EPOCHS = 300
    with pytest.raises(PluginError, match="finished run of another configuration .SOLVER.EPOCHS was 240, asked 300"):
        earlier_run.complete(tmp_path, cfg)


@pytest.mark.parametrize("content", ["", "- 1", "a: [", "\x00"])
def test_a_stored_configuration_that_is_none_is_told(cfg, tmp_path, content):
    (tmp_path / "cfg.yaml").write_text(content)
    with pytest.raises(PluginError, match="overwrite"):
        earlier_run.say_changes(tmp_path, cfg)
