"""DIH and COTEACH under mdistiller's own script and trainer, which hand over neither data nor a cache."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT, launch, real
from PIL import Image

from atsc_plugin.__main__ import main
from atsc_plugin.host import tiny_imagenet_model_dict

NETS = ["DATASET.TYPE", "tiny_imagenet", "DATASET.NUM_WORKERS", "0", "DISTILLER.TEACHER", "ResNet18",
        "DISTILLER.STUDENT", "ResNet18", "SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "6",
        "DIH.STAGES", "[4]", "DIH.HEADS.EPOCHS", "1"]  # fmt: skip


@pytest.fixture
def place(tmp_path, without_cuda):  # noqa: F811
    """A Tiny-ImageNet of eight images and a teacher; the script's constants are pointed at them."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for name in ("a", "b"):
            folder = tmp_path / "tiny-imagenet-200" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    torch.manual_seed(0)
    net = tiny_imagenet_model_dict["ResNet18"][0](num_classes=200)
    torch.save({"model": net.state_dict()}, tmp_path / "teacher.pth")
    with open(tmp_path / "site" / "sitecustomize.py", "a") as file:
        file.write(
            f"import sys; sys.path.insert(0, {os.environ['MDISTILLER_PATH']!r})\n"
            "import mdistiller.dataset.tiny_imagenet as t\n"
            f"t.data_folder = {str(tmp_path / 'tiny-imagenet-200')!r}\n"
            "from mdistiller.models import tiny_imagenet_model_dict as d\n"
            f"d['ResNet18'] = (d['ResNet18'][0], {str(tmp_path / 'teacher.pth')!r})\n"
        )
    return tmp_path


def run_script(place, path, method, *words):
    script = Path(os.environ["MDISTILLER_PATH"]) / "tools" / "train.py"
    config = ROOT / "configs" / "quickstart" / f"{method}.yaml"
    return launch(script, "--cfg", str(config), *NETS, "SOLVER.TRAINER", "base", *words, "LOG.PREFIX",
                  str(place / "out"), cwd=place, PYTHONPATH=path)  # fmt: skip


@real
def test_coteach_trains_under_the_real_script(place, without_cuda):  # noqa: F811
    done = run_script(place, without_cuda, "coteach")
    assert done.returncode == 0, done.stderr[-2000:]
    latest = torch.load(next((place / "out").rglob("latest")), weights_only=False)
    assert any(name.startswith("module.scratch.") for name in latest["model"])


@real
def test_dih_asks_the_real_script_for_heads_and_takes_cached_ones(place, without_cuda, monkeypatch):  # noqa: F811
    done = run_script(place, without_cuda, "dih")
    assert done.returncode == 2
    assert "python -m atsc_plugin prepare --cfg FILE" in done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.chdir(place)
    words = ["--cfg", str(ROOT / "configs/quickstart/dih.yaml"), *NETS, "DATASET.ROOT", str(place)]
    assert main(["prepare", *words, "DISTILLER.TEACHER_CKPT", str(place / "teacher.pth")]) == 0
    done = run_script(place, without_cuda, "dih")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "heads of ResNet18 from output/teachers/ResNet18-tiny_imagenet-heads-" in done.stdout
