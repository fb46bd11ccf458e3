"""`launch`: a host's own script runs unmodified with our entries registered; a small stand-in, and the real one."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import ROOT, launch, real
from PIL import Image
from small_runs import QUICK

from atsc_plugin.__main__ import main
from atsc_plugin.host import tiny_imagenet_model_dict
from atsc_plugin.methods.base import load_methods

# A fork in miniature: its registries, its config, and a script that only looks and reports.
FORK = {
    "mdistiller/__init__.py": "",
    "mdistiller/distillers/__init__.py": "distiller_dict = {}",
    "mdistiller/distillers/_base.py": (
        "from torch import nn\nclass Distiller(nn.Module):\n"
        "    def __init__(self, student, teacher):\n        super().__init__()\n"
    ),
    "mdistiller/engine/__init__.py": "trainer_dict = {}",
    "mdistiller/engine/cfg.py": "from yacs.config import CfgNode\nCFG = CfgNode({'SOLVER': {'LR': 0.1}})\n",
    "tools/train.py": (
        "import sys\nimport helper_beside_the_script\n"
        "from mdistiller.distillers import distiller_dict\nfrom mdistiller.engine import trainer_dict\n"
        "from mdistiller.engine.cfg import CFG\n"
        "CFG.merge_from_list(sys.argv[1:])\n"
        "print('seen', sorted(distiller_dict), sorted(trainer_dict), CFG.SIMKD.LOSS.FEAT_WEIGHT, __name__)\n"
        "sys.exit(7)\n"
    ),
    "tools/helper_beside_the_script.py": "",
}


def test_a_forks_script_sees_our_entries_and_its_exit_status_is_ours(tmp_path):
    for name, text in FORK.items():
        path = tmp_path / "fork" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = launch(tmp_path / "fork/tools/train.py", "SIMKD.LOSS.FEAT_WEIGHT", "2.5", cwd=tmp_path)
    assert f"seen {sorted(load_methods())} ['plugin'] 2.5 __main__" in done.stdout, done.stderr
    assert done.returncode == 7


def test_a_script_that_misses_a_file_is_told_with_the_folders_it_looks_in(tmp_path):
    for name, text in {**FORK, "tools/train.py": "open('ckpt_epoch_240.pth')"}.items():
        path = tmp_path / "fork" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = launch(tmp_path / "fork/tools/train.py", cwd=tmp_path)
    assert done.returncode == 2
    said = " ".join(done.stderr.split())
    assert "train.py ended with FileNotFoundError" in said and "ckpt_epoch_240.pth" in said
    assert f"data from {tmp_path / 'fork' / 'data'}" in said and "whatever DATASET.ROOT" in said


def test_a_script_that_is_not_there_or_has_no_host_is_told(tmp_path):
    done = launch(tmp_path / "none.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "There is no script" in done.stderr
    (tmp_path / "train.py").write_text("print('ran')")
    if "MDISTILLER_PATH" not in os.environ:
        done = launch(tmp_path / "train.py", cwd=tmp_path)
        assert done.returncode == 2
        assert "no package mdistiller can be imported" in done.stderr
        assert "ran" not in done.stdout


# ---- the real mdistiller ----


@real
def test_the_real_script_gets_as_far_as_the_missing_cifar100(tmp_path, without_cuda):
    script = Path(os.environ["MDISTILLER_PATH"]) / "tools" / "train.py"
    config = ROOT / "configs/cifar100/atsc/res32x4_res8x4.yaml"
    done = launch(script, "--cfg", str(config), cwd=tmp_path, PYTHONPATH=without_cuda)
    assert "registered with mdistiller" in done.stdout
    assert "CONFIG" in done.stdout  # its own show_cfg has run on our keys
    assert done.returncode != 0
    assert "cs.toronto.edu" in done.stderr or "URLError" in done.stderr or "urlopen" in done.stderr


@pytest.fixture
def place(tmp_path, without_cuda):
    """A Tiny-ImageNet of eight images and a teacher; the constants of mdistiller's modules are pointed at them."""
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


def run_script(place, path, config, *words):
    script = Path(os.environ["MDISTILLER_PATH"]) / "tools" / "train.py"
    return launch(script, "--cfg", str(config), *words, "LOG.PREFIX", str(place / "out"), cwd=place, PYTHONPATH=path)


@real
@pytest.mark.parametrize("trainer", ["base", "plugin"])
def test_the_real_script_trains_atsc_for_an_epoch_on_a_tiny_imagenet_tree(place, without_cuda, trainer):
    words = ["SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "2", "DATASET.NUM_WORKERS", "0", "SOLVER.TRAINER", trainer]
    if trainer == "base":  # it has one rate for all, at which the file's drift diverges
        words += ["ATSC.TEACHER.LR_SCALE", "1.0", "ATSC.DRIFT.WEIGHT", "1.0"]
    done = run_script(place, without_cuda, ROOT / "configs/tiny_imagenet/atsc.yaml", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((place / "out").rglob("latest"))
    if trainer == "plugin":
        assert list((place / "out").rglob("result.json"))


# DIH and COTEACH are handed neither data nor a cache by that script.
NETS = ["DATASET.TYPE", "tiny_imagenet", "DATASET.NUM_WORKERS", "0", "DISTILLER.TEACHER", "ResNet18",
        "DISTILLER.STUDENT", "ResNet18", "SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "6",
        "DIH.STAGES", "[4]", "DIH.HEADS.EPOCHS", "1"]  # fmt: skip


@real
@pytest.mark.parametrize(("method", "beside"), [("coteach", "scratch"), ("shake", "shadow"), ("adaptkd", "adapter")])
def test_it_trains_under_the_real_script(place, without_cuda, method, beside):
    words = [*NETS, "SOLVER.TRAINER", "base", "ADAPTKD.TEACHER.LR_SCALE", "1.0"]
    done = run_script(place, without_cuda, QUICK / f"{method}.yaml", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    latest = torch.load(next((place / "out").rglob("latest")), weights_only=False)
    assert any(name.startswith(f"module.{beside}.") for name in latest["model"])


@real
def test_dih_asks_the_real_script_for_heads_and_takes_cached_ones(place, without_cuda, monkeypatch):
    done = run_script(place, without_cuda, QUICK / "dih.yaml", *NETS, "SOLVER.TRAINER", "base")
    assert done.returncode == 2
    assert "python -m atsc_plugin prepare --cfg FILE" in done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.chdir(place)
    words = ["--cfg", str(QUICK / "dih.yaml"), *NETS, "DATASET.ROOT", str(place)]
    assert main(["prepare", *words, "DISTILLER.TEACHER_CKPT", str(place / "teacher.pth")]) == 0
    done = run_script(place, without_cuda, QUICK / "dih.yaml", *NETS, "SOLVER.TRAINER", "base")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "heads of ResNet18 from output/teachers/ResNet18-tiny_imagenet-heads-" in done.stdout
