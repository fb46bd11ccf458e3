"""`adapted`: the teacher that an ATSC run left, as a file that other runs start from."""

import json

import pytest
import torch
from small_runs import refused, run_folder, tiny
from tiny import TinyNet

from atsc_plugin.__main__ import main
from atsc_plugin.engine import checkpoint

MOVED = ["ATSC.DRIFT.WEIGHT", "1.0", "ATSC.GUARD", "none"]


@pytest.fixture(autouse=True)
def two_teachers(here, tiny_networks):
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save({"model": TinyNet(100, width=8).state_dict()}, f"teacher_{seed}.pth")


def test_a_student_of_the_adapted_teacher_begins_where_atsc_left_it(here, capsys):
    assert tiny("atsc", "DISTILLER.TEACHER_CKPT", "teacher_1.pth", *MOVED) == 0
    folder = run_folder(here)
    assert main(["adapted", str(folder), "--out", "kept/adapted.pth"]) == 0
    assert "teacher tiny_teacher, as" in capsys.readouterr().out
    begun, left = torch.load("teacher_1.pth")["model"], checkpoint.load("kept/adapted.pth")["model"]
    assert begun.keys() == left.keys()
    assert not torch.equal(begun["conv.weight"], left["conv.weight"])
    assert tiny("simkd", "DISTILLER.TEACHER_CKPT", "kept/adapted.pth", name="after") == 0
    after, before = (json.loads((run_folder(here, name) / "result.json").read_text()) for name in ("after", "run"))
    assert after["teacher_top1_before"] == before["teacher_top1_after"]
    capsys.readouterr()
    refused(capsys, main(["adapted", str(run_folder(here, "after"))]), "a run of SIMKD, which leaves its teacher as it")
    refused(capsys, main(["adapted", str(folder), "--out", "kept/adapted.pth"]), "is there already", "--out")
    words = ["DISTILLER.TEACHER", "resnet20", "DISTILLER.TEACHER_CKPT", "kept/adapted.pth"]
    refused(capsys, tiny("simkd", *words, name="wrong"), "tiny_teacher", "resnet20")


def test_several_teachers_become_a_file_each(here):
    words = ["DISTILLER.TEACHER", "", "DISTILLER.TEACHERS", "[tiny_teacher, tiny_teacher]"]
    words += ["DISTILLER.TEACHER_CKPTS", "[teacher_1.pth, teacher_2.pth]", *MOVED]
    assert tiny("atsc_multi", *words) == 0
    folder = run_folder(here)
    assert main(["adapted", str(folder)]) == 0
    weights = checkpoint.load(folder / "latest")["model"]
    for number in (1, 2):
        state = checkpoint.load(folder / f"teacher_last_{number}")["model"]
        assert state.keys() == TinyNet(100).state_dict().keys()
        assert torch.equal(state["fc.weight"], weights[f"teacher.{number - 1}.fc.weight"])


def test_what_is_no_finished_run_is_told(here, capsys):
    refused(capsys, main(["adapted", "nowhere"]), "nowhere is no finished run (no result.json)")
