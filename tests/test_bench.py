"""`bench`: arms in turns, operations counted, ratios that multiply, files and refusals. No test looks at a clock."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import atsc_plugin
from atsc_plugin import host
from atsc_plugin.__main__ import main
from atsc_plugin.bench import estimate, steps
from atsc_plugin.bench.launches import step_of
from atsc_plugin.bench.roofline import CountedOperations
from atsc_plugin.bench.steps import CLASSES, Arm, PreparedStep, arms_of, row_of
from atsc_plugin.bench.timing import interleaved, row, text_table
from atsc_plugin.data.datasets import train_images
from atsc_plugin.engine import graph
from atsc_plugin.keys import changed

CPU = torch.device("cpu")


@pytest.fixture
def tiny(tiny_networks):
    atsc_plugin.register()


SMALL = ["--teacher", "tiny_teacher", "--student", "tiny", "--batch", "4", "--rounds", "2"]


def test_arms_take_turns_and_none_is_always_first():
    calls = []
    times = interleaved({name: lambda n=name: calls.append(n) for name in "abc"}, CPU, rounds=3, calls=2, warm_up=1)
    assert "".join(calls) == "abc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_row_has_the_median_half_the_quartiles_distance_and_the_rate():
    figures = {"ms": 4.0, "spread": 2.5, "low": 1.0, "high": 11.0, "images_per_second": 1000 * 8 / 4.0}
    assert row("a", [11.0, 1.0, 4.0, 2.0, 7.0], images=8) == {"arm": "a", **figures}
    assert row("a", [3.0], 3) == {
        "arm": "a", "ms": 3.0, "spread": 0.0, "low": 3.0, "high": 3.0, "images_per_second": 1000.0
    }  # fmt: skip


def test_a_table_has_a_column_for_each_figure_that_some_row_has():
    rows = [{"arm": "KD", "ms": 1038.4, "low": 1.0, "peak_mb": None}, {"arm": "SIMKD", "ms": 0.7034, "times_kd": 1.0}]
    assert text_table(rows, without=("low",)).splitlines() == [
        "  arm     ms  times_kd",
        "   KD   1038          ",
        "SIMKD  0.703         1",
    ]


def test_flops_and_bytes_of_a_linear_layer_and_its_backward_are_those_of_the_formula():
    layer, image = nn.Linear(5, 7, bias=False), torch.randn(3, 5)
    with CountedOperations() as forward:
        output = layer(image)
    assert forward.flops() == 2 * 3 * 5 * 7
    # image 3x5, weight 5x7, output 3x7, four bytes each; the transposed weight is a view and moves nothing
    assert sum(moved for _, moved in forward.operations) == 4 * (15 + 35 + 21)
    with CountedOperations() as backward:
        output.backward(torch.ones_like(output))
    assert backward.flops() == 2 * 3 * 5 * 7  # the weight's gradient; the image wants none


def test_the_roofline_takes_the_longer_of_both_times_for_each_operation():
    counted = CountedOperations()
    counted.operations = [(100, 10), (0, 40)]
    assert counted.seconds({"flops_per_second": 10.0, "bytes_per_second": 2.0}) == max(100 / 10, 10 / 2) + 40 / 2


def test_the_released_step_costs_a_second_backward_and_moves_what_the_published_moves():
    """The real networks of the smallest pair: on tiny ones the second backward is no large share of the step."""
    atsc_plugin.register()
    steps = {name: PreparedStep(Arm(name, "resnet20", "resnet8", 4), CPU) for name in ("released", "published")}
    flops = {name: step.operations().flops() for name, step in steps.items()}
    assert flops["released"] > 1.3 * flops["published"]
    ours, theirs = (step.distiller.state_dict() for step in steps.values())
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6), name


def convolution(outputs, inputs=3, kernel=3):
    """FLOPs of a pass of four images through a convolution that makes maps of 8 x 8."""
    return 4 * 2 * inputs * kernel**2 * outputs * 64


def linear(width):
    return 4 * 2 * width * CLASSES


# Of a student of width 4 and a teacher of width 8. A pass back costs two forward ones, the weights' gradient and the
# input's; images want none.
FORWARD_8, ALL_8 = convolution(8) + linear(8), 2 * convolution(8) + 3 * linear(8)
ALL_4 = 2 * convolution(4) + 3 * linear(4)
PROJECTOR = convolution(4, 4, 1) + convolution(4, 4) + convolution(8, 4, 1)
FLOPS = {
    "NONE": ALL_4,
    "KD": FORWARD_8 + ALL_4,
    # the student's own head runs with its trunk; the prediction through the teacher's classifier has no gradient
    "SIMKD": FORWARD_8 + 2 * convolution(4) + linear(4) + 3 * PROJECTOR + linear(8),
    # and the teacher's trunk learns by the feature loss, its classifier by a CE whose input sg(pool(F_t)) does not
    "ATSC": FORWARD_8 + convolution(8) + 2 * linear(8) + 2 * convolution(4) + linear(4) + 3 * PROJECTOR + linear(8),
    "DML": ALL_8 + ALL_4,
    "PEERS": FORWARD_8 + 2 * ALL_4,
}


@pytest.mark.parametrize("method", FLOPS)
def test_a_steps_flops_are_so_many_passes_of_teacher_and_student(tiny, method):
    arm = Arm(method, "tiny_teacher", "tiny", 4)
    frozen = ["PEERS.TEACHER.INIT", "frozen"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "CIFAR100", [*steps.CIFAR100, *frozen])
        step, gflops = PreparedStep(arm, CPU), step_of(arm, CPU)[1]
    with FlopCounterMode(display=False) as torchs:
        step()
    assert torchs.get_total_flops() == step.operations().flops() == FLOPS[method]
    assert gflops == FLOPS[method] * 64 / 4 / 1e9


def test_a_teacher_that_learns_in_every_other_step_costs_a_forward_pass_in_the_steps_between(tiny):
    # beside the student: the teacher's network runs, and its classifier once more on the map that the student is given
    students = 2 * convolution(4) + linear(4) + 3 * PROJECTOR + 2 * linear(8)
    step = PreparedStep(Arm("task_every_2", "tiny_teacher", "tiny", 4), CPU)
    assert step.operations().flops() == (ALL_8 + students) + (FORWARD_8 + students)  # two steps; a row has their mean
    peak = {"flops_per_second": 1.0, "bytes_per_second": 1.0}
    own = row_of(step, [10.0, 20.0, 30.0], peak)
    assert own["gflops"] * 1e9 == (ALL_8 + FORWARD_8) / 2 + students
    assert own["ms"] == 20.0 / 2


def test_every_registered_method_that_needs_no_more_than_images_is_an_arm(tiny):
    """COTEACH and methods to come are arms without a line in `bench`; several teachers have arms of their own."""
    for method in ("NONE", "DKD", "COTEACH", "AVERKD", "ATSC_x2"):
        step = PreparedStep(Arm(method, "tiny_teacher", "tiny", 4), CPU)
        assert step.operations().flops() > 0
        assert step.saved_mb() > 0
        assert step.peak_mb() is None
    assert len(step.distiller.teacher) == 2


def test_settings_are_named_and_the_released_step_has_fp32_and_torchs_layout_alone():
    arms = arms_of(["released", "fused"], "t", "s", 4, ["none", "bf16"], ["none", "default"])
    assert [arm.name for arm in arms] == [
        "released contiguous", "fused", "fused contiguous", "fused compiled default", "fused bf16",
        "fused bf16 compiled default",
    ]  # fmt: skip


def test_layouts_and_formats_make_four_arms_of_a_method(tiny):
    arms = arms_of(["KD"], "tiny_teacher", "tiny", 4, ["none", "bf16"], ["none"], ["contiguous", "channels_last"])
    assert [arm.name for arm in arms] == [
        "KD contiguous",
        "KD channels_last",
        "KD bf16 contiguous",
        "KD bf16 channels_last",
    ]
    for arm, stride in zip(arms[:2], (1024, 1), strict=True):
        assert PreparedStep(arm, CPU).inputs["image"].stride(1) == stride


def test_a_recorded_arm_stands_beside_the_one_that_runs_as_it_is_written(tiny, tmp_path, capsys):
    """On a CPU the recording is a plain call; the released step, which is never recorded, stays alone."""
    words = ["--methods", "released", "KD", "--graph", "none", "auto", "--json", str(tmp_path / "step.json")]
    assert main(["bench", "step", *SMALL, *words]) == 0
    assert "note: a cpu records no graph; recorded steps are plain calls here" in capsys.readouterr().err
    rows = {row["arm"]: row for row in json.loads((tmp_path / "step.json").read_text())["rows"]}
    assert list(rows) == ["released contiguous", "KD", "KD graph"]
    assert rows["KD"]["gflops"] == rows["KD graph"]["gflops"] > 0
    assert "cpu" not in graph.RECORDERS
    assert main(["bench", "step", *SMALL, "--methods", "SWITOKD", "--graph", "auto"]) == 2
    assert "SWITOKD graph: the step is not recorded, since SWITOKD pauses its teacher" in capsys.readouterr().err


def test_bench_step_prints_a_table_and_ratios_that_multiply_and_writes_them(tiny, tmp_path, capsys):
    assert main(["bench", "step", *SMALL, "--json", str(tmp_path / "step.json"), "--profile"]) == 0
    printed = capsys.readouterr().out
    assert "images_per_second" in printed
    assert "work saved by FLOPs" in printed
    assert "Self CPU" in printed
    content = json.loads((tmp_path / "step.json").read_text())
    assert [row["arm"] for row in content["rows"]] == [
        "released contiguous", "fused", "fused contiguous", "SIMKD", "KD"
    ]  # fmt: skip
    assert all(0 < row["share_of_matmul"] < row["share_of_roofline"] for row in content["rows"])
    ratios = content["ratios"]
    assert ratios["work saved"] * ratios["layout"] == pytest.approx(ratios["both"])
    assert content["rows"][0]["times_released"] == 1.0


def test_bench_loader_files_and_epoch_run_and_print_their_ratios(tiny, capsys):
    assert main(["bench", "loader", "--images", "64", "--batch", "16", "--rounds", "1"]) == 0
    assert "device loader over torchvision's" in capsys.readouterr().out
    assert main(["bench", "files", "--images", "3", "--rounds", "1"]) == 0
    assert "decoded to tensors over the host's" in capsys.readouterr().out
    assert main(["bench", "epoch", *SMALL, "--images", "8"]) == 0
    printed = capsys.readouterr().out
    assert "trainer's overhead" in printed
    assert "data wait" in printed


def test_bench_refuses_what_it_does_not_know(tiny, capsys):
    assert main(["bench", "step", "--methods", "atsc"]) == 2
    assert "--methods atsc: expected of released, published, fused, task, task_every_2, " in capsys.readouterr().err
    assert main(["bench", "step", "--teacher", "resnet999"]) == 2
    assert "'resnet999' is no network of this host" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "loader", "--batch", "0"])


def test_a_method_that_needs_more_than_images_and_labels_is_refused_by_name(tiny, monkeypatch, capsys):
    class Contrastive(host.distiller_dict["KD"]):
        def forward_train(self, image, target, contrastive_index, **kwargs):
            return super().forward_train(image, target, **kwargs)

    monkeypatch.setitem(host.distiller_dict, "CONTRASTIVE", Contrastive)
    assert main(["bench", "step", *SMALL, "--methods", "CONTRASTIVE"]) == 2
    assert "CONTRASTIVE makes no step on random images and labels (TypeError" in capsys.readouterr().err


# ---- what an epoch costs, estimated ----

# FLOPs of one 32-pixel image: a 3 x 3 convolution to a map of 8 x 8, and a classifier of 100.
TINY, TINY_TEACHER = 2 * 27 * 4 * 64 + 2 * 4 * 100, 2 * 27 * 8 * 64 + 2 * 8 * 100


@pytest.mark.parametrize(
    ("keys", "flops"),
    [
        ({"DISTILLER.TYPE": "NONE"}, 3 * TINY),
        ({"DISTILLER.TYPE": "KD"}, 3 * TINY + TINY_TEACHER),
        ({"DISTILLER.TYPE": "DML"}, 3 * TINY + 3 * TINY_TEACHER),
        ({"DISTILLER.TYPE": "AVERKD", "DISTILLER.TEACHERS": ["tiny_teacher", "tiny"]}, 4 * TINY + TINY_TEACHER),
    ],
)
def test_an_epoch_is_estimated_by_passes_of_its_networks_over_the_rate(tiny, monkeypatch, keys, flops):
    """At 1e6 FLOPs a second; 50,000 images, of which a tenth is cut off for validation."""
    monkeypatch.setattr(estimate, "measured_rate", lambda device: 1e6)
    monkeypatch.setattr(estimate, "forward_flops", estimate.forward_flops.__wrapped__)
    names = {"DISTILLER.TEACHER": "tiny_teacher", "DISTILLER.STUDENT": "tiny"}
    cfg = changed(host.CFG, {"DATASET.TYPE": "cifar100", "DATASET.VAL_SPLIT": 0.1, **names, **keys})
    told = estimate.epoch(cfg)
    assert told["seconds"] == 45_000 * flops / 1e6
    assert told["how"].startswith("estimated for cpu (") and "0 GFLOP/s of a resnet8x4 training step" in told["how"]


def test_images_of_an_epoch_are_counted_in_the_files_and_unknown_without_them(here, tiny):
    images = np.zeros((10, 8, 8, 3), np.uint8)
    np.savez("own.npz", train_images=images, train_labels=np.arange(10), test_images=images[:2], test_labels=[0, 1])
    for split in ("train/a", "train/b", "val/a", "val/b"):
        Path(split).mkdir(parents=True)
        Path(split, "1.png").touch()
    sets = [("npz", "own.npz", 0.2), ("npz", "absent.npz", 0.0), ("npz", "", 0.0), ("folder", ".", 0.0)]
    nodes = [changed(host.CFG, {"DATASET.TYPE": kind, "DATASET.ROOT": root, "DATASET.VAL_SPLIT": cut}).DATASET
             for kind, root, cut in sets]  # fmt: skip
    assert [train_images(node) for node in nodes] == [8, None, None, 2]


def test_the_rate_is_of_a_training_step_by_the_same_rule_and_of_a_cpus_own_time(tiny, monkeypatch):
    """Two steps of eight images, .5 s and .25 s of two threads: an eighth of a second on idle cores."""
    ticks = iter([0.0, 0.5, 7.0, 7.25])
    monkeypatch.setattr(estimate, "time", SimpleNamespace(process_time=lambda: next(ticks)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(estimate, "forward_flops", estimate.forward_flops.__wrapped__)
    assert estimate.measured_rate.__wrapped__(CPU, "tiny") == 3 * 8 * TINY / 0.125
