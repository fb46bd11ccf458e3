"""Forks of mdistiller in miniature, written to disk, and fork_script.py run on them or on real ones."""

import os
import sys
from pathlib import Path

from forks import python_run

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
# The config is optional, and used all the same.
OPTIONAL_CFG = {
    "distillers/_base.py": PLAIN["distillers/_base.py"]
    .replace("student, teacher):", "student, teacher, cfg=None):")
    .replace("super().__init__()", "super().__init__()\n        self.rate = cfg.SOLVER.LR"),
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
    return python_run([sys.executable, script, *words], env=environment)
