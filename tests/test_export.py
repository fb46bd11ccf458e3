"""Exports: the same predictions in every format, no file that was not compared, and mistakes that cost no file."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_files import student, write_student
from PIL import Image

from atsc_plugin import students
from atsc_plugin.__main__ import main
from atsc_plugin.data.pictures import normalised, pixels_of
from atsc_plugin.engine import checkpoint
from atsc_plugin.errors import PluginError
from atsc_plugin.export import checked, formats, latency, onnx_files
from atsc_plugin.host import cifar_model_dict

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["DATASET.DIGITS100.TRAIN_IMAGES", "200", "DATASET.DIGITS100.VAL_IMAGES", "100",
         "DATASET.DIGITS100.TEST_IMAGES", "150"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run directory of one epoch of SimKD on a few digits, under a teacher that learned nothing."""
    place = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    torch.save({"model": cifar_model_dict["resnet14"][0](num_classes=100).state_dict()}, place / "teacher.pth")
    words = ["DISTILLER.TEACHER", "resnet14", "DISTILLER.TEACHER_CKPT", str(place / "teacher.pth"), *SMALL]
    words += ["SOLVER.EPOCHS", "1", "LOG.PREFIX", str(place), "EXPERIMENT.NAME", "run"]
    assert main(["train", "--cfg", str(ROOT / "configs/quickstart/simkd.yaml"), *words]) == 0
    return next(place.glob("quickstart/*/seed_1"))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)


def refused(capsys, words, *parts):
    """The command fails with status 2 and a message with these parts, and says nothing of a traceback."""
    status, said = main(words), capsys.readouterr()
    assert status == 2, said
    for part in parts:
        assert part in said.err, said.err
    assert "Traceback" not in said.err


# ---- from a run ----


@pytest.mark.parametrize("name", ["onnx", "torch", "safetensors"])
def test_every_format_is_written_from_a_run_and_agrees_with_it(trained, tmp_path, capsys, name):
    ending = formats.FORMATS[name].ending
    output = tmp_path / f"student{ending}"
    assert main(["export", str(trained), "--format", name, "--output", str(output), "--check", "100"]) == 0
    assert "100 of 100 top-1 equal" in capsys.readouterr().out
    module, card = students.load(trained)
    image = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        wanted = module(image).numpy()
    np.testing.assert_allclose(formats.FORMATS[name].read(output)(image.numpy()), wanted, atol=1e-4)
    expected = {output.name} | ({"student.json"} if name == "safetensors" else set())
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_an_onnx_file_is_put_beside_the_run_and_predicts_the_test_split_as_eval_does(trained, tmp_path, capsys):
    """From PNG files of the test images, through both kinds of input; accuracy and every top-1 the same."""
    assert main(["export", str(trained), "--format", "onnx"]) == 0
    assert main(["export", str(trained), "--format", "onnx", "--preprocess", "--output", str(tmp_path / "pre")]) == 0
    assert main(["eval", str(trained), "--json"]) == 0
    top1 = json.loads(capsys.readouterr().out.splitlines()[-1])["top1"]
    from atsc_plugin.data.digits100 import digits100

    images, labels = digits100(200, 100, 150, 0)["test"]
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "images" / f"{number:03d}.png")
    told = []
    for model in (trained / "deploy_last.onnx", tmp_path / "pre.onnx", trained):
        assert main(["predict", str(tmp_path / "images"), "--model", str(model), "--top", "1", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        told.append([image["top"][0]["class"] for image in answer["images"]])
        assert answer["skipped"] == []
    assert told[0] == told[1] == told[2]
    assert 100 * np.mean(np.array(told[0]) == labels) == pytest.approx(top1)
    (trained / "deploy_last.onnx").unlink()


def test_deploy_files_are_made_from_a_whole_checkpoint_of_a_hosts_trainer(trained, tmp_path, capsys):
    (tmp_path / "latest").write_bytes((trained / "latest").read_bytes())
    (tmp_path / "cfg.yaml").write_bytes((trained / "cfg.yaml").read_bytes())
    assert main(["export", str(tmp_path / "latest"), "--format", "safetensors", "--check", "10"]) == 0
    image = torch.randn(4, 3, 32, 32)
    assert torch.equal(students.load(tmp_path)[0](image), students.load(trained)[0](image))
    assert students.load(tmp_path)[1]["class_names"][:2] == ["00", "01"]


def test_the_bare_student_of_a_shared_classifier_has_no_head_to_export(trained, capsys):
    before = sorted(trained.iterdir())
    refused(capsys, ["export", str(trained / "student_best"), "--format", "onnx"], "its own head was never trained")
    assert sorted(trained.iterdir()) == before


# ---- from a file alone ----


def test_without_a_configuration_images_are_asked_for_and_used(tmp_path, capsys, pixels):
    write_student(tmp_path / "small")
    words = ["export", str(tmp_path / "small.safetensors"), "--format", "torch"]
    refused(capsys, words, "Name images to compare on with --images")
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(pixels[:3]):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    assert main([*words, "--images", str(tmp_path / "photos")]) == 0
    assert "3 of 3 top-1 equal" in capsys.readouterr().out
    (tmp_path / "photos" / "x.png").write_text("no image")
    refused(capsys, [*words, "--images", str(tmp_path / "photos")], "an image cannot be read")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--format", "onnx", "--opset", "17"], ["--opset is 17; expected 18 to"]),
        (["--format", "onnx", "--opset", "9999"], ["--opset is 9999; expected 18 to"]),
        (["--format", "torch", "--opset", "18"], ["--opset belongs to ONNX"]),
        (["--format", "safetensors", "--preprocess"], ["--preprocess has nothing to go into"]),
        (["--format", "safetensors"], ["is the student to be exported itself"]),
        (["--format", "onnx", "--check", "0"], ["--check is 0; expected at least 1"]),
        (["--format", "onnx", "--output", "no_such_folder/x.onnx"], ["There is no folder", "no_such_folder"]),
    ],
)
def test_a_request_that_cannot_be_met_costs_no_file(tmp_path, monkeypatch, capsys, words, parts):
    monkeypatch.chdir(tmp_path)
    write_student(tmp_path / "small")
    refused(capsys, ["export", "small.safetensors", *words], *parts)
    assert {path.name for path in tmp_path.iterdir()} == {"small.safetensors", "small.json"}


def test_an_export_that_does_not_agree_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, pixels):
    module, card = write_student(tmp_path / "a"), students.load(tmp_path / "a")[1]
    (tmp_path / "x.onnx").write_text("old")
    wrong = student(seed=1)
    monkeypatch.setattr(formats, "program_of", lambda _module, *rest, make=formats.program_of: make(wrong, *rest))
    with pytest.raises(PluginError, match=r"does not agree with the student: \d+ of 70 top-1 equal"):
        checked.export(module, card, tmp_path / "x.onnx", "onnx", pixels)
    assert (tmp_path / "x.onnx").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.safetensors", "x.onnx"}


@pytest.mark.parametrize(("bad", "told"), [("student", "Its training diverged"), ("file", "The reloaded file gives")])
def test_logits_that_are_not_finite_never_agree(tmp_path, bad, told, pixels):
    write_student(tmp_path / "a")
    module, card = students.load(tmp_path / "a")
    if bad == "student":
        next(module.parameters()).data.fill_(math.nan)
    with torch.no_grad(), pytest.raises(PluginError, match=told):
        checked.compare(module, lambda part: np.full((len(part), card["classes"]), math.nan), pixels, card, False)


def test_a_small_difference_with_equal_top1_is_refused_when_it_exceeds_the_tolerance(pixels):
    """Largest logit 10: a difference of .02 exceeds 10 * 1e-3, one of .005 does not."""
    for difference, good in ((0.02, False), (0.005, True)):
        assert checked.Agreement(70, difference, 70, 10.0).good() is good
    assert not checked.Agreement(70, 0.0, 69, 10.0).good()


def test_an_onnx_file_has_a_free_batch_the_asked_opset_and_its_card(tmp_path, pixels):
    import onnx

    module, card = write_student(tmp_path / "a"), students.load(tmp_path / "a")[1]
    files, agreement = checked.export(module, card, tmp_path / "x", "onnx", pixels, preprocess=True, opset=19)
    assert files == [tmp_path / "x.onnx"]
    assert agreement.same_top1 == agreement.images == 70
    model = onnx.load(files[0])
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [19]
    side = model.graph.input[0].type.tensor_type.shape.dim
    assert side[0].dim_param
    assert [dim.dim_value for dim in side[1:]] == [32, 32, 3]
    opened = onnx_files.session(files[0])
    stored = onnx_files.card_of(opened, files[0])
    assert {key: stored[key] for key in card} == card
    assert "uint8" in stored["exported"]["input"]


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch, capsys):
    write_student(tmp_path / "small")
    monkeypatch.setattr(
        onnx_files.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(f"No module {name}"))
    )
    with pytest.raises(PluginError, match=r"need the package onnx.*pip install \"atsc_plugin\[export\]\""):
        formats.check_request("onnx", False, None)
    formats.check_request("torch", False, None)  # the other formats do not need them


def test_pixels_survive_normalisation_and_back(pixels):
    card = {"mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]}
    assert np.array_equal(pixels_of(normalised(pixels, card), card), pixels)


def test_an_ensemble_of_two_heads_is_exported_like_any_student(tmp_path, pixels):
    module, card = write_student(tmp_path / "two", heads=2), students.load(tmp_path / "two")[1]
    assert checked.export(module, card, tmp_path / "x", "onnx", pixels)[1].good()


def test_a_map_that_is_read_by_a_hook_is_exported_too(tmp_path, pixels):
    """MobileNetV2's map is the output of a module inside, seen by a forward hook."""
    from atsc_plugin.networks.deployed import DeployedStudent, Head
    from atsc_plugin.networks.maps import Projector, teacher_map

    torch.manual_seed(0)
    backbone = cifar_model_dict["MobileNetV2"][0](num_classes=10)
    facts = teacher_map(backbone, 32, "MobileNetV2")
    assert facts.source.place not in ("feats", "preact")
    head = Head(facts.size, Projector(facts.channels, 8, 16), torch.nn.Linear(16, 10))
    module = DeployedStudent(backbone, facts.source, [head]).eval()
    card = {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "dataset": "npz", "classes": 10}
    assert checked.export(module, card, tmp_path / "x", "torch", pixels[:3])[1].good()


def test_the_benchmark_counts_and_measures_student_and_teacher(monkeypatch):
    """resnet8 with ten classes: 78,042 parameters of its own; its teacher is resnet14 here."""
    monkeypatch.setattr(latency, "REPEATS", 2)
    monkeypatch.setattr(latency, "SECONDS", 0.001)
    small, teacher = student(heads=0), cifar_model_dict["resnet14"][0](num_classes=10)
    lines = latency.table(small, teacher, {"image_size": 32})
    counts = [sum(p.numel() for p in network.parameters()) for network in (small, teacher)]
    text = "\n".join(lines)
    assert f"{counts[0]:,}" in text
    assert f"{counts[1] / counts[0]:.2f}" in text
    assert "torch compiled skipped" in text
    measured = [line for line in lines if line.startswith(("torch  ", "ONNX Runtime"))]
    assert len(measured) == 4  # two engines, batches of 1 and 64
    monkeypatch.setattr(latency, "_onnx", lambda network, card: 1 / 0)
    alone = latency.table(small, None, {"image_size": 32})
    assert "teacher" not in "\n".join(alone)
    assert alone[-1].split() == ["ONNX", "Runtime", "skipped", "(division", "by", "zero)"]


def test_a_students_tensors_in_the_pair_are_the_students(tmp_path, pixels):
    write_student(tmp_path / "a")
    checked.export(*students.load(tmp_path / "a"), tmp_path / "b", "safetensors", pixels)
    first, second = (checkpoint.load_tensors(tmp_path / f"{name}.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
