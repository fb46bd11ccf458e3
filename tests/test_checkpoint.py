"""Reading and writing files: whole or not at all, never executed, and told what does not fit."""

import pickle

import numpy as np
import pytest
import torch
from bombs import plant_bomb
from tiny import TinyNet

from atsc_plugin.engine import checkpoint, run_dir
from atsc_plugin.errors import PluginError
from atsc_plugin.files import whole_file, write_json
from atsc_plugin.host import CFG, cifar_model_dict


def test_a_checkpoint_that_would_run_code_is_refused_and_has_not_run(tmp_path):
    path = plant_bomb(tmp_path / "bad.pth", tmp_path / "ran")
    with pytest.raises(PluginError, match="might run code"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)  # the same file does run where it is trusted: the refusal was needed
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04truncated", pickle.dumps({"a": 1})[:-3]])
def test_a_file_that_is_no_checkpoint_is_told(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(PluginError, match="broken.pth"):
        checkpoint.load(path)


def test_a_missing_file_and_a_broken_safetensors_file_are_told(tmp_path):
    with pytest.raises(PluginError, match="There is no checkpoint file"):
        checkpoint.load(tmp_path / "none.pth")
    (tmp_path / "x.safetensors").write_bytes(b"12345678{}")
    with pytest.raises(PluginError, match="not a readable safetensors file"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_numpy_numbers_in_a_checkpoint_are_fine(tmp_path):
    torch.save({"model": TinyNet().state_dict(), "best_acc": np.float64(71.5)}, tmp_path / "old.pth")
    assert checkpoint.load(tmp_path / "old.pth")["best_acc"] == 71.5


@pytest.mark.parametrize(
    "layout",
    [
        lambda state: state,
        lambda state: {"model": state, "best_acc": 70.0},
        lambda state: {"state_dict": state},
        lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"model": {f"module.student.{k}": v for k, v in state.items()}},
        lambda state: {"model": {f"student.{k}": v for k, v in state.items()} | {"teacher.fc.bias": torch.ones(10)}},
    ],
    ids=["bare", "model", "state_dict", "DataParallel", "wrapped distiller", "distiller with a teacher"],
)  # fmt: skip
def test_every_layout_in_use_gives_the_network(tmp_path, layout):
    network = TinyNet()
    path = tmp_path / "teacher.pth"
    torch.save(layout(network.state_dict()), path)
    checkpoint.load_network(filled := TinyNet(), path, "tiny", 10)
    for name, tensor in network.state_dict().items():
        assert torch.equal(filled.state_dict()[name], tensor)


def test_a_teacher_of_another_number_of_classes_is_told_with_both(tmp_path):
    torch.save(cifar_model_dict["resnet8"][0](num_classes=10).state_dict(), tmp_path / "ten.pth")
    with pytest.raises(PluginError, match="resnet8 for 10 classes; the data have 100"):
        checkpoint.load_network(cifar_model_dict["resnet8"][0](num_classes=100), tmp_path / "ten.pth", "resnet8", 100)


def test_another_network_is_told_with_the_names_that_do_not_fit(tmp_path):
    torch.save(TinyNet().state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(PluginError, match=r"does not fit a resnet8: \d+ missing \(conv1.weight.*unknown \(conv.weight"):
        checkpoint.load_network(cifar_model_dict["resnet8"][0](num_classes=10), tmp_path / "tiny.pth", "resnet8", 10)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(PluginError, match="holds no network weights"):
        checkpoint.load_network(TinyNet(), tmp_path / "empty.pth", "tiny", 10)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "state"
    checkpoint.save({"epoch": 1}, path)
    with pytest.raises(RuntimeError, match="disk"), whole_file(path) as file:
        file.write(b"half")
        raise RuntimeError("disk")
    assert checkpoint.load(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_share_memory_are_stored_each_for_itself(tmp_path):
    both = torch.arange(6.0).reshape(2, 3)
    checkpoint.save_tensors({"a": both, "b": both.T}, tmp_path / "deploy", {"fact": 1})
    loaded = checkpoint.load_tensors(tmp_path / "deploy.safetensors")
    assert torch.equal(loaded["a"], both)
    assert torch.equal(loaded["b"], both.T)


# ---- the run directory ----


def named(tag="simkd,res20,res8", **keys):
    cfg = CFG.clone()
    cfg.EXPERIMENT.TAG, cfg.EXPERIMENT.NAME = tag, keys.get("name", "")
    return cfg


def test_a_runs_name_is_its_tag_and_the_overrides_that_change_the_method():
    overrides = ["KD.TEMPERATURE", "2", "SOLVER.EPOCHS", "3", "EXPERIMENT.SEED", "7", "LOG.PREFIX", "/x",
                 "DISTILLER.TEACHER_CKPT", "/y", "DATASET.ROOT", "/z"]  # fmt: skip
    assert run_dir.experiment_name(named(), overrides) == "simkd,res20,res8,KD.TEMPERATURE=2"
    assert run_dir.experiment_name(named(name="mine"), []) == "mine"


def test_a_runs_name_is_legal_everywhere_and_short():
    hostile = run_dir.experiment_name(named(name="../../a b/c:d\n*?"))
    assert "/" not in hostile
    assert not hostile.startswith(".")
    long = run_dir.experiment_name(named(), ["DKD.BETA", "1" * 300])
    other = run_dir.experiment_name(named(), ["DKD.BETA", "1" * 299 + "2"])
    assert len(long) == 100
    assert long != other


@pytest.mark.parametrize("project", ["../elsewhere", "/tmp/elsewhere", "a/../../b"])
def test_a_project_that_would_leave_the_prefix_is_refused(project):
    cfg = named()
    cfg.EXPERIMENT.PROJECT = project
    with pytest.raises(PluginError, match="would leave LOG.PREFIX"):
        run_dir.run_directory(cfg, "name")


def test_log_lines_of_epochs_that_are_run_again_are_dropped(tmp_path):
    for epoch in (1, 2, 3):
        run_dir.append_line(tmp_path, {"epoch": epoch})
    run_dir.keep_lines_before(tmp_path, 3)
    assert (tmp_path / "log.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_a_broken_result_file_is_named(tmp_path):
    write_json({"a": 1}, tmp_path / "result.json")
    assert run_dir.read_json(tmp_path, "result.json") == {"a": 1}
    assert run_dir.read_json(tmp_path, "other.json") is None
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(PluginError, match="result.json cannot be read"):
        run_dir.read_json(tmp_path, "result.json")
