"""Several ranks: two gloo processes under torchrun against one process, what they write, and how they fail."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin.config import load_cfg
from atsc_plugin.engine import distributed
from atsc_plugin.engine.evaluate import evaluate
from atsc_plugin.engine.meters import Meters
from atsc_plugin.engine.precision import precision_of
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.host import CFG
from atsc_plugin.methods.atsc import ATSC

HERE = Path(__file__).resolve().parent
CASES = ["vanilla", "kd", "plain_atsc", "accumulated", "warming", "settling", "averaged", "normal"]
CPU = torch.device("cpu")


def torchrun(*words, ranks=2, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *words]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **environment}
    return subprocess.run(command, cwd=HERE.parent, env=settings, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """{(case, rank, ranks): end} of every case, by two ranks and by one process; and where their files are."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    done = torchrun(str(HERE / "ddp_script.py"), str(two), *CASES)
    assert done.returncode == 0, done.stderr[-3000:]
    words = [sys.executable, str(HERE / "ddp_script.py"), str(one), *CASES]
    alone = subprocess.run(words, cwd=HERE.parent, capture_output=True, text=True, timeout=300)
    assert alone.returncode == 0, alone.stderr[-3000:]
    ends = {}
    for folder, ranks in ((two, 2), (one, 1)):
        for case in CASES:
            for rank in range(ranks):
                path = folder / f"{case}_{rank}of{ranks}.pt"
                ends[case, rank, ranks] = torch.load(path, weights_only=False)
    return ends, two, done.stdout


@pytest.mark.parametrize("case", ["vanilla", "kd", "plain_atsc", "accumulated", "warming", "settling", "averaged"])
def test_two_ddp_ranks_end_where_one_process_with_the_same_global_batch_ends_without_bn(both, case):
    ends = both[0]
    first, second, one = ends[case, 0, 2], ends[case, 1, 2], ends[case, 0, 1]
    for name, tensor in one["state"].items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        assert torch.allclose(first["state"][name], tensor, atol=2e-5), name
    figures = ("top1_last", "top1_best", "top5_last", "best_epoch", "teacher_top1_before", "teacher_top1_after")
    assert {k: first["result"][k] for k in figures} == {k: one["result"][k] for k in figures}
    assert first["result"]["batch_size"] == one["result"]["batch_size"] == 8
    assert (first["result"]["world_size"], one["result"]["world_size"]) == (2, 1)


def test_two_ddp_ranks_of_a_net_with_bn_agree_and_log_the_metrics_of_all_images(both):
    ends, two, _ = both
    first, second = ends["normal", 0, 2], ends["normal", 1, 2]
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
    line = json.loads((two / "normal" / "run" / "log.jsonl").read_text().splitlines()[-1])
    hits = line["train_top1"] / 100 * 36  # a count over all 36 images, not a mean of the ranks' shares of 18
    assert hits == pytest.approx(round(hits), abs=1e-6)
    assert line["images_per_second"] * line["seconds"] == pytest.approx(36)
    one = ends["normal", 0, 1]["result"]
    assert (
        abs(one["top1_last"] - first["result"]["top1_last"]) <= 100 * 4 / 21
    )  # a few of 21 images, BN's batches differ


def first_result(ends):
    return ends["normal", 0, 2]["result"]


def test_ddp_leaves_theta_0_alone_and_only_the_first_rank_writes_and_speaks(both):
    ends, two, told = both
    for case in ("warming", "normal"):
        for name, tensor in ends[case, 0, 2]["start"].items():
            assert torch.equal(tensor, ends[case, 1, 2]["start"][name])
            assert torch.equal(tensor, ends[case, 0, 1]["start"][name])
    assert told.count("epoch 2/2") == len(CASES)
    kept = load_file(two / "normal" / "run" / "logits_last.safetensors")
    assert kept["labels"].tolist() == [index % 10 for index in range(21)]  # all test images, in their order
    hits = (kept["logits"].argmax(1) == kept["labels"]).sum().item()
    assert first_result(ends)["top1_last"] == pytest.approx(100 * hits / 21)
    lines = (two / "normal" / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert json.loads((two / "normal" / "run" / "about.json").read_text())["world_size"] == 2


def test_ddp_looks_for_resting_parameters_only_where_some_rest_at_the_start_or_later(both):
    ends = both[0]
    assert ends["warming", 0, 2]["looks_for_unused"] is True
    assert ends["settling", 0, 2]["looks_for_unused"] is True
    assert ends["normal", 0, 2]["looks_for_unused"] is False
    assert ends["kd", 0, 2]["looks_for_unused"] is False  # its teacher has gradients left on, but nobody moves it


def test_a_warming_teacher_moves_after_its_warm_up_under_ddp(both):
    ends = both[0]
    end = ends["warming", 0, 2]
    moved = [
        name
        for name, start in end["start"].items()
        if name in ("conv.weight", "fc.weight") and not torch.equal(start, end["state"][f"teacher.{name}"])
    ]
    assert moved == ["conv.weight", "fc.weight"]  # requires_grad was never taken from it: DDP has reduced both


def test_a_ddp_rank_that_dies_takes_the_job_down_within_a_minute_with_its_reason(tmp_path):
    started = time.monotonic()
    done = torchrun(str(HERE / "ddp_script.py"), str(tmp_path), "die")
    assert time.monotonic() - started < 60
    assert done.returncode != 0
    assert "AttributeError: 'NoneType' object has no attribute 'autocast'" in done.stderr
    assert not list(tmp_path.glob("*/run/result.json"))


def test_train_under_torchrun_has_one_rank_train_the_missing_teacher(tmp_path):
    words = [
        "tools/train.py",
        "--cfg",
        "configs/quickstart/simkd.yaml",
        "LOG.PREFIX",
        str(tmp_path),
        "SOLVER.EPOCHS",
        "1",
    ]
    words += ["DATASET.DIGITS100.TRAIN_IMAGES", "100", "DATASET.DIGITS100.VAL_IMAGES", "100", "TEACHER.EPOCHS", "1"]
    words += ["DATASET.DIGITS100.TEST_IMAGES", "100", "TEACHER.CACHE", str(tmp_path / "teachers")]
    words += ["DISTILLER.TEACHER", "resnet8", "DISTILLER.STUDENT", "resnet8"]
    done = torchrun(*words, ATSC_HOST="embedded")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("training one for 1 epochs") == 1  # one rank trained the teacher for both
    (result,) = tmp_path.glob("**/result.json")
    assert json.loads(result.read_text())["world_size"] == 2


def test_a_batch_that_the_ddp_ranks_do_not_divide_is_refused(monkeypatch):
    atsc_plugin.register()
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="SOLVER.BATCH_SIZE is 64.*torchrun started 3.*Use 63 or 66"):
        load_cfg("configs/quickstart/atsc.yaml", ["SOLVER.BATCH_SIZE", "64"])
    with pytest.raises(ConfigError, match="ATSC.UPDATE published is the released step on one device"):
        load_cfg("configs/quickstart/atsc_published.yaml", ["SOLVER.BATCH_SIZE", "63"])
    with pytest.raises(ConfigError, match="SOLVER.TRAINER base knows one. Use plugin"):
        load_cfg("configs/quickstart/simkd.yaml", ["SOLVER.BATCH_SIZE", "63", "SOLVER.TRAINER", "base"])


def test_ddp_without_a_rendezvous_is_told_by_name(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    told = "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set.*torchrun"
    with pytest.raises(PluginError, match=told), distributed.session("cpu"):
        raise AssertionError("the block must not run")


def test_sync_bn_on_cpu_ddp_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(PluginError, match="SYNC_BN needs GPUs; these ranks run on cpu"):
        distributed.with_sync_bn(TinyNet(), True, CPU)


def test_resting_parameters_are_found_on_a_copy_that_leaves_the_distiller_as_it_was():
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["ATSC.TEACHER.WARMUP_EPOCHS", 1])
    distiller = ATSC(TinyNet(width=4), TinyNet(width=6), cfg).train()
    before = {name: tensor.clone() for name, tensor in distiller.state_dict().items()}
    image, target = batch()
    names = distributed.resting(distiller, {"image": image, "target": target, "epoch": 1})
    assert names == [f"teacher.{name}" for name, _ in distiller.teacher.named_parameters()]
    assert distributed.resting(distiller, {"image": image, "target": target, "epoch": 2}) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in distiller.state_dict().items())
    assert all(p.grad is None for p in distiller.parameters())


def test_one_process_needs_no_ddp():
    assert (distributed.world(), distributed.rank(), distributed.first()) == (1, 0, True)
    network = TinyNet()
    assert distributed.wrapped(network, {}, []) is network
    assert distributed.from_first(lambda: 7) == 7
    meters = Meters(CPU)
    image, target = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    meters.add({"ce": torch.tensor(1.0)}, image, target)
    meters.add_up()
    assert meters.summary()["ce"] == 1.0
    assert evaluate(lambda image: image, [(image, target)], CPU)["images"] == 2
    assert precision_of("none", CPU).name == "none"
