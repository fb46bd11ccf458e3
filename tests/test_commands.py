"""The commands as a person uses them: what they leave, and what they say."""

import json
import os
import subprocess
import sys

import pytest
from small_runs import QUICK, ROOT, SMALL, refused, run_folder, train

from atsc_plugin.__main__ import main


@pytest.mark.parametrize("method", ["vanilla", "kd", "dkd", "reviewkd", "simkd", "atsc_average"])
def test_a_quickstart_method_trains_and_its_evaluation_agrees_to_the_last_digit(here, capsys, teacher_file, method):
    assert train(method, "DISTILLER.TEACHER_CKPT", str(teacher_file)) == 0
    folder = run_folder(here)
    result = json.loads((folder / "result.json").read_text())
    assert result["host"] == "embedded" or os.environ.get("ATSC_HOST") != "embedded"
    for what in (folder, folder / "latest"):
        capsys.readouterr()
        assert main(["eval", str(what), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["top1"] == result["top1_last"]
        assert facts["top5"] == result["top5_last"]
        assert facts["images"] == 150


def test_a_missing_teacher_is_trained_once_said_aloud_and_found_again(here, capsys):
    words = ["TEACHER.EPOCHS", "1", "DISTILLER.TEACHER", "resnet14"]
    assert train("kd", *words) == 0
    assert "no teacher resnet14 for digits100 found: training one for 1 epochs" in capsys.readouterr().out
    cached = list((here / "output" / "teachers").glob("*.pth"))
    assert len(cached) == 1
    assert not list((here / "output").rglob(".teacher-*"))
    assert train("simkd", *words, name="second") == 0
    assert "(trained here before)" in capsys.readouterr().out
    assert train("kd", *words, "TEACHER.LR", "0.01", name="third") == 0  # another recipe is another teacher
    assert len(list((here / "output" / "teachers").glob("*.pth"))) == 2
    assert train("kd", *words, "DATASET.PADDING", "2", name="fourth") == 0  # and so is one that saw other images
    assert len(list((here / "output" / "teachers").glob("*.pth"))) == 3
    results = [json.loads(path.read_text()) for path in (here / "output").rglob("result.json")]
    assert len(results) == 4  # none of them a teacher's
    about = json.loads((run_folder(here, "second") / "about.json").read_text())
    assert str(cached[0].name) in about["teacher_from"]


def test_the_cached_teacher_is_evaluated_as_a_bare_network(here, capsys, teacher_file):
    assert train("kd", "DISTILLER.TEACHER_CKPT", str(teacher_file)) == 0
    before = json.loads((run_folder(here) / "result.json").read_text())["teacher_top1_before"]
    capsys.readouterr()
    words = ["--cfg", str(QUICK / "vanilla.yaml"), "--json", "DISTILLER.STUDENT", "resnet20", *SMALL]
    assert main(["eval", str(teacher_file), *words]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == before


def test_a_finished_run_is_reported_and_left(here, capsys):
    assert train("vanilla") == 0
    before = (run_folder(here) / "result.json").stat().st_mtime_ns
    assert train("vanilla") == 0
    assert "is complete" in capsys.readouterr().out
    assert (run_folder(here) / "result.json").stat().st_mtime_ns == before


def test_a_finished_run_of_another_configuration_is_not_passed_off_as_this_one(here, capsys):
    assert train("vanilla") == 0
    status = main(["train", "--cfg", str(QUICK / "vanilla.yaml"), "EXPERIMENT.NAME", "run", *SMALL])
    refused(capsys, status, "SOLVER.EPOCHS was 1, asked 6", "--overwrite")


def test_an_unfinished_run_needs_resume_or_overwrite(here, capsys):
    assert train("vanilla") == 0
    folder = run_folder(here)
    (folder / "result.json").unlink()
    refused(capsys, train("vanilla"), "unfinished", "--resume", "--overwrite")
    words = ["EXPERIMENT.NAME", "run", *SMALL]
    assert main(["train", "--cfg", str(QUICK / "vanilla.yaml"), "--resume", *words, "SOLVER.EPOCHS", "2"]) == 0
    assert "after epoch 1" in capsys.readouterr().out
    assert [json.loads(line)["epoch"] for line in (folder / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert train("vanilla", "--overwrite") == 0
    assert len((folder / "log.jsonl").read_text().splitlines()) == 1


def test_a_resumed_run_with_another_learning_rate_is_refused(here, capsys):
    assert train("vanilla") == 0
    folder = run_folder(here)
    (folder / "result.json").unlink()
    stored = folder / "cfg.yaml"
    stored.write_text(
        stored.read_text().replace(
            "LR: 0.05\n  LR_DECAY_RATE: 0.1\n  LR_DECAY_STAGES:\n  - 4",
            "LR: 0.2\n  LR_DECAY_RATE: 0.1\n  LR_DECAY_STAGES:\n  - 4",
        )
    )
    refused(capsys, train("vanilla", "--resume"), "SOLVER.LR was 0.2, asked 0.05")


def test_resuming_where_nothing_is_starts_from_the_beginning(here, capsys):
    assert train("vanilla", "--resume") == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert (run_folder(here) / "result.json").is_file()


@pytest.mark.parametrize("method", ["simkd", "atsc"])
def test_the_hosts_base_trainer_runs_distillers_of_ours(here, teacher_file, method):
    assert train(method, "SOLVER.TRAINER", "base", "DISTILLER.TEACHER_CKPT", str(teacher_file)) == 0
    folder = next((here / "output" / "quickstart").glob("run*"))
    assert (folder / "seed_1" / "latest").is_file()
    assert (folder / "seed_1" / "worklog.txt").is_file()


def test_a_dry_run_prints_the_plan_and_writes_nothing(here, capsys):
    assert train("simkd", "--dry-run") == 0
    said = capsys.readouterr().out
    for part in ("embedded", "digits100", "200 training images", "83,892", "training it here for 10 epochs", "4 steps"):
        assert part in said
    assert list(here.iterdir()) == []


def test_report_compares_finished_runs_and_names_unfinished_ones(here, capsys, teacher_file):
    assert train("vanilla") == 0
    assert train("simkd", "DISTILLER.TEACHER_CKPT", str(teacher_file), name="shared") == 0
    assert train("vanilla", name="half") == 0
    (run_folder(here, "half") / "result.json").unlink()
    capsys.readouterr()
    assert main(["report", "output/quickstart"]) == 0
    said = capsys.readouterr().out
    assert "digits100: resnet20 -> resnet8, 1 epochs" in said
    assert "97,460" in said  # deployed parameters of the shared-classifier student
    assert "is a toy" in said
    assert "unfinished: output/quickstart/half" in said
    assert "validation split" in said


def test_report_shows_mean_and_spread_over_seeds(here, capsys):
    for seed, top1 in ((1, 70.0), (2, 72.0)):
        folder = here / "runs" / "kd" / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "cfg.yaml").write_text("")
        numbers = dict.fromkeys(("images_per_second", "seconds", "params_deployed", "params_trained"), 1)
        text = {
            "method": "KD",
            "teacher": "t",
            "student": "s",
            "dataset": "d",
            "host": "h",
            "host_version": "v",
            "device": "cpu",
        }
        (folder / "result.json").write_text(
            json.dumps(
                {
                    **numbers,
                    **text,
                    "epochs": 1,
                    "top1_last": top1,
                    "top1_best": top1,
                    "teacher_top1_before": 80.0,
                    "selected_on": "test",
                }
            )
        )
    assert main(["report", "runs"]) == 0
    said = capsys.readouterr().out
    assert "71.00 +- 1.41" in said  # the spread of 70 and 72 is sqrt(((-1)^2 + 1^2) / 1)
    assert "TEST split" in said


def test_doctor_says_what_is_here_and_fails_when_a_config_could_not_start(here, capsys):
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "digits100 (composed here)" in said
    assert "SIMKD" in said
    assert main(["doctor", "--cfg", str(QUICK / "simkd.yaml"), *SMALL]) == 0
    assert (
        main(["doctor", "--cfg", str(ROOT / "configs/cifar100/kd.yaml"), "DATASET.ROOT", str(here)]) == 1
    )
    said = capsys.readouterr().out
    assert "MISSING" in said
    assert "configs/quickstart" in said
    assert list(here.iterdir()) == []


def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word():
    words = (
        f"set -o pipefail; {sys.executable} -m atsc_plugin leaderboard --suite {ROOT}/configs/leaderboard/ablation.yaml"
    )
    done = subprocess.run(["bash", "-c", f"{words} --dry-run | true"], capture_output=True, text=True, cwd=ROOT)
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
