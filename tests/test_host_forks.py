"""Real checkouts of mdistiller and its forks, named by MDISTILLER_PATHS (separated as PATH is); skipped without."""

import os

import pytest
from fork_checkouts import run_script

PATHS = [path for path in os.environ.get("MDISTILLER_PATHS", "").split(os.pathsep) if path]


@pytest.mark.skipif(not PATHS, reason="MDISTILLER_PATHS names no checkouts of mdistiller or its forks")
@pytest.mark.parametrize("path", PATHS or ["none"])
def test_our_methods_train_in_a_real_checkout(path):
    done = run_script(path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "fork fits:" in done.stdout
    assert path in done.stdout
