"""The commands and bad input: told, status 2, nothing written, nothing run."""

import json
from functools import partial

import pytest
import torch
from bombs import plant_bomb
from PIL import Image
from small_runs import QUICK, ROOT, SMALL, TINY, refused, run_folder, tiny, train
from tiny import TinyNet

from atsc_plugin.__main__ import main
from atsc_plugin.engine import checkpoint
from atsc_plugin.engine.step import Step
from atsc_plugin.host import imagenet_model_dict


def test_absent_cifar100_names_the_place_the_source_and_a_config_that_runs_without(here, capsys):
    cfg = ROOT / "configs/cifar100/simkd.yaml"
    status = main(["train", "--cfg", str(cfg), "DATASET.ROOT", str(here / "nowhere")])
    refused(capsys, status, str(here / "nowhere"), "cs.toronto.edu", "configs/quickstart")
    assert list(here.iterdir()) == []


def test_a_misfit_teacher_costs_nothing(here, capsys, tiny_networks):
    torch.save(TinyNet(num_classes=10, width=8).state_dict(), here / "ten.pth")
    refused(capsys, tiny("kd", "DISTILLER.TEACHER_CKPT", "ten.pth"), "tells 10 classes apart, the data 100")
    refused(capsys, tiny("kd", "DISTILLER.TEACHER_CKPT", "none.pth"), "none.pth", "not there")
    torch.save(TinyNet(num_classes=100, width=9).state_dict(), here / "wide.pth")
    status = tiny("kd", "--dry-run", "DISTILLER.TEACHER_CKPT", "wide.pth")
    refused(capsys, status, "wide.pth does not fit a tiny_teacher")  # the plan has read the file
    assert sorted(path.name for path in here.iterdir()) == ["ten.pth", "wide.pth"]


def test_a_malicious_checkpoint_is_refused_in_the_words_of_a_person(here, capsys, run):
    """test_trust.py gives it to every command."""
    (run / "result.json").unlink()
    plant_bomb(run / "latest", here / "ran")
    refused(capsys, tiny("vanilla", "--resume"), "might run code")
    assert not (here / "ran").exists()


def test_no_teacher_and_no_leave_to_train_one_names_every_place(here, capsys):
    status = train("kd", "TEACHER.TRAIN_IF_MISSING", "False")
    told = ("No weights for teacher resnet20", "DISTILLER.TEACHER_CKPT", "output/teachers", "TRAIN_IF_MISSING")
    refused(capsys, status, *told)
    assert list(here.iterdir()) == []


def test_a_place_that_cannot_be_written_is_told_before_anything_is_built(here, capsys):
    (here / "file").write_text("")
    refused(capsys, train("vanilla", "LOG.PREFIX", str(here / "file" / "out")), str(here / "file"), "is a file")
    refused(capsys, train("kd", "TEACHER.CACHE", str(here / "file" / "t")), "TEACHER.CACHE", "cannot be written")


def test_what_no_run_could_use_is_told_by_name(here, capsys):
    refused(capsys, train("vanilla", "--dry-run", "EXPERIMENT.DEVICE", "mps"), "expected auto, cpu, cuda or cuda:N")
    words = ["--cfg", str(QUICK / "vanilla.yaml"), "DISTILLER.TEACHER", "resnet5", "--dry-run"]
    refused(capsys, main(["teachers", *words]), "DISTILLER.TEACHER: got 'resnet5', expected one of")
    refused(capsys, main(["doctor", "DATASET.ROOT", "x"]), "DATASET.ROOT changes a configuration", "Add --cfg FILE")


def test_a_run_and_its_teacher_lie_under_home_where_the_tilde_says_so(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home").mkdir()
    assert train("kd", "LOG.PREFIX", "~/runs", "TEACHER.CACHE", "~/teachers") == 0
    assert list((here / "home" / "runs").rglob("result.json")) and list((here / "home" / "teachers").glob("*.pth"))
    assert not (here / "~").exists()


def test_a_disk_that_fails_ends_with_a_message(here, capsys, monkeypatch, tiny_networks):
    def full(*_):
        raise OSError(28, "No space left on device", "latest")

    monkeypatch.setattr(checkpoint, "save", full)
    refused(capsys, tiny("vanilla"), "No space left on device")


# ---- memory that runs out ----

TOO_LITTLE = "[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you tried to get 9 GB"


def out_of_memory(*_args, **_kwargs):
    raise RuntimeError(TOO_LITTLE)


def test_memory_that_runs_out_in_a_step_is_told_with_the_keys_that_need_less(here, capsys, monkeypatch, tiny_networks):
    monkeypatch.setattr(Step, "__call__", out_of_memory)
    told = "memory ran out", "you tried to get 9 GB", "SOLVER.BATCH_SIZE", "SOLVER.ACCUMULATE"
    refused(capsys, tiny("vanilla"), *told)


def test_memory_that_runs_out_in_a_continuation_is_not_taken_for_a_misfit(run, capsys, monkeypatch):
    (run / "result.json").unlink()
    monkeypatch.setattr(Step, "load_state", out_of_memory)
    said = refused(capsys, tiny("vanilla", "--resume"), "memory ran out")
    assert "does not continue this run" not in said.err


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_pythons_and_a_devices_memory_errors_are_told_too(here, capsys, monkeypatch, tiny_networks, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(Step, "__call__", fail)
    refused(capsys, tiny("vanilla"), "memory ran out")


# ---- keys and paths ----


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
        (["eval", "."], ". is no run directory"),
        (["report", "nothing_here"], "is no directory"),
        (["report", "."], "No finished run under ."),
        (["train", "--cfg", "none.yaml"], "none.yaml cannot be read"),
    ],
)
def test_a_path_that_leads_nowhere_is_told(here, capsys, words, part):
    refused(capsys, main(words), part)


def test_the_bare_student_of_a_shared_classifier_is_refused_with_the_reason(here, capsys, tiny_teacher_file):
    assert tiny("simkd", "DISTILLER.TEACHER_CKPT", str(tiny_teacher_file)) == 0
    capsys.readouterr()
    status = main(["eval", str(run_folder(here) / "student_best")])
    refused(capsys, status, "its own head was never trained", "deploy_")


def test_a_deploy_file_that_does_not_fit_its_card_is_told(run, capsys):
    card = run / "deploy_last.json"
    content = json.loads(card.read_text())
    card.write_text(json.dumps({**content, "student": "tiny_teacher"}))
    refused(capsys, main(["eval", str(run)]), "does not fit its card")
    card.write_text(json.dumps({**content, "student": "resnet999"}))
    refused(capsys, main(["eval", str(run)]), "resnet999")
    card.unlink()
    refused(capsys, main(["eval", str(run)]), "has checkpoints but no deploy_last files")


def imagenet_net(pretrained=False, num_classes=1000, width=4):
    return TinyNet(num_classes, width)


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
    words = ["train", "--cfg", str(ROOT / "configs/imagenet/simkd.yaml"), "DATASET.ROOT", str(here),
             "DATASET.NUM_WORKERS", "0", "SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "2"]  # fmt: skip
    refused(capsys, main([*words, "DISTILLER.TEACHER", "ResNet18"]), "ResNet18", str(here / "torch"))
    assert not (here / "output").exists()
    for name, width in (("tiny", 4), ("tiny_teacher", 8)):
        monkeypatch.setitem(imagenet_model_dict, name, partial(imagenet_net, width=width))
    torch.save(imagenet_net(width=8).state_dict(), here / "teacher.pth")
    assert main([*words, *TINY, "DISTILLER.TEACHER_CKPT", str(here / "teacher.pth")]) == 0
    card = json.loads(next((here / "output").rglob("deploy_last.json")).read_text())
    assert (card["classes"], card["image_size"], card["mean"]) == (1000, 224, [0.485, 0.456, 0.406])
    assert main(["eval", str(next((here / "output").rglob("result.json")).parent), "--json"]) == 0


def test_the_guard_stops_the_released_atsc_step_with_status_3_and_says_why(here, capsys, teacher_file):
    """On an untrained teacher the figures mean nothing; a head start for the labels it gives itself is not needed."""
    words = ["DISTILLER.TEACHER_CKPT", str(teacher_file), "ATSC.GUARD", "stop", "ATSC.DRIFT.WEIGHT", "0.0"]
    command = ["train", "--cfg", str(QUICK / "atsc_published.yaml"), *words, "EXPERIMENT.NAME", "g", *SMALL]
    status = main(command)
    said = capsys.readouterr()
    assert status == 3
    assert "the teacher has collapsed" in said.err
    folder = run_folder(here, "g")
    assert "Take ATSC.UPDATE fused" in json.loads((folder / "stopped.json").read_text())["reason"]
    assert not (folder / "result.json").exists()
    refused(capsys, main(command), "a run that was stopped", "--resume")


def test_resume_and_overwrite_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--cfg", str(QUICK / "kd.yaml"), "--resume", "--overwrite"])
    assert stop.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
