"""The commands as a person uses them: what they leave, what they say, and that bad input costs nothing."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_checkpoint import plant_bomb

from atsc_plugin.__main__ import main
from atsc_plugin.engine import checkpoint
from atsc_plugin.host import cifar_model_dict

ROOT = Path(__file__).resolve().parents[1]
QUICK = ROOT / "configs" / "quickstart"
SMALL = ["DATASET.DIGITS100.TRAIN_IMAGES", "200", "DATASET.DIGITS100.VAL_IMAGES", "100",
         "DATASET.DIGITS100.TEST_IMAGES", "150"]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory; output goes below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def teacher_file(tmp_path):
    torch.manual_seed(0)
    torch.save({"model": cifar_model_dict["resnet20"][0](num_classes=100).state_dict()}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def train(method, *words, name="run"):
    return main(
        ["train", "--cfg", str(QUICK / f"{method}.yaml"), *words, "EXPERIMENT.NAME", name, "SOLVER.EPOCHS", "1", *SMALL]
    )


def run_folder(here, name="run"):
    return next((here / "output" / "quickstart").glob(f"{name}*")) / "seed_1"


def refused(capsys, status, *parts):
    """The last command failed as it should: status 2, a short message with these parts, no traceback."""
    said = capsys.readouterr()
    assert status == 2
    for part in parts:
        assert part in said.err, said.err
    assert "Traceback" not in said.err
    assert said.err.startswith("error: ")
    return said


@pytest.mark.parametrize("method", ["vanilla", "kd", "dkd", "reviewkd", "simkd"])
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
    results = [json.loads(path.read_text()) for path in (here / "output").rglob("result.json")]
    assert len(results) == 3  # none of them a teacher's
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


def test_the_hosts_base_trainer_runs_every_distiller_of_ours(here, teacher_file):
    assert train("simkd", "SOLVER.TRAINER", "base", "DISTILLER.TEACHER_CKPT", str(teacher_file)) == 0
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
        main(["doctor", "--cfg", str(ROOT / "configs/cifar100/kd/res32x4_res8x4.yaml"), "DATASET.ROOT", str(here)]) == 1
    )
    said = capsys.readouterr().out
    assert "MISSING" in said
    assert "configs/quickstart" in said
    assert list(here.iterdir()) == []


def test_usage_help_and_unknown_commands(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "doctor" in capsys.readouterr().out
    refused(capsys, main(["trian"]), "'trian' is no command")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    assert "--dry-run" in capsys.readouterr().out


# ---- bad input: told, status 2, nothing written ----


def test_absent_cifar100_names_the_place_the_source_and_a_config_that_runs_without(here, capsys):
    cfg = ROOT / "configs/cifar100/simkd/res32x4_res8x4.yaml"
    status = main(["train", "--cfg", str(cfg), "DATASET.ROOT", str(here / "nowhere")])
    refused(capsys, status, str(here / "nowhere"), "cs.toronto.edu", "configs/quickstart")
    assert list(here.iterdir()) == []


def test_a_misfit_teacher_costs_nothing(here, capsys):
    torch.save(cifar_model_dict["resnet20"][0](num_classes=10).state_dict(), here / "ten.pth")
    refused(capsys, train("kd", "DISTILLER.TEACHER_CKPT", "ten.pth"), "10 classes; the data have 100")
    refused(capsys, train("kd", "DISTILLER.TEACHER_CKPT", "none.pth"), "none.pth", "not there")
    assert [path.name for path in here.iterdir()] == ["ten.pth"]


def test_a_malicious_checkpoint_does_not_run_wherever_it_is_given(here, capsys, teacher_file):
    bomb = plant_bomb(here / "bomb.pth", here / "ran")
    refused(capsys, train("kd", "DISTILLER.TEACHER_CKPT", str(bomb)), "might run code")
    refused(capsys, main(["eval", str(bomb), "--cfg", str(QUICK / "vanilla.yaml"), *SMALL]), "might run code")
    assert train("vanilla") == 0
    folder = run_folder(here)
    (folder / "result.json").unlink()
    plant_bomb(folder / "latest", here / "ran")
    capsys.readouterr()
    refused(capsys, train("vanilla", "--resume"), "might run code")
    assert not (here / "ran").exists()


def test_no_teacher_and_no_leave_to_train_one_names_every_place(here, capsys):
    status = train("kd", "TEACHER.TRAIN_IF_MISSING", "False")
    refused(
        capsys,
        status,
        "No weights for teacher resnet20",
        "DISTILLER.TEACHER_CKPT",
        "output/teachers",
        "TRAIN_IF_MISSING",
    )
    assert list(here.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_before_anything_is_built(here, capsys):
    (here / "file").write_text("")
    refused(capsys, train("vanilla", "LOG.PREFIX", str(here / "file" / "out")), str(here / "file"), "is a file")
    refused(capsys, train("kd", "TEACHER.CACHE", str(here / "file" / "t")), "TEACHER.CACHE", "cannot be written")


def test_a_disk_that_fails_ends_with_a_message(here, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "latest")

    monkeypatch.setattr(checkpoint, "save", full)
    refused(capsys, train("vanilla"), "No space left on device")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["SOLVER.EPOCH", "3"], ["did you mean SOLVER.EPOCHS?"]),
        (["DISTILLER.TYPE", "SIMKDD", "DISTILLER.STUDENT", "resnet7"], ["2 mistakes", "SIMKDD", "resnet7"]),
        (["EXPERIMENT.DEVICE", "cuda:99"], ["cuda:99", "CUDA devices"]),
        (["EXPERIMENT.DEVICE", "gpu"], ["expected auto, cpu"]),
        (["EXPERIMENT.PROJECT", "../up"], ["would leave LOG.PREFIX"]),
        (["SOLVER.TRAINER", "base", "LOG.WANDB", "True"], ["LOG.WANDB False"]),
        (["SIMKD.PROJECTOR.FACTOR", "65"], ["SIMKD.PROJECTOR.FACTOR is 65", "64 channels"]),
        (["DATASET.TYPE", "imagenet"], ["2 mistakes", "got 'resnet8', expected one of ResNet18"]),
        (
            ["DATASET.TYPE", "cifar100", "EXPERIMENT.SELECT_ON", "val", "DATASET.ROOT", "/nowhere"],
            ["CIFAR-100 is not here"],
        ),
    ],
)
def test_a_mistake_costs_nothing(here, capsys, words, parts):
    refused(capsys, train("simkd", *words), *parts)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["eval", "nothing_here"], "There is no nothing_here"),
        (["eval", "."], "Name its configuration with --cfg"),
        (["report", "nothing_here"], "is no directory"),
        (["report", "."], "No result.json"),
        (["train", "--cfg", "none.yaml"], "none.yaml cannot be read"),
    ],
)
def test_a_path_that_leads_nowhere_is_told(here, capsys, words, part):
    refused(capsys, main(words), part)


def test_the_bare_student_of_a_shared_classifier_is_refused_with_the_reason(here, capsys, teacher_file):
    assert train("simkd", "DISTILLER.TEACHER_CKPT", str(teacher_file)) == 0
    capsys.readouterr()
    status = main(["eval", str(run_folder(here) / "student_best")])
    refused(capsys, status, "its own head was never trained", "deploy_")


def test_a_deploy_file_that_does_not_fit_its_card_is_told(here, capsys):
    assert train("vanilla") == 0
    card = run_folder(here) / "deploy_last.json"
    content = json.loads(card.read_text())
    capsys.readouterr()
    card.write_text(json.dumps({**content, "student": "resnet14"}))
    refused(capsys, main(["eval", str(run_folder(here))]), "does not fit its card")
    card.write_text(json.dumps({**content, "student": "resnet999"}))
    refused(capsys, main(["eval", str(run_folder(here))]), "resnet999")
    card.unlink()
    refused(capsys, main(["eval", str(run_folder(here))]), "expected the card")


def test_an_imagenet_teacher_comes_from_torchvisions_cache_or_a_named_file(here, capsys, monkeypatch):
    """No cache: told. A DISTILLER.TEACHER_CKPT: used, and the cache is not asked."""
    monkeypatch.setenv("TORCH_HOME", str(here / "torch"))
    draw = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            folder = here / "imagenet" / split / name
            folder.mkdir(parents=True)
            pixels = torch.randint(0, 256, (224, 224, 3), dtype=torch.uint8, generator=draw).numpy()
            Image.fromarray(pixels).save(folder / "0.png")
    words = ["train", "--cfg", str(ROOT / "configs/imagenet/simkd/r34_r18.yaml"), "DATASET.ROOT", str(here),
             "DATASET.NUM_WORKERS", "0", "SOLVER.EPOCHS", "1", "DISTILLER.TEACHER", "ResNet18"]  # fmt: skip
    refused(capsys, main(words), "ResNet18", str(here / "torch"))
    assert not (here / "output").exists()
    from atsc_plugin.host import imagenet_model_dict

    torch.save(imagenet_model_dict["ResNet18"](pretrained=False).state_dict(), here / "r18.pth")
    assert main([*words, "DISTILLER.TEACHER_CKPT", str(here / "r18.pth"), "SOLVER.BATCH_SIZE", "2"]) == 0
    card = json.loads(next((here / "output").rglob("deploy_last.json")).read_text())
    assert (card["classes"], card["image_size"], card["mean"]) == (1000, 224, [0.485, 0.456, 0.406])
    assert main(["eval", str(next((here / "output").rglob("result.json")).parent), "--json"]) == 0


def test_the_guard_stops_the_released_step_with_status_3_and_says_why(here, capsys, teacher_file):
    """On an untrained teacher the figures mean nothing; a head start for the labels it gives itself is not needed."""
    words = ["DISTILLER.TEACHER_CKPT", str(teacher_file), "ATSC.GUARD", "stop", "ATSC.DRIFT.WEIGHT", "0.0"]
    status = main(["train", "--cfg", str(QUICK / "atsc_published.yaml"), *words, "EXPERIMENT.NAME", "g", *SMALL])
    said = capsys.readouterr()
    assert status == 3
    assert "the teacher has collapsed" in said.err
    folder = run_folder(here, "g")
    assert "ATSC.DRIFT.WEIGHT" in json.loads((folder / "stopped.json").read_text())["reason"]
    assert not (folder / "result.json").exists()
    again = main(["train", "--cfg", str(QUICK / "atsc_published.yaml"), *words, "EXPERIMENT.NAME", "g", *SMALL])
    refused(capsys, again, "a run that was stopped", "--resume")


def test_resume_and_overwrite_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--cfg", str(QUICK / "kd.yaml"), "--resume", "--overwrite"])
    assert stop.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
