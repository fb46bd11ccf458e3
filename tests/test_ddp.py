"""Several gloo ranks under torchrun: the same end as one process, broken off and continued, failing, interrupted.

Two launches run all cases: one of two ranks, ended by SIGTERM to torchrun, and one of three, ended by a rank that fails
alone. The tests look at what they left.
"""

import json
import os
import shutil
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from ddp_script import EACH, ENDS, LEARNING, end_of, gradients_of, stepped, trainer_of
from filelock import FileLock
from forks import python_run
from runs import assert_same_files, latest_of, log_of, without_bn, without_times
from safetensors.torch import load_file
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin.config import load_cfg
from atsc_plugin.engine import distributed
from atsc_plugin.engine.evaluate import evaluate
from atsc_plugin.engine.meters import Meters
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.host import CFG
from atsc_plugin.methods.atsc import ATSC

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
CONTINUED = ["killed", "signalled", "evaluating", "minutes"]
TWO = [*ENDS, "gradients", "statistics", "whole", *CONTINUED, "skipping", "modern", "more", "fewer", "command", "slow"]
THREE = ["whole", "killed", "fails_alone"]


def launched(where, cases, ranks):
    """(torchrun's exit status, its stdout, its stderr); its ranks are forks of it, for which torch is there already."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command += ["--start-method=fork", "--run-path", HERE / "ddp_script.py", where, *cases]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "ATSC_HOST": "embedded"}
    done = python_run(command, cwd=HERE.parent, env=settings)
    return done.returncode, done.stdout, done.stderr


@contextmanager
def one_launch(tmp_path_factory, name, cases, ranks):
    """(folder, status, stdout, stderr) of a launch that all workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    shared = "PYTEST_XDIST_WORKER" in os.environ
    where = (base.parent if shared else base) / name
    with FileLock(f"{where}.lock") if shared else nullcontext():
        if not (where / "ended.json").exists():
            where.mkdir(exist_ok=True)
            ended = launched(where, cases, ranks)
            (where / "ended.json").write_text(json.dumps(ended))
    yield where, *json.loads((where / "ended.json").read_text())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    with one_launch(tmp_path_factory, "two_ranks", TWO, 2) as launch:
        assert all((launch[0] / f"command_{rank}.pt").exists() for rank in range(2)), launch[3][-3000:]
        yield launch


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    with one_launch(tmp_path_factory, "three_ranks", THREE, 3) as launch:
        assert all((launch[0] / f"killed_{rank}.pt").exists() for rank in range(3)), launch[3][-3000:]
        yield launch


def ends(launch, case):
    """How a case ended on each rank."""
    return [torch.load(path, weights_only=False) for path in sorted(launch[0].glob(f"{case}_[0-9].pt"))]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """one(case): how it ends in one process."""
    where, made = tmp_path_factory.mktemp("one"), {}

    def end(case):
        if case not in made:
            made[case] = end_of(where, case)
        return made[case]

    return end


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def figures(folder):
    return [without_times(line) for line in log_of(folder)]


# ---- the same end as one process ----


@pytest.mark.parametrize("case", [case for case in ENDS if case != "with_bn"])
def test_two_ranks_end_where_one_process_with_the_same_global_batch_ends_without_bn(two, one, case):
    (first, second), alone = ends(two, case), one(case)
    assert_equal_states(first["state"], second["state"])
    for name, tensor in alone["state"].items():
        assert torch.allclose(first["state"][name], tensor, atol=2e-5), name
    scores = ("top1_last", "top1_best", "top5_last", "best_epoch", "teacher_top1_before", "teacher_top1_after")
    assert {k: first["result"][k] for k in scores} == {k: alone["result"][k] for k in scores}
    for score in ("ece", "nll"):  # of all 21 images, which the ranks share
        assert first["result"][score] == pytest.approx(alone["result"][score], rel=1e-4)
    assert first["result"]["batch_size"] == alone["result"]["batch_size"] == 8
    assert (first["result"]["world_size"], alone["result"]["world_size"]) == (2, 1)


@pytest.mark.parametrize("case", EACH)
def test_gradients_of_two_ranks_are_those_of_one_process_without_bn(two, tmp_path, case):
    alone = gradients_of(stepped(tmp_path, case, without_bn))
    largest = max(gradient.abs().max().item() for gradient in alone.values())
    assert largest > 1e-5
    for end in ends(two, "gradients"):
        assert end[case].keys() == alone.keys()
        for name, gradient in alone.items():
            assert torch.allclose(end[case][name], gradient, rtol=1e-4, atol=1e-4 * largest), name


MOVING = {"COTEACH": ["scratch"], "SHAKE": ["shadow"], "ADAPTKD": []}  # a logit adapter has no BN


@pytest.mark.parametrize("case", LEARNING)
def test_running_statistics_of_networks_that_learn_are_averaged_over_ranks_after_an_epoch(two, case):
    (own, after), (others, others_after) = (end[case] for end in ends(two, "statistics"))
    for name, statistic in own.items():
        assert torch.equal(after[name], others_after[name]), name
        assert torch.allclose(after[name], (statistic + others[name]) / 2), name
    apart = {name.partition(".")[0] for name, statistic in own.items() if not torch.equal(statistic, others[name])}
    assert apart >= {"student", *MOVING.get(case, ["teacher"])}
    assert ("online_teacher" in apart) == (case == "EMA")


def test_two_ranks_of_a_net_with_bn_agree_and_log_the_metrics_of_all_images(two, one):
    first, second = ends(two, "with_bn")
    assert_equal_states(first["state"], second["state"])
    line = log_of(two[0] / "with_bn" / "run")[-1]
    hits = line["train_top1"] / 100 * 36  # a count over all 36 images, not a mean of the ranks' shares of 18
    assert hits == pytest.approx(round(hits), abs=1e-6)
    assert line["images_per_second"] * line["seconds"] == pytest.approx(36)
    apart = abs(one("with_bn")["result"]["top1_last"] - first["result"]["top1_last"])
    assert apart <= 100 * 4 / 21  # a few of 21 images: BN's batches differ


def test_ranks_leave_theta_0_alone_and_only_the_first_writes_and_speaks(two, one):
    where, _, told, _ = two
    for case in ("warming", "with_bn"):
        first, second = ends(two, case)
        assert_equal_states(first["start"], second["start"])
        assert_equal_states(first["start"], one(case)["start"])
    kept = load_file(where / "with_bn" / "run" / "logits_last.safetensors")
    assert kept["labels"].tolist() == [index % 10 for index in range(21)]  # all test images, in their order
    hits = (kept["logits"].argmax(1) == kept["labels"]).sum().item()
    assert ends(two, "with_bn")[0]["result"]["top1_last"] == pytest.approx(100 * hits / 21)
    assert [line["epoch"] for line in log_of(where / "with_bn" / "run")] == [1, 2]
    assert json.loads((where / "with_bn" / "run" / "about.json").read_text())["world_size"] == 2
    for case in ENDS:  # each run says once that it is done
        assert told.count(f"{where / case / 'run'}\n") == 1


def test_ddp_looks_for_idle_parameters_only_where_some_are_idle_at_the_start_or_later(two):
    looks = {case: ends(two, case)[0]["looks_for_unused"] for case in ("warming", "settling", "with_bn", "kd")}
    # KD's teacher has its gradients left on, but nobody moves it
    assert looks == {"warming": True, "settling": True, "with_bn": False, "kd": False}


def test_a_warming_teacher_moves_after_its_warm_up(two):
    end = ends(two, "warming")[0]
    for name in ("conv.weight", "fc.weight"):  # DDP has reduced both: requires_grad was never taken from it
        assert not torch.equal(end["start"][name], end["state"][f"teacher.{name}"])


def test_the_command_has_one_rank_train_the_missing_teacher_for_all(two):
    where, _, told, _ = two
    assert [end["status"] for end in ends(two, "command")] == [0, 0]
    assert told.count("training one for 1 epochs") == 1
    assert len(list((where / "teachers").glob("*.pth"))) == 1
    (result,) = where.glob("quickstart/command*/seed_1/result.json")
    assert json.loads(result.read_text())["world_size"] == 2


# ---- broken off and continued ----


@pytest.mark.parametrize("case", CONTINUED)
def test_ranks_that_were_broken_off_end_as_the_whole_ones(two, case):
    for whole, broken in zip(ends(two, "whole"), ends(two, case), strict=True):
        assert_equal_states(whole["state"], broken["state"])
    assert_same_files(two[0] / "whole" / "run", two[0] / case / "run")


def test_two_ranks_with_adamw_a_cosine_and_an_average_end_as_the_whole_ones(two):
    """The average's BN statistics differ from rank to rank inside an epoch, as the student's do."""
    for end in ends(two, "modern"):
        assert_equal_states(end["twin"], end["state"])
    assert_same_files(two[0] / "modern_whole" / "run", two[0] / "modern" / "run")


def test_three_ranks_add_up_in_the_same_order_before_and_after_a_continuation(three):
    for whole, killed in zip(ends(three, "whole"), ends(three, "killed"), strict=True):
        assert_equal_states(whole["state"], killed["state"])
    assert figures(three[0] / "whole" / "run") == figures(three[0] / "killed" / "run")


def test_the_lives_of_killed_ranks_began_where_the_last_checkpoint_of_all_ranks_was(two):
    for end in ends(two, "killed"):
        assert [life["saved"] for life in end["lives"]] == [
            "after step 2 of epoch 1",  # dies before step 4, having written after 2
            "after step 4 of epoch 1",  # steps 3 and 4, dies before 5
            "after step 2 of epoch 2",  # step 5, steps 1 and 2, dies before 3
        ]


def test_a_signal_to_one_rank_ends_all_at_the_same_step_with_its_status(two):
    first, second = (end["first"] for end in ends(two, "signalled"))
    assert first["status"] == second["status"] == 143
    # rank 1 hears it before step 2, tells after step 2, and all act after step 3
    assert first["saved"] == second["saved"] == "after step 3 of epoch 1"
    assert "torchrun --standalone --nproc_per_node=2 " in first["said"]
    assert "--resume" in first["said"]
    assert "--resume" not in second["said"]


def test_a_signal_in_the_evaluation_of_unequal_shares_ends_all_ranks_there(two):
    for end in ends(two, "evaluating"):  # not after epoch 1: it continues there
        assert end["first"] == {"status": 138, "saved": "after step 5 of epoch 1"}


def test_the_first_rank_to_find_a_checkpoint_due_has_all_write_it_together(two):
    """Told after step 1, done after step 2; told after step 3, and dead before the answer."""
    assert [end["saved"] for end in ends(two, "minutes")] == [[2], [2]]


def test_a_step_whose_numbers_are_bad_on_one_rank_is_left_out_by_all_and_stays_so(two):
    first, second = ends(two, "skipping")
    assert_equal_states(first["state"], second["state"])
    for end in (first, second):
        assert all(torch.isfinite(tensor).all() for tensor in end["twin"].values())
        assert_equal_states(end["twin"], end["state"])
    one, other = (figures(two[0] / case / "run") for case in ("skipping", "skipping_killed"))
    assert one == other
    assert [line["skipped_steps"] for line in one] == [1, 0]
    assert_whole_counts(one[0], images=36 - 8)


def assert_whole_counts(line, images):
    """An accuracy over all ranks' images is a whole number of them."""
    for name in ("train_top1", "teacher_train_top1"):
        count = 36 if name == "teacher_train_top1" else images  # the method sees the images of a step that is left out
        hits = line[name] / 100 * count
        assert hits == pytest.approx(round(hits), abs=1e-6), name


def test_a_checkpoint_inside_an_epoch_has_the_state_of_every_rank(two):
    inside = ends(two, "fewer")[0]["inside"]
    (other,) = inside["others"]
    assert not torch.equal(inside["random"]["torch"], other["random"]["torch"])
    assert (inside["meters"]["images"], other["meters"]["images"]) == (12, 12)  # 3 steps of 4 images each
    name = "student.bn.running_mean"
    assert not torch.equal(inside["buffers"][name], other["buffers"][name])


def test_more_ranks_or_fewer_may_continue_and_are_told_that_digits_may_differ(two, tmp_path, capsys):
    assert_equal_states(*(end["state"] for end in ends(two, "more")))
    run = tmp_path / "fewer" / "run"
    shutil.copytree(two[0] / "fewer" / "run", run)
    trainer_of(tmp_path, "fewer").train(resume=True)
    assert "note: world_size was 2, is 1: the last digits may differ from now on" in capsys.readouterr().out
    for folder in (two[0] / "more" / "run", run):
        lines = log_of(folder)
        assert [line["epoch"] for line in lines] == [1, 2]
        for line in lines:
            assert_whole_counts(line, images=36)
            whole = log_of(two[0] / "whole" / "run")[line["epoch"] - 1]
            assert line["loss_teacher_ce"] == pytest.approx(whole["loss_teacher_ce"], rel=0.05)


def test_sums_of_two_ranks_are_added_up_by_one():
    states = []
    for seed in (1, 2):
        meters = Meters(CPU)
        meters.add({"ce": torch.tensor(float(seed))}, torch.eye(3), torch.tensor([0, 1, 0]))
        states.append(meters.state())
    both = Meters(CPU)
    both.load_state(states[0])
    both.load_more(states[1])
    summary = both.summary()
    assert (summary["ce"], summary["images"]) == (1.5, 6)  # (1 * 3 + 2 * 3) / 6
    assert summary["train_top1"] == pytest.approx(100 * 4 / 6)
    assert both.steps == 1


# ---- launches that end badly ----


def test_sigterm_to_torchrun_leaves_a_checkpoint_of_both_ranks_and_the_command_that_continues(two):
    where, status, _, said = two
    assert status != 0
    assert "torchrun --standalone --nproc_per_node=2 " in said, said[-3000:]
    inside = latest_of(where / "slow" / "run")["inside"]
    assert inside is None or len(inside["others"]) == 1


def test_a_rank_that_fails_alone_ends_the_launch_and_its_message_is_printed(three):
    """The others wait for its gradients, up to half an hour: the launch would run into the fixture's time limit."""
    where, status, _, said = three
    assert status != 0
    assert "rank 1: error: a planted failure of one rank" in said, said[-3000:]
    assert not (where / "fails_alone_1.pt").exists()
    assert not (where / "fails_alone" / "run" / "result.json").exists()
    assert 'ddp_script.py", line' not in said  # no traceback, from the ranks that lost it either


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_group_is_destroyed_at_the_end_and_not_after_an_error(monkeypatch, fails):
    """NCCL's teardown waits for the ranks that do not come."""
    destroyed = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "_join", lambda wanted: None)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: destroyed.append(True))
    failing = pytest.raises(PluginError, match="planted") if fails else nullcontext()
    with failing, distributed.session("cpu"):
        if fails:
            raise PluginError("planted")
    assert destroyed == ([] if fails else [True])


def test_a_failing_rank_ends_at_once_and_a_good_one_or_a_lone_process_as_usual(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for ranks, status in ((False, 2), (True, 0), (True, 2)):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda ranks=ranks: ranks)
        distributed.leave(status)
    assert ended == [2]


def test_ranks_without_a_meeting_place_are_told_by_name(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    told = "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set.*torchrun"
    with pytest.raises(PluginError, match=told), distributed.session("cpu"):
        raise AssertionError("the block must not run")


# ---- before any work ----


def test_what_the_ranks_cannot_do_is_refused(monkeypatch):
    atsc_plugin.register()
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="SOLVER.BATCH_SIZE is 64.*torchrun started 3.*Use 63 or 66"):
        load_cfg("configs/quickstart/atsc.yaml", ["SOLVER.BATCH_SIZE", "64"])
    with pytest.raises(ConfigError, match="ATSC.UPDATE published makes two steps a batch, defined on one device"):
        load_cfg("configs/quickstart/atsc_published.yaml", ["SOLVER.BATCH_SIZE", "63"])
    with pytest.raises(ConfigError, match="SOLVER.TRAINER base knows one. Use plugin"):
        load_cfg("configs/quickstart/simkd.yaml", ["SOLVER.BATCH_SIZE", "63", "SOLVER.TRAINER", "base"])


def test_sync_bn_on_cpu_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(PluginError, match="SYNC_BN needs GPUs; these ranks run on cpu"):
        distributed.with_sync_bn(TinyNet(), True, CPU)


def test_idle_parameters_are_found_on_a_copy_that_leaves_the_distiller_as_it_was():
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["SOLVER.TRAINER", "plugin", "ATSC.TEACHER.WARMUP_EPOCHS", 1])
    distiller = ATSC(TinyNet(width=4), TinyNet(width=6), cfg).train()
    before = {name: tensor.clone() for name, tensor in distiller.state_dict().items()}
    image, target = batch()
    inputs = {"image": image, "target": target}
    teachers = [f"teacher.{name}" for name, _ in distiller.teacher.named_parameters()]
    assert distributed.idle_parameters(distiller, {**inputs, "epoch": 1}) == teachers
    assert distributed.idle_parameters(distiller, {**inputs, "epoch": 2}) == []
    assert_equal_states(before, distiller.state_dict())
    assert all(p.grad is None for p in distiller.parameters())


def test_one_process_needs_no_ranks():
    assert (distributed.world(), distributed.rank(), distributed.first()) == (1, 0, True)
    network = TinyNet()
    assert distributed.wrapped(network, {}, []) is network
    assert distributed.from_first(lambda: 7) == 7
    assert distributed.sum_of(3, 4) == [3, 4]
    assert distributed.on_the_first(3, 4) == (3, 4)
    assert distributed.gathered({"a": 1}) == [{"a": 1}]
    meters, image, target = Meters(CPU), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    meters.add({"ce": torch.tensor(1.0)}, image, target)
    meters.add_up()
    assert meters.summary()["ce"] == 1.0
    assert evaluate(lambda image: image, [(image, target)], CPU)["images"] == 2
