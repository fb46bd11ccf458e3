"""`launch` in a process of its own, and the real mdistiller where MDISTILLER_PATH names one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forks import python_run

ROOT = Path(__file__).resolve().parents[1]
real = pytest.mark.skipif("MDISTILLER_PATH" not in os.environ, reason="MDISTILLER_PATH names no mdistiller checkout")
# On a machine without CUDA: what mdistiller's trainer calls is made the identity, in the child process only.
WITHOUT_CUDA = (
    "import torch\ntorch.Tensor.cuda = lambda self, *a, **k: self\ntorch.nn.Module.cuda = lambda self, *a, **k: self\n"
)


def launch(script, *words, cwd, **environment):
    command = [sys.executable, "-m", "atsc_plugin", "launch", str(script), *words]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    surroundings.pop("ATSC_HOST", None)
    run = subprocess.run if environment else python_run  # a sitecustomize is read by a new Python alone
    return run(command, capture_output=True, text=True, cwd=cwd, env=surroundings)
