"""Two gloo ranks broken off anywhere and gone on with end as two that were left alone, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ddp_resume_script import trainer_of
from test_ddp import HERE, torchrun
from test_trainer import log_of, without_times

from atsc_plugin.engine import checkpoint, latest
from atsc_plugin.engine.meters import Meters

CASES = ["whole", "killed", "signalled", "evaluating", "minutes", "skipping", "more", "fewer"]
SAME = ["killed", "signalled", "evaluating", "minutes"]


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """ends[case]: how the case ended on rank 0 and on rank 1; ends["where"]: the folder of their runs."""
    where = tmp_path_factory.mktemp("ranks")
    done = torchrun(str(HERE / "ddp_resume_script.py"), str(where), *CASES)
    assert done.returncode == 0, done.stderr[-3000:]
    each = {case: [torch.load(where / f"{case}_{rank}.pt", weights_only=True) for rank in range(2)] for case in CASES}
    return {**each, "where": where}


def figures(folder):
    return [without_times(line) for line in log_of(folder)]


@pytest.mark.parametrize("case", SAME)
def test_ranks_that_were_broken_off_end_as_the_whole_ones(ends, case):
    for whole, broken in zip(ends["whole"], ends[case], strict=True):
        for name, tensor in whole["state"].items():
            assert torch.equal(tensor, broken["state"][name]), name
    one, other = ends["where"] / "whole" / "run", ends["where"] / case / "run"
    assert figures(one) == figures(other)
    left_out = {"seconds", "images"}
    for name in ("latest", "best"):
        first, second = (checkpoint.load(folder / name) for folder in (one, other))
        for key in first.keys() - left_out:
            assert checkpoint.digest(first[key]) == checkpoint.digest(second[key]), (name, key)
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, other)]
    assert without_times(results[0]) | {"peak_memory_mb": 0} == without_times(results[1]) | {"peak_memory_mb": 0}


def test_three_ranks_add_up_in_the_same_order_before_and_after_a_continuation(tmp_path):
    done = torchrun(str(HERE / "ddp_resume_script.py"), str(tmp_path), "whole", "killed", ranks=3)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(3):
        whole, killed = (torch.load(tmp_path / f"{case}_{rank}.pt")["state"] for case in ("whole", "killed"))
        assert all(torch.equal(tensor, killed[name]) for name, tensor in whole.items())
    assert figures(tmp_path / "whole" / "run") == figures(tmp_path / "killed" / "run")


def test_the_lives_of_killed_ranks_began_where_the_last_state_of_all_ranks_was(ends):
    for lives in (end["lives"] for end in ends["killed"]):
        assert [life["saved"] for life in lives] == [
            "after step 2 of epoch 1",  # dies before step 4, having written after 2
            "after step 4 of epoch 1",  # steps 3 and 4, dies before 5
            "after step 2 of epoch 2",  # step 5, steps 1 and 2, dies before 3
        ]


def test_a_signal_to_one_rank_ends_all_at_the_same_step_with_its_status(ends):
    first, second = (end["first"] for end in ends["signalled"])
    assert first["status"] == second["status"] == 143
    # rank 1 hears it before step 2, tells after step 2, and all act after step 3
    assert first["saved"] == second["saved"] == "after step 3 of epoch 1"
    assert "torchrun --standalone --nproc_per_node=2 " in first["said"]
    assert "--resume" in first["said"]
    assert "--resume" not in second["said"]


def test_a_signal_in_the_evaluation_of_unequal_shares_ends_all_ranks_there(ends):
    for end in ends["evaluating"]:
        assert end["first"] == {
            "status": 138,
            "saved": "after step 5 of epoch 1",
        }  # not after epoch 1: it goes on there


def test_the_first_rank_to_find_a_state_due_has_all_write_it_together(ends):
    """Told after step 1, done after step 2; told after step 3, and dead before the answer."""
    assert [end["saved"] for end in ends["minutes"]] == [[2], [2]]


def test_a_step_whose_numbers_are_bad_on_one_rank_is_left_out_by_all_and_stays_so(ends):
    for end in ends["skipping"]:
        for name, tensor in end["twin"].items():
            assert torch.isfinite(tensor).all(), name
            assert torch.equal(tensor, end["state"][name]), name
    for name, tensor in ends["skipping"][0]["state"].items():
        assert torch.equal(tensor, ends["skipping"][1]["state"][name]), name
    one, other = (figures(ends["where"] / case / "run") for case in ("skipping", "skipping_killed"))
    assert one == other
    assert [line["skipped_steps"] for line in one] == [1, 0]
    assert_whole_counts(one[0], images=36 - 8)


def assert_whole_counts(line, images):
    """An accuracy over all ranks' images is a whole number of them."""
    for name in ("train_top1", "teacher_train_top1"):
        count = 36 if name == "teacher_train_top1" else images  # the method sees the images of a step that is left out
        hits = line[name] / 100 * count
        assert hits == pytest.approx(round(hits), abs=1e-6), name


def test_a_state_inside_an_epoch_has_a_part_of_every_rank(ends):
    inside = ends["fewer"][0]["inside"]
    (other,) = inside["others"]
    assert not torch.equal(inside["random"]["torch"], other["random"]["torch"])
    assert (inside["meters"]["images"], other["meters"]["images"]) == (12, 12)  # 3 steps of 4 images each
    name = "student.bn.running_mean"
    assert not torch.equal(inside["buffers"][name], other["buffers"][name])
    assert torch.equal(latest.read(ends["where"] / "fewer" / "run")[0]["model"][name], inside["buffers"][name])


def test_more_ranks_or_fewer_may_go_on_and_are_told_that_bits_may_differ(ends, capsys):
    for name, tensor in ends["more"][0]["state"].items():
        assert torch.equal(tensor, ends["more"][1]["state"][name]), name
    fewer = trainer_of(ends["where"], "fewer")
    fewer.train(resume=True)
    assert "note: world_size was 2, is 1: the last digits may differ from now on" in capsys.readouterr().out
    for name in ("more", "fewer"):
        lines = log_of(ends["where"] / name / "run")
        assert [line["epoch"] for line in lines] == [1, 2]
        for line in lines:
            assert_whole_counts(line, images=36)
            whole = log_of(ends["where"] / "whole" / "run")[line["epoch"] - 1]
            assert line["loss_teacher_ce"] == pytest.approx(whole["loss_teacher_ce"], rel=0.05)


def test_sums_of_two_ranks_are_added_up_by_one():
    parts = []
    for seed in (1, 2):
        meters = Meters(torch.device("cpu"))
        meters.add({"ce": torch.tensor(float(seed))}, torch.eye(3), torch.tensor([0, 1, 0]))
        parts.append(meters.state())
    both = Meters(torch.device("cpu"))
    both.load_state(parts[0])
    both.load_more(parts[1])
    summary = both.summary()
    assert (summary["ce"], summary["images"]) == (1.5, 6)  # (1 * 3 + 2 * 3) / 6
    assert summary["train_top1"] == pytest.approx(100 * 4 / 6)
    assert both.steps == 1


def test_sigterm_to_torchrun_leaves_a_state_of_both_ranks_and_the_command_that_goes_on(tmp_path):
    words = ["--standalone", "--nproc_per_node=2", str(HERE / "ddp_resume_script.py"), str(tmp_path), "slow"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    job = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=HERE.parent, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        waited = time.monotonic()
        while not Path(tmp_path, "begun").exists() and time.monotonic() - waited < 200:
            time.sleep(0.2)
        job.send_signal(signal.SIGTERM)
        said = job.communicate(timeout=100)[1]
    finally:
        job.kill()
    assert "torchrun --standalone --nproc_per_node=2 " in said, said[-3000:]
    state, path = latest.read(tmp_path / "slow" / "run")
    assert path.name == "latest"
    assert state["inside"] is None or len(state["inside"]["others"]) == 1
