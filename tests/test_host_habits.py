"""The habits of forks, each in a fork in miniature that is written here: our methods learn under all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from atsc_plugin import habits, registration
from atsc_plugin.errors import HostError, PluginError
from atsc_plugin.host import distiller_dict

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {
    "__init__.py": "",
    "distillers/__init__.py": "distiller_dict = {}",
    "distillers/_base.py": (
        "from torch import nn\n"
        "class Distiller(nn.Module):\n"
        "    def __init__(self, student, teacher):\n"
        "        super().__init__()\n"
        "        self.student, self.teacher = student, teacher\n"
        "    def get_learnable_parameters(self):\n"
        "        return list(self.student.parameters())\n"
    ),
    "engine/__init__.py": "trainer_dict = {}",
    "engine/cfg.py": "from yacs.config import CfgNode\nCFG = CfgNode({'SOLVER': {'LR': 0.1}})\n",
}
# The constructor wants the config and uses it; nothing that a fork may lack is there: no trainer_dict, no models, no
# data sets, no engine.utils with a validate.
WANTS_CFG = {
    "engine/__init__.py": "",
    "distillers/_base.py": PLAIN["distillers/_base.py"].replace("student, teacher):", "student, teacher, cfg):")
    + "    def get_extra_parameters(self):\n        return 0\n",
}
# The base keeps a list of teachers and puts each into eval mode; a SIMKD of its own is registered.
LISTED = {
    "distillers/_base.py": (
        "from torch import nn\n"
        "class Distiller(nn.Module):\n"
        "    def __init__(self, student, teachers):\n"
        "        super().__init__()\n"
        "        assert isinstance(teachers, (list, nn.ModuleList))\n"
        "        self.student, self.teacher = student, teachers\n"
        "    def train(self, mode=True):\n"
        "        super().train(mode)\n"
        "        for teacher in self.teacher:\n"
        "            teacher.eval()\n"
        "        return self\n"
        "    def get_learnable_parameters(self):\n"
        "        return list(self.student.parameters())\n"
    ),
    "distillers/__init__.py": "class SimKD: pass\ndistiller_dict = {'SIMKD': SimKD}",
}
# forward hands on the views by name, and a method of its own demands both.
VIEWS = {
    "distillers/_base.py": PLAIN["distillers/_base.py"]
    + (
        "    def forward(self, **kwargs):\n"
        "        if self.training:\n"
        "            return self.forward_train(kwargs['image_weak'], kwargs['image_strong'], kwargs['target'])\n"
        "        return self.forward_test(kwargs['image'])\n"
        "    def forward_test(self, image):\n"
        "        return self.student(image)[0]\n"
    ),
    "distillers/__init__.py": (
        "import torch.nn.functional as F\n"
        "from ._base import Distiller\n"
        "class Both(Distiller):\n"
        "    def __init__(self, student, teacher, cfg):\n"
        "        super().__init__(student, teacher)\n"
        "    def forward_train(self, image_weak, image_strong, target, **kwargs):\n"
        "        assert image_weak is not image_strong\n"
        "        logits = self.student(image_weak)[0]\n"
        "        loss = F.cross_entropy(self.student(image_strong)[0], target)\n"
        "        return logits, {'loss_ce': loss + F.cross_entropy(logits, target)}\n"
        "distiller_dict = {'BOTH': Both}\n"
    ),
}


def fork(tmp_path, changes):
    """A checkout with a package `mdistiller`: PLAIN with the changes."""
    for name, text in {**PLAIN, **changes}.items():
        path = tmp_path / "fork" / "mdistiller" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "fork"


def run_script(checkout, *words):
    """fork_script.py with the checkout as its mdistiller."""
    path = os.pathsep.join([str(checkout), str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "ATSC_HOST": "mdistiller"}
    script = str(Path(__file__).with_name("fork_script.py"))
    return subprocess.run([sys.executable, script, *words], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("changes", "words", "left"),
    [
        (WANTS_CFG, [], "[]"),
        (LISTED, [], "['SIMKD']"),
        (VIEWS, ["BOTH"], "[]"),
    ],
    ids=["cfg in the constructor, nothing optional", "teachers in a list, a SIMKD of its own", "two views"],
)
def test_our_methods_train_under_the_habit(tmp_path, changes, words, left):
    done = run_script(fork(tmp_path, changes), *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"left to it: {left}" in done.stdout
    assert str(tmp_path / "fork") in done.stdout


def test_launch_leaves_a_name_to_the_fork_when_told_to(tmp_path):
    checkout = fork(tmp_path, LISTED)
    (checkout / "train.py").write_text(
        "from mdistiller.distillers import distiller_dict\n"
        "print(distiller_dict['SIMKD'].__module__, 'ATSC' in distiller_dict)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("ATSC_HOST", None)
    command = [sys.executable, "-m", "atsc_plugin", "launch", "--leave", "SIMKD", str(checkout / "train.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "mdistiller.distillers True" in done.stdout, done.stderr


def test_a_taken_name_is_told_with_the_way_to_leave_it(monkeypatch):
    monkeypatch.setitem(distiller_dict, "SIMKD", habits.adapted)
    with pytest.raises(PluginError, match="already has SIMKD: atsc_plugin.habits.adapted; .* `launch --leave SIMKD`"):
        registration.register()


def test_a_left_name_is_not_ours_and_an_unknown_one_is_told(monkeypatch):
    monkeypatch.setitem(distiller_dict, "SIMKD", "somebody's")
    registration.register(leave=["SIMKD"])
    try:
        assert distiller_dict["SIMKD"] == "somebody's"
        assert "ATSC" in distiller_dict
    finally:
        registration.unregister()
    assert distiller_dict["SIMKD"] == "somebody's"
    with pytest.raises(PluginError, match="leave names SIMDK; expected names of ours: SIMKD, ATSC"):
        registration.register(leave=["SIMDK"])


# ---- the rules one by one ----


def base(constructor):
    namespace = {"nn": nn}
    exec(f"class Base(nn.Module):\n    def __init__({constructor}):\n        nn.Module.__init__(self)\n", namespace)
    return namespace["Base"]


@pytest.mark.parametrize(
    ("constructor", "wanted"),
    [
        ("self, student, teacher", ("s", "t")),
        ("self, student, teacher, cfg", ("s", "t", "c")),
        ("self, student, teacher, cfg=None", ("s", "t")),
        ("self, student, teachers, cfg", ("s", ["t"], "c")),
        ("self, *networks", ("s", "t")),
    ],
)
def test_a_base_is_constructed_with_what_it_demands(constructor, wanted):
    assert habits.base_arguments(base(constructor), "s", "t", "c") == wanted


@pytest.mark.parametrize("constructor", ["self, student", "self, student, teacher, cfg, num_data", "self"])
def test_a_constructor_nobody_can_guess_is_refused_with_its_words(constructor):
    with pytest.raises(HostError, match=r"is constructed with \(.*\); expected \(student, teacher\)"):
        habits.base_arguments(base(constructor), "s", "t", "c")


def test_of_two_views_the_weak_one_is_taken_and_a_batch_of_one_is_left_alone():
    assert habits.one_view({"image": ("weak", "strong"), "target": 1}) == {"image": "weak", "target": 1}
    assert habits.one_view({"image_weak": "w", "image_strong": "s", "target": 1}) == {"image": "w", "target": 1}
    plain = {"image": "batch", "target": 1}
    assert habits.one_view(plain) is plain
    assert habits.views_for(object(), plain) is plain


def test_a_forks_method_that_takes_the_pair_as_it_is_gets_it_unchanged():
    class Pair:
        def forward_train(self, image, target):
            pass

    inputs = {"image": ("weak", "strong"), "target": 1}
    assert habits.views_for(Pair(), inputs) is inputs
