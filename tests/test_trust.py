"""A stranger's file runs nothing, wherever it is given, and no name leads out of LOG.PREFIX."""

import hashlib
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from bombs import Bomb
from small_runs import QUICK, SMALL, TINY, tiny
from tiny import TinyNet

from atsc_plugin.__main__ import main
from atsc_plugin.engine import checkpoint, run_dir
from atsc_plugin.errors import PluginError
from atsc_plugin.host import CFG


def forms(trace):
    """{name: bytes} of files whose reading by plain pickle, torch.load or NumPy makes the file `trace`."""
    from io import BytesIO

    zipped, older, arrays = BytesIO(), BytesIO(), BytesIO()
    content = {"model": {"weight": torch.ones(1)}, "extra": Bomb(trace)}
    torch.save(content, zipped)
    torch.save(content, older, _use_new_zipfile_serialization=False)
    np.savez(arrays, train_images=np.array([Bomb(trace)], dtype=object))
    return {
        "zip": zipped.getvalue(),
        "older": older.getvalue(),
        "pickle": pickle.dumps(content),
        "npz": arrays.getvalue(),
    }


# Each place where a file can be given: writes it below `here`, or into the finished `run`; the command that reads it.


def teacher(here, run, content, method="kd"):
    (here / "t.pth").write_bytes(content)
    cfg = str(QUICK / f"{method}.yaml")
    return ["train", "--cfg", cfg, "DISTILLER.TEACHER_CKPT", "t.pth", *TINY, *SMALL, "EXPERIMENT.NAME", method]


def teacher_of_dih(here, run, content):
    return teacher(here, run, content, "dih")


def resumed(here, run, content):
    (run / "result.json").unlink()
    for name in ("latest", "latest_previous"):
        (run / name).write_bytes(content)
    words = [*TINY, "EXPERIMENT.NAME", "run", "SOLVER.EPOCHS", "1", *SMALL]
    return ["train", "--cfg", str(QUICK / "vanilla.yaml"), "--resume", *words]


def best(here, run, content):
    (run / "best").write_bytes(content)
    return ["eval", str(run / "best")]


def evaluated(here, run, content):
    (here / "x.pth").write_bytes(content)
    return ["eval", "x.pth", "--cfg", str(QUICK / "vanilla.yaml"), *TINY, *SMALL]


def deployed(here, run, content):
    (run / "deploy_last.safetensors").write_bytes(content)
    return ["eval", str(run)]


def card(here, run, content):
    (run / "deploy_last.json").write_bytes(content)
    return ["eval", str(run)]


def exported(here, run, content):
    (run / "latest").write_bytes(content)
    return ["export", str(run / "latest"), "--format", "safetensors"]


def predicted(here, run, content):
    (here / "x.onnx").write_bytes(content)
    (here / "x.png").write_bytes(content)
    return ["predict", "x.png", "--model", "x.onnx"]


def data(here, run, content):
    (here / "d.npz").write_bytes(content)
    return ["train", "--cfg", str(QUICK / "vanilla.yaml"), "DATASET.TYPE", "npz", "DATASET.ROOT", "d.npz",
            "EXPERIMENT.NAME", "d"]  # fmt: skip


def config(here, run, content):
    (here / "c.yaml").write_bytes(content)
    return ["train", "--cfg", "c.yaml"]


def suite(here, run, content):
    (here / "s.yaml").write_bytes(content)
    return ["leaderboard", "--suite", "s.yaml"]


PLACES = [
    teacher,
    teacher_of_dih,
    resumed,
    best,
    evaluated,
    deployed,
    card,
    exported,
    predicted,
    data,
    config,
    suite,
]


GIVEN = ("t.pth", "latest", "best", "x.pth", "deploy_last", "x.onnx", "d.npz", "c.yaml", "s.yaml")


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_malicious_file_is_refused_and_has_not_run(here, run, finished, capsys, place):
    for form, content in forms(here / "ran").items():
        command = place(here, run, content)
        capsys.readouterr()
        assert main(command) == 2, form
        said = capsys.readouterr().err
        assert said.startswith("error: "), said
        assert any(name in said for name in GIVEN), said
        assert "Traceback" not in said
        assert not (here / "ran").exists(), form
        shutil.rmtree(run)
        shutil.copytree(finished, run)


def test_the_same_files_do_run_where_they_are_trusted(tmp_path):
    """The bombs are live: without this the tests above could not fail."""
    for form, content in forms(tmp_path / "ran").items():
        (tmp_path / "file").write_bytes(content)
        if form == "npz":
            with np.load(tmp_path / "file", allow_pickle=True) as arrays:
                arrays["train_images"]
        elif form == "pickle":
            pickle.loads(content)
        else:
            torch.load(tmp_path / "file", weights_only=False)
        assert (tmp_path / "ran").exists(), form
        (tmp_path / "ran").unlink()


def test_a_heads_cache_that_is_malicious_is_refused(here, capsys, monkeypatch, tiny_networks):
    """DIH's heads: the bomb lies where the cache would be looked for, whatever its key."""
    from atsc_plugin.methods import dih

    (here / "heads.safetensors").write_bytes(forms(here / "ran")["zip"])
    monkeypatch.setattr(dih, "cache_file", lambda *_: here / "heads.safetensors")
    torch.save({"model": TinyNet(num_classes=100, width=8).state_dict()}, here / "t.pth")
    assert tiny("dih", "DISTILLER.TEACHER_CKPT", "t.pth") == 2
    assert "heads.safetensors" in capsys.readouterr().err
    assert not (here / "ran").exists()


def test_the_way_out_is_the_files_own_hash_and_it_is_loud(tmp_path, monkeypatch, capsys):
    path = tmp_path / "x.pth"
    path.write_bytes(forms(tmp_path / "ran")["zip"])
    name = hashlib.sha256(path.read_bytes()).hexdigest()
    for wrong in ("", "1", "true", name[:-1], "*", hashlib.sha256(b"another").hexdigest()):
        monkeypatch.setenv(checkpoint.UNSAFE, wrong)
        with pytest.raises(PluginError, match=f"{checkpoint.UNSAFE}={name}"):
            checkpoint.load(path)
        assert not (tmp_path / "ran").exists()
    monkeypatch.setenv(checkpoint.UNSAFE, name)
    assert torch.equal(checkpoint.load(path)["model"]["weight"], torch.ones(1))
    assert "RUNS WHATEVER CODE IT HOLDS" in capsys.readouterr().err
    assert (tmp_path / "ran").exists()


def test_what_is_saved_here_is_not_loaded_once_a_bit_of_it_has_changed(tmp_path):
    weights = {"weight": torch.arange(64.0)}
    checkpoint.save({"model": weights}, tmp_path / "a")
    checkpoint.save_tensors(weights, tmp_path / "b", {})
    for path in (tmp_path / "a", tmp_path / "b.safetensors"):
        assert checkpoint.load(path)
        content = bytearray(path.read_bytes())
        content[content.find(weights["weight"].numpy().tobytes()) + 9] ^= 4
        path.write_bytes(content)
        with pytest.raises(PluginError, match="does not match its checksum"):
            checkpoint.load(path)


# ---- names ----


@pytest.mark.parametrize("project", ["../up", "/tmp/up", "a/../../up", "a\x00b", "a\nb"])
def test_a_project_cannot_leave_the_prefix(tmp_path, project):
    cfg = CFG.clone()
    cfg.LOG.PREFIX, cfg.EXPERIMENT.PROJECT = str(tmp_path / "output"), project
    with pytest.raises(PluginError, match="EXPERIMENT.PROJECT"):
        run_dir.run_directory(cfg, "name")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("link", ["project", "project/name", "project/name/seed_1"])
def test_a_link_does_not_lead_out_of_the_prefix(tmp_path, link):
    cfg = CFG.clone()
    cfg.LOG.PREFIX, cfg.EXPERIMENT.PROJECT = str(tmp_path / "output"), "project"
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / "output" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PluginError, match="a link is in between"):
        run_dir.run_directory(cfg, "name")


def test_a_prefix_that_is_a_link_itself_is_the_persons_own_choice(tmp_path):
    (tmp_path / "big_disk").mkdir()
    os.symlink(tmp_path / "big_disk", tmp_path / "output")
    cfg = CFG.clone()
    cfg.LOG.PREFIX = str(tmp_path / "output")
    assert run_dir.run_directory(cfg, "name") == tmp_path / "output" / "distill" / "name" / "seed_1"


@pytest.mark.parametrize("name", ["../up", "/tmp/up", "a/../../up"])
def test_a_suite_cannot_leave_the_output_folder(here, capsys, name):
    arms = {"a": {"cfg": str(QUICK / "vanilla.yaml")}}
    (here / "s.yaml").write_text(json.dumps({"name": name, "seeds": [1], "arms": arms}))
    assert main(["leaderboard", "--suite", "s.yaml"]) == 2
    assert f"name: got {name!r}" in capsys.readouterr().err
    arms = {name: arms["a"]}
    (here / "s.yaml").write_text(json.dumps({"name": "fine", "seeds": [1], "arms": arms}))
    assert main(["leaderboard", "--suite", "s.yaml", "--dry-run"]) == 2
    assert {path.name for path in here.iterdir()} == {"s.yaml"}
