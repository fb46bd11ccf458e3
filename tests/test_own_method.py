"""A method of somebody else's package in three files: its module, its configuration, and its test: this one."""

import json
import re
import runpy
import sys
from contextlib import contextmanager
from importlib.metadata import EntryPoint

import pytest
import torch
from runs import log_of, without_times
from small_runs import QUICK, ROOT, SMALL
from tiny import TinyNet, add_tiny_networks, batch

import atsc_plugin
from atsc_plugin import host, students
from atsc_plugin.__main__ import main
from atsc_plugin.config import load_cfg
from atsc_plugin.contract import HOST_METHODS
from atsc_plugin.methods import base

MODULE = '''
"""MATCH: the student's logits are drawn to the teacher's, and to nothing else."""

import torch
import torch.nn.functional as F
from torch import nn

from atsc_plugin.methods.base import Key, Method, method


def distance(logits, wanted, scale):
    """mean over images and classes of (scale * z_s - z_t)^2"""
    return F.mse_loss(scale * logits, wanted)


@method("MATCH", "matched logits")
class Match(Method):
    """loss = WEIGHT * mean (s z_s - z_t)^2 with one learnt number s."""

    KEYS = (Key("MATCH.WEIGHT", 1.0, "weight of the distance", minimum=0.0),)

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.weight = cfg.MATCH.WEIGHT
        self.scale = nn.Parameter(torch.ones(()))
        self.teacher.requires_grad_(False)

    def get_learnable_parameters(self):
        return [*self.student.parameters(), self.scale]

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        with torch.no_grad():
            wanted, _ = self.teacher(image)
        return logits, {"loss_match": self.weight * distance(logits, wanted, self.scale)}
'''

CONFIG = """
EXPERIMENT: {PROJECT: own, NAME: run}
DISTILLER: {TYPE: MATCH, TEACHER: tiny_teacher, STUDENT: tiny, TEACHER_CKPT: teacher.pth}
DATASET: {TYPE: digits100}
SOLVER: {TRAINER: plugin, EPOCHS: 2, BATCH_SIZE: 50, LR: 0.01}
MATCH: {WEIGHT: 0.5}
"""


@contextmanager
def installed(here, module, key):
    """The text of a module under an entry point; everything is taken away afterwards."""
    (here / "own_module.py").write_text(module)
    entry = EntryPoint("own", "own_module", "atsc_plugin.methods")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(here))
        patch.setattr(base, "entry_points", lambda group: [entry] if group == entry.group else [])
        base._import_methods.cache_clear()
        atsc_plugin.unregister()
        try:
            yield
        finally:
            atsc_plugin.unregister()
            base.METHODS.pop(key, None)
            sys.modules.pop("own_module", None)
            base._import_methods.cache_clear()
    atsc_plugin.register()


@pytest.fixture
def own_method(here, monkeypatch):
    """MODULE on the path, its configuration, and a teacher's file."""
    (here / "match.yaml").write_text(CONFIG)
    add_tiny_networks(monkeypatch)
    torch.manual_seed(0)
    torch.save({"model": host.cifar_model_dict["tiny_teacher"][0](num_classes=100).state_dict()}, "teacher.pth")
    with installed(here, MODULE, "MATCH"):
        yield here


def train(*words):
    return main(["train", "--cfg", "match.yaml", *words, *SMALL])


def test_a_method_of_another_package_trains_resumes_deploys_and_appears_under_its_title(own_method, capsys):
    assert main(["doctor", "--cfg", "match.yaml", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "MATCH (own_module.Match)" in printed
    assert "MATCH" in next(line for line in printed.splitlines() if line.startswith("methods"))

    assert train() == 0
    (result,) = own_method.glob("output/own/run*/seed_1/result.json")
    whole = result.parent
    facts = json.loads(result.read_text())
    assert (facts["method"], facts["method_name"]) == ("MATCH", "matched logits")
    assert facts["params_trained"] == facts["params_student"] + 1
    assert "loss_match" in log_of(whole)[0]

    parts = ["EXPERIMENT.NAME", "parts"]
    assert train(*parts, "SOLVER.EPOCHS", "1") == 0
    (resumed,) = own_method.glob("output/own/parts*/seed_1")
    (resumed / "result.json").unlink()  # as if the run had been broken off after its first epoch
    assert train(*parts, "--resume") == 0
    assert [without_times(line) for line in log_of(whole)] == [without_times(line) for line in log_of(resumed)]
    one, other = (students.load_student(folder) for folder in (whole, resumed))
    images, _ = batch()
    with torch.no_grad():
        assert torch.equal(one(images), other(images))

    capsys.readouterr()
    assert main(["eval", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == facts["top1_last"]
    assert main(["report", str(whole)]) == 0
    assert "matched logits" in capsys.readouterr().out


def test_its_keys_are_checked_like_ours(own_method, capsys):
    assert train("MATCH.WEIGHT", "-1") == 2
    assert "MATCH.WEIGHT: got -1.0, expected at least 0.0" in capsys.readouterr().err


def test_contributings_example_is_a_method_with_its_keys_and_its_part_of_the_pages(here):
    """As CONTRIBUTING.md prints it: loss_mse is the mean over images and classes of (z_s - z)^2, times WEIGHT."""
    module, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    kd = (QUICK / "kd.yaml").read_text(encoding="utf-8")
    (here / "logitmse.yaml").write_text(kd.replace('TYPE: "KD"', 'TYPE: "LOGITMSE"') + "LOGITMSE: {WEIGHT: 3.0}\n")
    with installed(here, module, "LOGITMSE"):
        atsc_plugin.register()
        cfg = load_cfg(here / "logitmse.yaml")
        distiller = host.distiller_dict["LOGITMSE"](TinyNet(width=4), TinyNet(width=6), cfg)
        images, target = batch()
        losses = distiller.train()(image=images, target=target)[1]
        with torch.no_grad():
            distance = (distiller.student(images)[0] - distiller.teacher(images)[0]).pow(2).sum() / 60
        assert losses["loss_mse"].item() == pytest.approx(3 * distance.item())
        assert losses.keys() == {"loss_ce", "loss_mse"}
        pages = runpy.run_path(ROOT / "tools" / "pages.py", run_name="pages")
        assert "## LOGITMSE: logit MSE" in pages["methods_text"]()
        assert "| `LOGITMSE.WEIGHT` | `1.0` |" in pages["keys_text"]()


def test_two_methods_of_one_name_are_refused():
    def other(name):
        return type("Other", (base.Method,), {})

    with pytest.raises(base.HostError, match="Two methods are called SIMKD.*Rename one"):
        base.method("SIMKD")(other("SIMKD"))
    assert "SIMKD" not in HOST_METHODS
