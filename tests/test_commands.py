"""The commands as a person uses them: what they leave, and what they say."""

import io
import json
import os
import subprocess
import sys

import pytest
import torch
from runs import log_of
from small_runs import QUICK, ROOT, SMALL, TINY, refused, run_folder, tiny, train
from tiny import TinyNet

from atsc_plugin.__main__ import main
from atsc_plugin.errors import wrapped


@pytest.mark.parametrize("method", ["vanilla", "kd", "dkd", "simkd", "atsc_ema"])
def test_a_method_trains_and_its_evaluation_agrees_to_the_last_digit(here, capsys, tiny_teacher_file, method):
    assert tiny(method, "DISTILLER.TEACHER_CKPT", str(tiny_teacher_file)) == 0
    assert_evaluation_agrees(run_folder(here), capsys)


def test_reviewkd_on_its_own_networks_trains_and_its_evaluation_agrees(here, capsys, teacher_file):
    assert train("reviewkd", "DISTILLER.TEACHER_CKPT", str(teacher_file)) == 0
    assert_evaluation_agrees(run_folder(here), capsys)


def assert_evaluation_agrees(folder, capsys):
    result = json.loads((folder / "result.json").read_text())
    assert result["host"] == "embedded" or os.environ.get("ATSC_HOST") != "embedded"
    for what in (folder, folder / "latest"):
        capsys.readouterr()
        assert main(["eval", str(what), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["top1"] == result["top1_last"]
        assert facts["top5"] == result["top5_last"]
        assert facts["images"] == 150


def test_a_missing_teacher_is_trained_once_said_aloud_and_found_again(here, capsys, tiny_networks):
    words = ["TEACHER.EPOCHS", "1"]
    assert tiny("kd", *words) == 0
    assert "no teacher tiny_teacher for digits100 found: training one for 1 epochs" in capsys.readouterr().out
    cached = list((here / "output" / "teachers").glob("*.pth"))
    assert len(cached) == 1
    assert not list((here / "output").rglob(".teacher-*"))
    assert tiny("simkd", *words, name="second") == 0
    assert "(trained here before)" in capsys.readouterr().out
    assert tiny("kd", *words, "TEACHER.LR", "0.01", name="third") == 0  # another recipe is another teacher
    assert len(list((here / "output" / "teachers").glob("*.pth"))) == 2
    assert tiny("kd", *words, "DATASET.PADDING", "2", name="fourth") == 0  # and so is one that saw other images
    assert len(list((here / "output" / "teachers").glob("*.pth"))) == 3
    results = [json.loads(path.read_text()) for path in (here / "output").rglob("result.json")]
    assert len(results) == 4  # none of them a teacher's
    about = json.loads((run_folder(here, "second") / "about.json").read_text())
    assert str(cached[0].name) in about["teacher_from"]


def test_a_teacher_file_is_evaluated_as_a_bare_network(here, capsys, tiny_teacher_file):
    assert tiny("kd", "DISTILLER.TEACHER_CKPT", str(tiny_teacher_file)) == 0
    before = json.loads((run_folder(here) / "result.json").read_text())["teacher_top1_before"]
    capsys.readouterr()
    words = ["--cfg", str(QUICK / "vanilla.yaml"), "--json", "DISTILLER.STUDENT", "tiny_teacher", *SMALL]
    assert main(["eval", str(tiny_teacher_file), *words]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == before


def test_a_teacher_is_measured_once_for_all_runs_of_a_project(here, capsys, tiny_teacher_file):
    def before(name, seed="1"):
        words = ["DISTILLER.TEACHER_CKPT", str(tiny_teacher_file), "EXPERIMENT.SEED", seed]
        assert tiny("simkd", *words, name=name) == 0
        (folder,) = (here / "output" / "quickstart").glob(f"{name}*/seed_{seed}")
        top1 = json.loads((folder / "result.json").read_text())["teacher_top1_before"]
        return top1, "measured by another run" in capsys.readouterr().out

    top1, known = before("first")
    assert not known
    assert before("second", seed="2") == (top1, True)
    (file,) = (here / "output" / "quickstart").glob("measured-*.json")
    assert json.loads(file.read_text()) == {"top1": top1}
    file.write_text('{"top1": "high"}')
    assert before("damaged") == (top1, False)
    torch.save({"model": TinyNet(num_classes=100, width=8).state_dict()}, tiny_teacher_file)
    assert not before("another_teacher")[1]


# ---- a run that is there already ----


def test_a_finished_run_is_reported_and_left(run, capsys):
    before = (run / "result.json").stat().st_mtime_ns
    assert tiny("vanilla") == 0
    assert "is complete" in capsys.readouterr().out
    assert (run / "result.json").stat().st_mtime_ns == before


def test_a_finished_run_of_another_configuration_is_not_passed_off_as_this_one(run, capsys):
    words = [*TINY, "EXPERIMENT.NAME", "run", *SMALL]
    status = main(["train", "--cfg", str(QUICK / "vanilla.yaml"), *words])
    refused(capsys, status, "SOLVER.EPOCHS was 1, asked 6", "--overwrite")


def test_an_unfinished_run_needs_resume_or_overwrite(run, capsys):
    (run / "result.json").unlink()
    refused(capsys, tiny("vanilla"), "unfinished", "--resume", "--overwrite")
    words = [*TINY, "EXPERIMENT.NAME", "run", *SMALL, "SOLVER.EPOCHS", "2"]
    assert main(["train", "--cfg", str(QUICK / "vanilla.yaml"), "--resume", *words]) == 0
    assert "after epoch 1" in capsys.readouterr().out
    assert [line["epoch"] for line in log_of(run)] == [1, 2]
    assert tiny("vanilla", "--overwrite") == 0
    assert len(log_of(run)) == 1


@pytest.mark.parametrize("words", [["eval"], ["export", "--format", "safetensors", "--output", "s.safetensors"]])
def test_the_student_of_an_unfinished_run_is_used_and_called_so(run, capsys, words):
    assert main([*words[:1], str(run), *words[1:], *SMALL]) == 0
    assert "has not ended" not in capsys.readouterr().err
    (run / "result.json").unlink()
    assert main([*words[:1], str(run), *words[1:], *SMALL]) == 0
    assert "has not ended; its student has learned for 1 epochs" in " ".join(capsys.readouterr().err.split())


def test_a_resumed_run_with_another_learning_rate_is_refused(run, capsys):
    (run / "result.json").unlink()
    text, students = (run / "cfg.yaml").read_text(), "  LR: {}\n  LR_DECAY_RATE: 0.1\n  LR_DECAY_STAGES:\n  - 4"
    assert text.count(students.format(0.05)) == 1
    (run / "cfg.yaml").write_text(text.replace(students.format(0.05), students.format(0.2)))
    refused(capsys, tiny("vanilla", "--resume"), "SOLVER.LR was 0.2, asked 0.05")


def test_resuming_where_nothing_is_starts_from_the_beginning(here, capsys, tiny_networks):
    assert tiny("vanilla", "--resume") == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert (run_folder(here) / "result.json").is_file()


# ---- other commands ----


@pytest.mark.parametrize("method", ["simkd", "atsc"])
def test_the_hosts_base_trainer_runs_distillers_of_ours(here, tiny_teacher_file, method):
    assert tiny(method, "SOLVER.TRAINER", "base", "DISTILLER.TEACHER_CKPT", str(tiny_teacher_file)) == 0
    folder = next((here / "output" / "quickstart").glob("run*"))
    assert (folder / "seed_1" / "latest").is_file()
    assert (folder / "seed_1" / "worklog.txt").is_file()


def test_a_dry_run_prints_the_plan_and_writes_nothing(here, capsys):
    assert train("simkd", "--dry-run") == 0
    said = capsys.readouterr().out
    for part in ("embedded", "digits100", "200 training images", "83,892", "training it here for 10 epochs", "4 steps"):
        assert part in said
    assert list(here.iterdir()) == []


def test_the_report_takes_a_run_as_the_trainer_leaves_it(run, capsys):
    result = json.loads((run / "result.json").read_text())
    assert main(["report", "output/quickstart"]) == 0
    said = capsys.readouterr().out
    for part in ("digits100", "tiny", "vanilla", f"{result['top1_last']:.2f}"):
        assert part in said


def test_doctor_says_what_is_here_and_fails_when_a_config_could_not_start(here, capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "digits100: composed here" in said
    assert "SIMKD" in said
    assert main(["doctor", "--cfg", str(QUICK / "simkd.yaml"), *SMALL]) == 0
    assert main(["doctor", "--cfg", str(ROOT / "configs/cifar100/kd.yaml"), "DATASET.ROOT", str(here)]) == 1
    said = capsys.readouterr().out
    assert "MISSING" in said
    assert "configs/quickstart" in said
    assert list(here.iterdir()) == []


def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word():
    command = f"{sys.executable} -m atsc_plugin leaderboard --suite {ROOT}/configs/leaderboard/ablation.yaml --dry-run"
    piped = f"set -o pipefail; {command} | true"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (141, "")


def test_usage_help_and_unknown_commands(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "doctor" in capsys.readouterr().out
    refused(capsys, main(["trian"]), "'trian' is no command")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    assert "--dry-run" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_message_breaks_between_words_in_a_terminal_and_stays_whole_elsewhere(monkeypatch):
    monkeypatch.setenv("COLUMNS", "24")
    message = "two mistakes:\n  - a key without a value of its own\nsee /a/path/of/more/than/24/letters-here"
    assert wrapped(message, io.StringIO()) == message
    assert wrapped(message, Terminal()).splitlines() == [
        "two mistakes:", "  - a key without a", "    value of its own", "see", "/a/path/of/more/than/24/letters-here",
    ]  # fmt: skip
    assert wrapped("host  a very long description", Terminal(), indent=6).splitlines() == [
        "host  a very long",
        "      description",
    ]
