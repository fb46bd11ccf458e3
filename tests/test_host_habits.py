"""What forks of mdistiller differ in, each in a fork in miniature: our methods learn under all of them."""

import os
import sys

import pytest
from fork_checkouts import LISTED, OPTIONAL_CFG, ROOT, VIEWS, WANTS_CFG, fork, run_script
from forks import python_run
from torch import nn

from atsc_plugin.errors import HostError
from atsc_plugin.host import _base_arguments


@pytest.mark.parametrize(
    ("changes", "words", "left"),
    [
        (WANTS_CFG, [], "[]"),
        (LISTED, [], "['SIMKD']"),
        (VIEWS, ["BOTH"], "[]"),
        (OPTIONAL_CFG, [], "[]"),
    ],
    ids=[
        "cfg in the constructor, nothing optional",
        "teachers in a list, a SIMKD of its own",
        "two views",
        "a cfg that is optional and used",
    ],
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
    done = python_run(command, env=environment, cwd=tmp_path)
    assert "mdistiller.distillers True" in done.stdout, done.stderr


# ---- the rules one by one ----


def base(constructor):
    namespace = {"nn": nn}
    exec(f"class Base(nn.Module):\n    def __init__({constructor}):\n        nn.Module.__init__(self)\n", namespace)
    return namespace["Base"]


@pytest.mark.parametrize(
    ("constructor", "wanted"),
    [
        ("self, student, teacher", (("s", "t"), {})),
        ("self, student, teacher, cfg", (("s", "t"), {"cfg": "c"})),
        ("self, student, teacher, cfg=None", (("s", "t"), {"cfg": "c"})),
        ("self, student, teacher, *, cfg", (("s", "t"), {"cfg": "c"})),
        ("self, student, teacher, args", (("s", "t", "c"), {})),
        ("self, student, teachers, cfg", (("s", ["t"]), {"cfg": "c"})),
        ("self, *networks", (("s", "t"), {})),
    ],
)
def test_a_base_is_constructed_with_what_it_demands(constructor, wanted):
    assert _base_arguments(base(constructor), "s", "t", "c") == wanted


@pytest.mark.parametrize("constructor", ["self, student", "self, student, teacher, cfg, num_data", "self"])
def test_a_constructor_nobody_can_guess_is_refused_with_its_words(constructor):
    with pytest.raises(HostError, match=r"is constructed with \(.*\); expected \(student, teacher\)"):
        _base_arguments(base(constructor), "s", "t", "c")
