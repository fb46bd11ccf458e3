"""Several teachers on the real mdistiller, under its own stock trainer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif("MDISTILLER_PATH" not in os.environ, reason="MDISTILLER_PATH names no mdistiller checkout")
def test_the_real_base_trainer_trains_every_method_for_several_teachers(tmp_path):
    path = os.pathsep.join([os.environ["MDISTILLER_PATH"], str(ROOT)])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("real_host_multi.py")), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "ATSC_HOST": "auto"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "several teachers under mdistiller" in done.stdout
