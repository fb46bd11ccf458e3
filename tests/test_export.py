"""Exports: the same predictions in every format, no file that was not compared, and mistakes that cost no file."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy_files import student, write_student
from PIL import Image
from tiny import TinyNet, add_tiny_networks

import atsc_plugin
from atsc_plugin import host, students
from atsc_plugin.__main__ import main
from atsc_plugin.data.pictures import normalised, pixels_of
from atsc_plugin.engine import checkpoint
from atsc_plugin.errors import PluginError
from atsc_plugin.export import latency, onnx_files, verified
from atsc_plugin.networks.deployed import DeployedStudent, Head
from atsc_plugin.networks.maps import MapSource
from atsc_plugin.networks.projector import Projector

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["DATASET.DIGITS100.TRAIN_IMAGES", "200", "DATASET.DIGITS100.VAL_IMAGES", "100",
         "DATASET.DIGITS100.TEST_IMAGES", "150"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def tiny_networks():
    with pytest.MonkeyPatch.context() as patch:
        add_tiny_networks(patch)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_networks):
    """The run directory of one epoch of SimKD on a few digits; the tiny teacher has learned nothing."""
    place = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    torch.save({"model": TinyNet(100, width=8).state_dict()}, place / "teacher.pth")
    words = ["DISTILLER.TEACHER", "tiny_teacher", "DISTILLER.STUDENT", "tiny", *SMALL]
    words += ["DISTILLER.TEACHER_CKPT", str(place / "teacher.pth")]
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
    kind = verified.FORMATS[name]
    output = tmp_path / f"student{kind.ending}"
    assert main(["export", str(trained), "--format", name, "--output", str(output), "--check", "100"]) == 0
    assert "100 of 100 top-1 equal" in capsys.readouterr().out
    module, card = students.load(trained)
    image = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        wanted = module(image).numpy()
    np.testing.assert_allclose(kind.read(output)(image.numpy()), wanted, atol=1e-4)
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
    predicted = []
    for model in (trained / "deploy_last.onnx", tmp_path / "pre.onnx", trained):
        assert main(["predict", str(tmp_path / "images"), "--model", str(model), "--top", "1", "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        predicted.append([image["top"][0]["class"] for image in answer["images"]])
        assert answer["skipped"] == []
    assert predicted[0] == predicted[1] == predicted[2]
    assert 100 * np.mean(np.array(predicted[0]) == labels) == pytest.approx(top1)
    (trained / "deploy_last.onnx").unlink()


def test_deploy_files_are_made_from_a_whole_checkpoint_of_a_hosts_trainer(trained, tmp_path, capsys):
    (tmp_path / "latest").write_bytes((trained / "latest").read_bytes())
    (tmp_path / "cfg.yaml").write_bytes((trained / "cfg.yaml").read_bytes())
    assert main(["export", str(tmp_path / "latest"), "--format", "safetensors", "--check", "10"]) == 0
    image = torch.randn(4, 3, 32, 32)
    made, own = students.load(tmp_path), students.load(trained)
    assert torch.equal(made[0](image), own[0](image))
    same = ("host", "host_version", "method", "student", "dataset", "classes", "image_size", "mean", "std", "heads",
            "class_names", "unused", "ensemble", "epoch")  # fmt: skip
    assert {key: made[1][key] for key in same} == {key: own[1][key] for key in same}


def test_the_bare_student_of_a_shared_classifier_has_no_head_to_export(trained, capsys):
    before = sorted(trained.iterdir())
    refused(capsys, ["export", str(trained / "student_best"), "--format", "onnx"], "its own head was never trained")
    assert sorted(trained.iterdir()) == before


def test_a_method_of_somebody_else_that_predicts_by_more_than_its_student_is_evaluated_and_not_exported(
    trained, tmp_path, monkeypatch, capsys
):
    """A fork may have a SimKD of its own: what its forward_test computes is what `eval` measures."""
    atsc_plugin.register()

    class Opposite(host.distiller_dict["KD"]):
        def forward_test(self, image):
            return -self.student(image)[0]

    monkeypatch.setitem(host.distiller_dict, "KD", Opposite)
    torch.manual_seed(1)
    state = {f"student.{name}": tensor for name, tensor in TinyNet(100).state_dict().items()}
    state |= {f"teacher.{name}": tensor for name, tensor in TinyNet(100, width=8).state_dict().items()}
    torch.save({"model": state}, tmp_path / "latest")
    words = ["--cfg", str(trained / "cfg.yaml"), "DISTILLER.TYPE", "KD"]
    opened = students.open_student(tmp_path / "latest", "last", *_cfg_data_skeleton(words[1], words[2:]))
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(opened.module(image), -opened.module.distiller.student(image)[0])
    assert main(["eval", str(tmp_path / "latest"), *words]) == 0
    assert "checkpoint of KD, digits100 test (150 images)" in capsys.readouterr().out
    refused(capsys, ["export", str(tmp_path / "latest"), "--format", "torch", *words], "not predict by its student")


def _cfg_data_skeleton(cfg, overrides):
    from atsc_plugin import build
    from atsc_plugin.config import load_cfg

    cfg = load_cfg(cfg, overrides)
    return cfg, build.data_of(cfg, torch.device("cpu")), build.skeleton


# ---- from a file alone ----


def test_without_a_configuration_images_are_asked_for_and_used(tmp_path, capsys, pixels):
    write_student(tmp_path / "small", name="tiny")
    words = ["export", str(tmp_path / "small.safetensors"), "--format", "torch"]
    refused(capsys, words, "or images to compare on with --images")
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(pixels[:3]):
        Image.fromarray(image).save(tmp_path / "photos" / f"{number}.png")
    assert main([*words, "--images", str(tmp_path / "photos")]) == 0
    assert "3 of 3 top-1 equal" in capsys.readouterr().out
    (tmp_path / "photos" / "x.png").write_text("no image")
    refused(capsys, [*words, "--images", str(tmp_path / "photos")], "an image cannot be read")


def test_data_of_other_classes_are_refused_by_eval_and_export(tmp_path, capsys):
    write_student(tmp_path / "small", name="tiny")
    own = [str(tmp_path / "small"), "--cfg", str(ROOT / "configs/quickstart/vanilla.yaml"), *SMALL]
    for words in (["eval", *own], ["export", *own, "--format", "torch"]):
        refused(capsys, words, "tells 10 classes apart, digits100 has 100")


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
    write_student(tmp_path / "small", name="tiny")
    refused(capsys, ["export", "small.safetensors", *words], *parts)
    assert {path.name for path in tmp_path.iterdir()} == {"small.safetensors", "small.json"}


def test_an_export_that_does_not_agree_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, pixels):
    module, card = write_student(tmp_path / "a", name="tiny"), students.load(tmp_path / "a")[1]
    (tmp_path / "x.pt2").write_text("old")
    wrong = student(seed=1, name="tiny")
    monkeypatch.setattr(verified, "program_of", lambda _module, *rest, make=verified.program_of: make(wrong, *rest))
    with pytest.raises(PluginError, match=r"does not agree with the student: \d+ of 70 top-1 equal"):
        verified.verified_export(module, card, tmp_path / "x.pt2", "torch", pixels)
    assert (tmp_path / "x.pt2").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.safetensors", "x.pt2"}


@pytest.mark.parametrize(
    ("bad", "message"), [("student", "Its training diverged"), ("file", "The reloaded file gives")]
)
def test_logits_that_are_not_finite_never_agree(tmp_path, bad, message, pixels):
    write_student(tmp_path / "a", name="tiny")
    module, card = students.load(tmp_path / "a")
    if bad == "student":
        next(module.parameters()).data.fill_(math.nan)
    with pytest.raises(PluginError, match=message):
        verified.compare(module, lambda batch: np.full((len(batch), card["classes"]), math.nan), pixels, card, False)


def test_a_small_difference_with_equal_top1_is_refused_when_it_exceeds_the_tolerance():
    """Largest logit 10: a difference of .02 exceeds 10 * 1e-3, one of .005 does not."""
    for difference, equal in ((0.02, False), (0.005, True)):
        assert verified.Comparison(70, difference, 70, 10.0).equal() is equal
    assert not verified.Comparison(70, 0.0, 69, 10.0).equal()


def test_the_comparison_sees_one_image_a_whole_batch_and_the_rest(tmp_path, pixels):
    """70 images: 1, then 64, then 5."""
    module, sizes = write_student(tmp_path / "a", name="tiny"), []
    card = students.load(tmp_path / "a")[1]

    def predict(images):
        sizes.append(len(images))
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    assert verified.compare(module, predict, pixels, card, False).equal()
    assert sizes == [1, 64, 5]


def test_an_onnx_file_of_a_real_network_has_a_free_batch_the_asked_opset_and_its_card(tmp_path, pixels):
    import onnx

    module, card = write_student(tmp_path / "a", name="resnet8"), students.load(tmp_path / "a")[1]
    options = {"preprocess": True, "opset": 19}
    files, result = verified.verified_export(module, card, tmp_path / "x", "onnx", pixels, **options)
    assert files == [tmp_path / "x.onnx"]
    assert result.same_top1 == result.images == 70
    model = onnx.load(files[0])
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [19]
    side = model.graph.input[0].type.tensor_type.shape.dim
    assert side[0].dim_param
    assert [dim.dim_value for dim in side[1:]] == [32, 32, 3]
    stored = onnx_files.card_of(onnx_files.session(files[0]), files[0])
    assert {key: stored[key] for key in card} == card
    assert "uint8" in stored["exported"]["input"]


def test_a_network_that_onnx_cannot_express_is_refused_with_the_reason(tmp_path):
    class Windows(torch.nn.Module):
        def forward(self, image):
            rows = image[:, None]  # five dimensions, as in Hiera
            return torch.nn.functional.scaled_dot_product_attention(rows, rows, rows).mean((1, 3, 4))

    program, place = verified.program_of(Windows(), {"image_size": 8}), tmp_path / "x.onnx"
    with pytest.raises(PluginError, match=r"cannot write this network as ONNX \(only 4D query.*Use --format torch"):
        onnx_files.write(program, {}, place, None)
    assert not place.exists()


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(
        onnx_files.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(f"No module {name}"))
    )
    with pytest.raises(PluginError, match=r"need the package onnx.*pip install \"atsc_plugin\[export\]\""):
        verified.check_request("onnx", tmp_path / "x.onnx", False, None)
    verified.check_request("torch", tmp_path / "x.pt2", False, None)  # the other formats do not need them


def test_pixels_survive_normalisation_and_back(pixels):
    card = {"mean": [0.5071, 0.4867, 0.4408], "std": [0.2675, 0.2565, 0.2761]}
    assert np.array_equal(pixels_of(normalised(pixels, card), card), pixels)


def test_an_ensemble_whose_map_is_read_by_a_hook_is_exported_like_any_student(tmp_path, pixels):
    """The map is the output of a module inside, seen by a forward hook, as MobileNetV2's is; two heads read it."""
    torch.manual_seed(0)
    heads = [Head(4, Projector(4, 8, 16), torch.nn.Linear(16, 10)) for _ in range(2)]
    module = DeployedStudent(TinyNet(), MapSource("bn", relu=True), heads).eval()
    card = {"image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "dataset": "npz", "classes": 10}
    for name in ("torch", "onnx"):
        assert verified.verified_export(module, card, tmp_path / "x", name, pixels)[1].equal()


def test_the_benchmark_counts_and_measures_student_and_teacher(monkeypatch):
    """TinyNet of width w and ten classes: 27 w in the convolution, 2 w in BN, 10 w + 10 in the classifier."""
    monkeypatch.setattr(latency, "TURNS", 2)
    monkeypatch.setattr(latency, "SECONDS", 0.0001)
    text = latency.report(DeployedStudent(TinyNet()), TinyNet(width=8), 32)
    assert "student         166" in text
    assert "teacher         322" in text
    assert f"teacher / student        {322 / 166:.2f}" in text
    assert "torch compiled skipped" in text
    measured = [line.split("  ") for line in text.splitlines() if " to " in line]
    engines = [[word.strip() for word in line if word.strip()][:2] for line in measured]
    assert engines == [["torch", "1"], ["torch", "64"], ["ONNX Runtime", "1"], ["ONNX Runtime", "64"]]
    monkeypatch.setattr(latency, "onnx_runtime", lambda network, side: 1 / 0)
    alone = latency.report(DeployedStudent(TinyNet()), None, 32)
    assert "teacher" not in alone
    assert alone.endswith("ONNX Runtime skipped (division by zero)")


def test_a_students_tensors_in_the_pair_are_the_students(tmp_path, pixels):
    write_student(tmp_path / "a", name="tiny")
    verified.verified_export(*students.load(tmp_path / "a"), tmp_path / "b", "safetensors", pixels)
    first, second = (checkpoint.load_tensors(tmp_path / f"{name}.safetensors") for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_command_measures_a_run_beside_its_teacher(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(latency, "TURNS", 2)
    monkeypatch.setattr(latency, "SECONDS", 0.0001)
    words = ["--format", "safetensors", "--output", str(tmp_path / "student"), "--check", "8", "--benchmark"]
    assert main(["export", str(trained), *words]) == 0
    said = capsys.readouterr().out
    assert "teacher: a tiny_teacher" in said
    assert "teacher / student" in said
