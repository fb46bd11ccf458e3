"""`bench`: arms in turns, operations counted, factors that multiply, files and refusals. No test looks at a clock."""

import json

import pytest
import torch
from torch import nn

import atsc_plugin
from atsc_plugin.__main__ import main
from atsc_plugin.benchmark.achievable import Work
from atsc_plugin.benchmark.timing import interleaved, summary

CPU = torch.device("cpu")


def test_arms_take_turns_and_none_is_always_first():
    calls = []
    times = interleaved({name: lambda n=name: calls.append(n) for name in "abc"}, CPU, rounds=3, calls=2, warm_up=1)
    assert "".join(calls) == "abc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_summary_is_the_median_and_half_the_quartiles_distance():
    assert summary([1.0, 2.0, 4.0, 7.0, 11.0]) == {"ms": 4.0, "spread": 2.5, "low": 1.0, "high": 11.0}
    assert summary([3.0]) == {"ms": 3.0, "spread": 0.0, "low": 3.0, "high": 3.0}


def test_flops_and_bytes_of_a_linear_layer_and_its_backward_are_those_of_the_formula():
    layer, image = nn.Linear(5, 7, bias=False), torch.randn(3, 5)
    with Work() as forward:
        output = layer(image)
    assert forward.flops() == 2 * 3 * 5 * 7
    # image 3x5, weight 5x7, output 3x7, four bytes each; the transposed weight is a view and moves nothing
    assert sum(moved for _, moved in forward.operations) == 4 * (15 + 35 + 21)
    with Work() as backward:
        output.backward(torch.ones_like(output))
    assert backward.flops() == 2 * 3 * 5 * 7  # the weight's gradient; the image wants none


def test_the_achievable_time_takes_the_slower_of_both_ceilings_for_each_operation():
    work = Work()
    work.operations = [(100, 10), (0, 40)]
    assert work.seconds({"flops_per_second": 10.0, "bytes_per_second": 2.0}) == max(100 / 10, 10 / 2) + 40 / 2


def test_the_released_step_costs_a_second_backward_and_moves_what_the_published_moves():
    atsc_plugin.register()
    from atsc_plugin.benchmark.arms import Arm, Prepared

    arms = {name: Prepared(Arm(name, "resnet20", "resnet8", 4), CPU) for name in ("released", "published")}
    flops = {}
    for name, run in arms.items():
        with Work() as work:
            run()
        flops[name] = work.flops()
        run()
    assert flops["released"] > 1.3 * flops["published"]
    ours, theirs = (run.step.distiller.state_dict() for run in arms.values())
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6), name
    assert arms["released"].kept_mb() > 0
    assert arms["released"].peak_mb() is None


SMALL = ["--teacher", "resnet20", "--student", "resnet8", "--batch", "4", "--rounds", "2"]


def test_bench_step_prints_a_table_and_factors_that_multiply_and_writes_them(tmp_path, capsys):
    assert main(["bench", "step", *SMALL, "--json", str(tmp_path / "step.json"), "--profile"]) == 0
    told = capsys.readouterr().out
    assert "images_per_second" in told
    assert "work saved by FLOPs" in told
    assert "Self CPU" in told
    content = json.loads((tmp_path / "step.json").read_text())
    assert [row["arm"] for row in content["rows"]] == [
        "released contiguous", "fused", "fused contiguous", "SIMKD", "KD"
    ]  # fmt: skip
    figures = content["figures"]
    assert figures["work saved"] * figures["layout"] == pytest.approx(figures["both"])
    assert content["rows"][0]["times_released"] == 1.0


def test_bench_data_files_and_epoch_run_and_say_their_ratios(capsys):
    assert main(["bench", "data", "--images", "64", "--batch", "16", "--rounds", "1"]) == 0
    assert "device loader over torchvision's" in capsys.readouterr().out
    assert main(["bench", "files", "--images", "3", "--rounds", "1"]) == 0
    assert "decoded to tensors over the host's way" in capsys.readouterr().out
    assert main(["bench", "epoch", *SMALL, "--images", "8"]) == 0
    told = capsys.readouterr().out
    assert "trainer's overhead" in told
    assert "data wait" in told


def test_bench_refuses_what_it_does_not_know(capsys):
    assert main(["bench", "step", "--methods", "atsc"]) == 2
    assert "--methods atsc: expected of released, published, fused, SIMKD, KD" in capsys.readouterr().err
    assert main(["bench", "step", "--teacher", "resnet999"]) == 2
    assert "'resnet999' is no network of this host" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "data", "--batch", "0"])
