"""The quickstart: its table, what a second call does, how it is interrupted; the teacher that ships; the time left."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from atsc_plugin import cards, load_student
from atsc_plugin.__main__ import main
from atsc_plugin.commands import quickstart
from atsc_plugin.engine import run_dir
from atsc_plugin.leaderboard import jobs, runner
from atsc_plugin.quickstart import progress, teacher

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ["DATASET.DIGITS100.TRAIN_IMAGES", "100", "DATASET.DIGITS100.VAL_IMAGES", "100",
          "DATASET.DIGITS100.TEST_IMAGES", "100"]  # fmt: skip
SMALL = ["quickstart", *IMAGES, "SOLVER.EPOCHS", "1"]


class InThisProcess:
    """subprocess.Popen and subprocess.run of a command of ours, without another start of Python and torch."""

    started = []
    pid = 0

    def __init__(self, argv, stdout=None, **_):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            self.returncode = main(list(argv[3:]))
        InThisProcess.started.append(argv[3])
        if stdout is not None:
            stdout.write(said.getvalue().encode())
        self.stdout, self.stderr = said.getvalue().encode(), b""

    def poll(self):
        return self.returncode

    @staticmethod
    def run(argv, **_):
        return InThisProcess(argv)


@pytest.fixture
def in_this_process(here, monkeypatch, without_plots):
    ours = SimpleNamespace(
        run=InThisProcess.run, Popen=InThisProcess, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT
    )
    monkeypatch.setattr(jobs, "subprocess", ours)
    monkeypatch.setattr(runner, "subprocess", ours)
    InThisProcess.started = []


def test_four_methods_of_one_teacher_are_compared_and_a_second_call_only_prints(
    in_this_process, here, capsys, monkeypatch
):
    assert main(SMALL) == 0
    assert InThisProcess.started == ["prepare", *["train"] * 4]
    said = capsys.readouterr().out
    rows = re.findall(
        r"^(vanilla|KD|SimKD|ATSC) +\d+\.\d\d +(none|[\d.]+, frozen|[\d.]+ -> [\d.]+) +([\d,]+) ", said, re.M
    )
    assert [(name, size) for name, _, size in rows] == [
        ("vanilla", "83,892"), ("KD", "83,892"), ("SimKD", "97,460"), ("ATSC", "97,460")
    ]  # fmt: skip
    assert [kind.count("->") for _, kind, _ in rows] == [0, 0, 0, 1]  # ATSC's teacher alone moves
    assert "digits100 is a toy" in said
    assert "\033" not in said  # no terminal, no colours
    assert "teacher   resnet20, 91.15 % on the test images; it ships with the package" in said
    (page,) = re.findall(r"^page +(.+)$", said, re.M)
    assert Path(page).is_file()
    monkeypatch.setattr(teacher, "SHIPPED", here / "elsewhere" / "teacher")  # the package was moved: the copy counts
    assert main(SMALL) == 0
    again = capsys.readouterr().out
    assert len(InThisProcess.started) == 5
    assert "all runs are finished; --fresh runs them again" in again
    assert again.splitlines()[-14:] == said.splitlines()[-14:]


def test_fresh_runs_again_and_what_is_worked_on_is_refused(in_this_process, here, capsys, monkeypatch):
    monkeypatch.setattr(quickstart, "SUITE", "one.yaml")
    arms = {"vanilla": {"cfg": "configs/quickstart/vanilla.yaml"}}
    Path("one.yaml").write_text(yaml.safe_dump({"name": "one", "seeds": [1], "arms": arms}))
    assert main(SMALL) == 0
    (result,) = Path("output").glob("one*/vanilla/seed_1/result.json")
    mark = result.with_name("mark")
    mark.touch()
    with run_dir.held(result.parent):
        assert main([*SMALL, "--fresh"]) == 2
    assert "in use by process" in capsys.readouterr().err
    assert mark.exists()
    assert main([*SMALL, "--fresh"]) == 0
    assert result.exists()
    assert not mark.exists()
    assert InThisProcess.started == ["prepare", "train"] * 2


def test_an_interrupted_quickstart_says_how_to_continue_and_continues(here, capfd, monkeypatch):
    stub = Path(__file__).with_name("stub_command.py")
    monkeypatch.setattr(jobs, "COMMAND", (sys.executable, str(stub)))
    monkeypatch.setattr(quickstart, "SUITE", "stub.yaml")
    monkeypatch.setattr(quickstart, "_say_result", lambda done: print("table of", [one.arm for one in done]))
    monkeypatch.setattr(sys, "argv", ["bin/atsc-plugin", "quickstart", "--train-teacher", "--fresh"])
    Path("arm.yaml").write_text(
        "SOLVER: {EPOCHS: 2}\nDATASET: {TYPE: toy}\nDISTILLER: {TYPE: NONE, TEACHER: big, STUDENT: small}\n"
    )
    arms = {"first": {"cfg": "arm.yaml"}, "second": {"cfg": "arm.yaml", "set": {"STUB.DO": "interrupt"}}}
    Path("stub.yaml").write_text(yaml.safe_dump({"name": "q", "seeds": [1], "arms": arms}))
    monkeypatch.setattr(runner, "cores", lambda: 1)
    assert main(["quickstart", "--train-teacher"]) == 130
    said = capfd.readouterr()
    assert "Continue with:\n  atsc-plugin quickstart --train-teacher\n" in said.err
    assert "table of" not in said.out
    assert main(["quickstart", "--train-teacher"]) == 0
    assert "table of ['first', 'second']" in capfd.readouterr().out
    assert (here / "output/quickstart_own_teacher/second/seed_1.log").read_text().split() == ["starting", "resuming"]


def test_the_printed_next_commands_are_accepted_and_the_output_fits_80_columns():
    import importlib

    for words in quickstart.NEXT:
        command, *options = words.format(run="output/quickstart/atsc/seed_1").split()
        module = importlib.import_module(f"atsc_plugin.commands.{command}")
        assert module.parser().parse_intermixed_args(options)
        assert len(f"      python -m atsc_plugin {command} {' '.join(options)}") <= 80
        for file in re.findall(r"configs/\S+", words):
            assert (ROOT / file).is_file()
    network = {"name": "teacher", "moved": True}
    result = {"top1_last": 100.0, "teacher_top1_before": 100.0, "teacher_top1_after": 100.0, "networks": [network],
              "params_deployed": 10**7, "seconds": 10000.0}  # fmt: skip
    lines = [*quickstart._table([("vanilla", result)]), *quickstart.NOTES.format(epochs="12 epochs").splitlines()]
    assert max(map(len, lines)) <= 80
    assert "100.00 -> 100.00" in lines[2]


# ---- the teacher that ships ----


def test_the_shipped_teacher_is_the_one_of_its_card_and_of_the_quickstarts_recipe():
    from atsc_plugin.config import load_cfg

    card, cfg = cards.read(f"{teacher.SHIPPED}.json"), load_cfg(teacher.CONFIG)
    assert card["sha256"] == teacher.sha256_of(f"{teacher.SHIPPED}.safetensors")
    assert card["command"] == teacher.COMMAND
    assert card["test_top1"] > 88
    node, recipe = cfg.TEACHER, card["recipe"]
    assert (recipe["model"], recipe["seed"]) == (cfg.DISTILLER.TEACHER, node.SEED)
    for key in ("epochs", "batch_size", "lr", "lr_decay_stages", "lr_decay_rate", "weight_decay"):
        assert recipe[key] == node[key.upper()], key
    assert load_student(f"{teacher.SHIPPED}.safetensors")(torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_the_command_that_makes_the_teacher_anew_writes_a_card_that_fits_and_finds_what_it_trained(here, capsys):
    words = ["quickstart", "--make-teacher", "made", *IMAGES, "TEACHER.EPOCHS", "1", "DISTILLER.TEACHER", "resnet8"]
    assert main(words) == 0
    assert "training one for 1 epochs" in capsys.readouterr().out
    card = json.loads(Path("made/teacher.json").read_text())
    assert card["sha256"] == teacher.sha256_of("made/teacher.safetensors")
    assert (card["student"], card["epochs"], card["recipe"]["epochs"]) == ("resnet8", 1, 1)
    assert card.keys() == cards.read(f"{teacher.SHIPPED}.json").keys()
    state = torch.load(next(Path("output/teachers").glob("*.pth")), weights_only=True)["model"]
    made = load_student("made/teacher").state_dict()
    assert all(torch.equal(tensor, made[f"backbone.{name}"]) for name, tensor in state.items())
    assert main(words) == 0
    assert "training one" not in capsys.readouterr().out
    assert json.loads(Path("made/teacher.json").read_text()) == card


# ---- the time left ----


def test_the_time_left_is_the_slots_share_of_the_work_or_a_job_with_what_it_waits_for():
    free = {"a": (), "b": (), "c": ()}
    assert progress.seconds_left({"a": 40, "b": 20, "c": 30}, free, 2) == 45
    assert progress.seconds_left({"a": 40, "b": 20, "c": 30}, free, 3) == 40
    assert progress.seconds_left({"a": 40, "b": 20, "c": 30}, {**free, "b": ("a",)}, 2) == 60  # b: 40-60
    assert progress.seconds_left({}, {}, 2) == 0


def test_the_pace_follows_from_the_epochs_that_ended_and_the_clock_moves_the_bar_inside_one(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "work_of", lambda job: 45.0)  # four epochs of 10 s and half a one for the last look
    run = SimpleNamespace(epochs=4, record={"display": "KD"}, done=0, epochs_done=lambda: run.done)
    job = SimpleNamespace(key="kd", run=run, needs=())
    bar = progress.BarRunner([job], SimpleNamespace(at_once=1, pause=0))
    assert bar.seconds_left() == 45
    bar.began["kd"] = now[0]
    now[0] = 105
    assert bar.look() == ({"kd": pytest.approx(0.5 / 4.5)}, 1.0)  # 5 of 10 s, as on an idle core
    now[0] = 120
    shares, pace = bar.look()
    assert shares["kd"] == pytest.approx(0.95 / 4.5)  # it waits for the end of the epoch
    assert pace == pytest.approx(20 / 9.5)  # and the estimate grows
    run.done = 1
    assert bar.look() == ({"kd": pytest.approx(1 / 4.5)}, 2.0)  # 20 s for 10 s of work
    assert bar.seconds_left() == pytest.approx(2 * 35)
    now[0] = 130
    assert bar.seconds_left() == pytest.approx(2 * 30)
    bar.over.add("kd")
    assert bar.seconds_left() == 0


def test_a_teachers_epochs_are_those_its_command_printed(tmp_path):
    log = tmp_path / "teacher.log"
    job = SimpleNamespace(run=None, log=log)
    assert progress.epochs_done(job) == 0
    log.write_text("no teacher found\nepoch 1/10  lr 0.05\nepoch 2/10  lr 0.05\n")
    assert progress.epochs_done(job) == 2


def test_the_runner_that_is_drawn_over_still_speaks_and_waits_by_these_names():
    assert {"_say", "_rest", "_left", "_finish"} <= set(vars(runner.Runner))
