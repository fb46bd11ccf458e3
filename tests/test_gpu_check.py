"""`gpu-check` on a CPU: its parts on few items, what fails or runs out of time, the JSON and the page."""

import json
import re
import subprocess
import sys
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from every_method import config as config_of
from every_method import network
from tiny import TinyNet

import atsc_plugin
from atsc_plugin import host
from atsc_plugin.__main__ import main
from atsc_plugin.bench import gpu_check, gpu_page
from atsc_plugin.bench.steps import Arm, PreparedStep
from atsc_plugin.commands import doctor
from atsc_plugin.commands import gpu_check as command
from atsc_plugin.engine import graph
from atsc_plugin.errors import PluginError

CPU = torch.device("cpu")


@pytest.fixture
def check(tmp_path, monkeypatch):
    """A part's surroundings, with an hour to go."""
    atsc_plugin.register()
    monkeypatch.setitem(graph.RECORDERS, "cpu", graph.PlainCalls)
    return gpu_check.Check(CPU, tmp_path, tmp_path / "part.json", time.time() + 3600, small=True)


def written(check):
    return json.loads(check.file.read_text())


def test_an_item_that_fails_is_named_with_its_reason_and_the_next_one_runs(check, capsys, monkeypatch):
    def part(check):
        with check.item("first"):
            print("noise")
            raise ValueError("a reason\nmore of it")
        with check.item("second"):
            raise gpu_check.Skipped("no such device")
        with check.item("third") as found:
            found |= {"ms": 2.5, "text": "2.5 ms"}
        check.until = 0
        with check.item("fourth"):
            raise AssertionError("not reached")

    monkeypatch.setitem(gpu_check.PARTS, "speed", part)
    gpu_check.run("speed", check)
    found = written(check)
    said = [(row["name"], row["passed"], row["text"]) for row in found["rows"]]
    assert said == [
        ("first", False, "ValueError: a reason"),
        ("second", None, "no such device"),
        ("third", True, "2.5 ms"),
    ]
    assert found["ended"] == "out of time" and found["rows"][2]["ms"] == 2.5
    printed = capsys.readouterr().out
    assert "noise" not in printed and "out of time before: fourth" in printed
    log = (check.folder / "log.txt").read_text()
    assert "noise" in log and "more of it" in log


def test_three_steps_agree_with_themselves_and_a_change_of_one_weight_shows(check, monkeypatch):
    monkeypatch.setitem(host.cifar_model_dict, "tiny", (lambda num_classes: network(num_classes), None))
    cfg = config_of("ATSC", check.folder, "SOLVER.AMP", "none")
    assert gpu_check.three_steps(cfg, CPU, batch=4) == 0.0
    started = gpu_check._started

    def moved(cfg, device, weights=None):
        step = started(cfg, device, weights)
        if weights:  # the second of the two
            next(step.distiller.student.parameters()).data.mul_(1.01)
        return step

    monkeypatch.setattr(gpu_check, "_started", moved)
    assert gpu_check.three_steps(cfg, CPU, batch=4) > gpu_check.CLOSE


def test_every_registered_method_has_a_configuration(check):
    configs = gpu_check.method_configs()
    kinds = {gpu_check.load_cfg(file, overrides).DISTILLER.TYPE for file, overrides in configs.values()}
    assert kinds >= set(gpu_check.load_methods())


def test_arms_are_prepared_timed_and_compared_and_one_that_cannot_run_is_named(check, tiny_networks):
    pair = "tiny_teacher", "tiny", 4
    arms = [Arm("released", *pair, layout="contiguous"), Arm("KD", *pair), Arm("fused", *pair, graph=True)]
    arms.append(Arm("published", *pair, graph=True))
    gpu_check._time_steps(check, arms, {"none": {"flops_per_second": 1e9, "bytes_per_second": 1e9}})
    rows = {row["name"]: row for row in check.rows}
    assert rows["prepare, batch 4: published graph"]["passed"] is False
    assert "makes two steps a batch" in rows["prepare, batch 4: published graph"]["text"]
    steps = [row for row in check.rows if row.get("table") == "steps"]
    assert [row["name"] for row in steps] == [f"step, batch 4: {arm.name}" for arm in arms[:3]]
    assert steps[0]["times_released"] == 1.0 and steps[1]["times_kd"] == 1.0
    assert steps[1]["times_released"] == steps[1]["ms"] / steps[0]["ms"]


def test_a_recorded_arm_does_the_work_of_the_eager_one_and_its_loader(check, tiny_networks):
    pair = "tiny_teacher", "tiny", 4
    step = PreparedStep(Arm("KD", *pair, graph=True), CPU)
    assert step.recorded.replay is not None and step.recorded.warmed == graph.WARM_UP
    assert step.operations().flops() == PreparedStep(Arm("KD", *pair), CPU).operations().flops()
    assert step.recorded is not None


def test_correctness_speed_and_accuracy_run_from_their_first_item_to_their_last(check, monkeypatch):
    """On tiny networks under the names that the parts use, two methods, no compiler and no measured peaks."""
    for name, width in (("resnet20", 8), ("resnet8", 4)):
        monkeypatch.setitem(host.cifar_model_dict, name, (partial(TinyNet, width=width), None))
    check.teacher = str(check.folder / "teacher.pth")
    torch.save({"model": TinyNet(100, width=8).state_dict()}, check.teacher)
    configs, prepared = gpu_check.method_configs(), gpu_check.PreparedStep
    monkeypatch.setattr(gpu_check, "method_configs", lambda: {name: configs[name] for name in ("kd", "atsc")})
    monkeypatch.setattr(gpu_check, "measured_peak", lambda *_: {"flops_per_second": 1e9, "bytes_per_second": 1e9})

    def without_compiler(arm, device):
        if arm.compile != "none":
            raise PluginError("SOLVER.COMPILE cannot compile here")
        return prepared(arm, device)

    monkeypatch.setattr(gpu_check, "PreparedStep", without_compiler)
    for part in ("correctness", "speed", "accuracy"):
        gpu_check.run(part, check)
        assert written(check)["ended"] == "done"
    rows = {row["name"]: row for row in written(check)["rows"]}
    assert [(name, row["text"]) for name, row in rows.items() if row["passed"] is False] == []
    assert [name for name, row in rows.items() if row["passed"] is None] == [
        "prepare, batch 8: fused bf16 compiled default"
    ]
    compared = "three steps: atsc", "graph == eager", "resume == whole run", "deployed == trained"
    assert all(rows[name]["difference"] <= gpu_check.CLOSE for name in compared)
    assert sum(row.get("table") == "epochs" for row in rows.values()) == 5
    assert {f"{arm}, all seeds" for arm in gpu_check.FLOORS} < rows.keys()


# ---- the command ----


def parts_by(monkeypatch, ends):
    """The command with parts that write what `ends` says in place of running."""

    def started(args, name, end, folder):
        folder.mkdir(parents=True, exist_ok=True)
        if ends[name] is None:
            return "failed with exit status -11"
        (folder / "part.json").write_text(json.dumps(ends[name]))
        return "done"

    monkeypatch.setattr(command, "started_part", started)


ROW = {"name": "KD", "passed": True, "text": "2 ms", "seconds": 0.5}


class Text(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.words = []
        self.feed(page)

    def handle_data(self, data):
        self.words.append(data)


def test_two_real_processes_end_with_the_same_weights_and_nccl_is_left_to_gpus(check):
    gpu_check.run("two processes", check)
    gloo, nccl = written(check)["rows"]
    assert (gloo["passed"], gloo["difference"]) == (True, 0) and gloo["moved"] > 0
    assert (nccl["passed"], nccl["text"]) == (None, "NCCL wants a GPU for each process")


def test_a_part_that_crashes_is_named_and_the_rest_is_on_the_page(here, monkeypatch, capsys):
    facts = {**ROW, "name": "machine", "facts": {"device": "a <GPU>", "free, GiB": 139.25}}
    ends = {"environment": {"ended": "done", "rows": [facts]}, "correctness": None}
    ends["speed"] = {"ended": "out of time", "rows": [{**ROW, "table": "steps", "ms": 1234.5}, {**ROW, "minor": True}]}
    parts_by(monkeypatch, ends)
    assert main(["gpu-check", "--parts", *ends, "--out", "found"]) == 1
    found = json.loads((here / "found" / "result.json").read_text())
    assert found["device"] == "a <GPU>"
    assert [part["ended"] for part in found["parts"].values()] == ["done", "failed with exit status -11", "out of time"]
    captured = capsys.readouterr()
    assert captured.err == "FAILED correctness: failed with exit status -11\n"
    words = Text((here / "found" / "index.html").read_text()).words
    assert "GPU check: a <GPU>" in words and "1,234" in words and "139" in words
    assert "Speed: 2 ok, out of time" in words and words.count("KD") == 1  # what was only prepared is left out


def test_when_all_that_ran_passed_the_status_is_zero_also_where_time_ran_out(here, monkeypatch):
    parts_by(monkeypatch, {"speed": {"ended": "out of time", "rows": [ROW]}})
    assert main(["gpu-check", "--parts", "speed"]) == 0


def test_what_is_not_installed_is_told_with_the_command_that_installs_it(here, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "PACKAGES", (*doctor.PACKAGES, "no-such-package"))
    assert main(["gpu-check"]) == 2
    assert "gpu-check needs no-such-package. Install: pip install 'no-such-package'" in capsys.readouterr().err
    assert main(["doctor"]) == 1
    assert "package no-such-package: pip install no-such-package" in capsys.readouterr().out
    monkeypatch.setattr(command, "installed", lambda: {"torch": "2.6.0+cu124"})
    assert main(["gpu-check"]) == 2
    assert "pip install 'torch>=2.7'" in capsys.readouterr().err


def test_what_names_missing_packages_imports_none_of_them():
    code = "import sys, atsc_plugin.commands.doctor, atsc_plugin.commands.gpu_check; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "yacs", "filelock", "torch", "scipy", "tqdm"} & set(done.stdout.split())


def test_doctor_asks_for_every_package_that_setup_py_installs():
    """filelock and pyyaml, too: without one of them nothing starts."""
    setup = Path(command.__file__).parents[2].joinpath("setup.py").read_text()
    listed = setup.partition("install_requires")[2].partition("]")[0]
    assert set(doctor.PACKAGES) == set(re.findall(r'^ +"([\w-]+)>=', listed, re.MULTILINE))


def test_the_first_part_runs_in_a_process_of_its_own_and_a_spent_share_ends_it(here, capfd):
    assert main(["gpu-check", "--device", "cpu", "--parts", "environment", "--minutes", "0.1"]) == 0
    part = json.loads((here / "gpu-check" / "result.json").read_text())["parts"]["environment"]
    assert part["ended"] == "out of time" and all(row["passed"] is not False for row in part["rows"])
    assert "environment" in capfd.readouterr().out


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "soon"])
def test_minutes_that_are_none_are_refused(minutes, capsys):
    with pytest.raises(SystemExit):
        main(["gpu-check", "--minutes", minutes])
    assert "expected minutes above 0" in capsys.readouterr().err


def test_a_part_ends_itself_only_in_a_process_of_its_own():
    assert set(command.SHARES) == set(gpu_check.PARTS)
    assert sum(command.SHARES.values()) == pytest.approx(1)
    with pytest.raises(PluginError, match="torch sees no CUDA device"):
        args = command.parser().parse_args(["--device", "cuda", "--run-part", "environment", "--until", "0"])
        command.run_part(args) if not torch.cuda.is_available() else pytest.skip("there is a GPU")
    assert gpu_page.verdict({"rows": [], "ended": "out of time"}) == "out of time"


def test_two_processes_that_fail_to_meet_are_tried_once_more_and_the_reason_is_the_ranks(check, monkeypatch):
    failed = (1, "", "[rank1]: RuntimeError: connection closed by peer\nChildFailedError: a rank failed\n=======")
    agreed = (0, '{"difference": 0.0, "moved": 1.0}', "")
    for tries, passed in (([failed, agreed], True), ([failed, failed], False)):
        left = list(tries)
        monkeypatch.setattr(gpu_check, "_ended_in_time", lambda *_, left=left: left.pop(0))
        gpu_check.run("two processes", check)
        gloo, _nccl = written(check)["rows"][-2:]
        assert (gloo["passed"], left) == (passed, [])
        assert "connection closed by peer" in gloo["first_try"]
    assert "status 1: [rank1]: RuntimeError: connection closed by peer" in gloo["text"]
