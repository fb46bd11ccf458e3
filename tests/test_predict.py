"""predict: image files in, named classes out; an unreadable one is named, skipped and remembered in the exit status."""

import json

import numpy as np
import pytest
import torch
from deploy_files import write_student
from PIL import Image

from atsc_plugin import students
from atsc_plugin.__main__ import main
from atsc_plugin.data import pictures
from atsc_plugin.errors import PluginError
from atsc_plugin.export import verified

CARD = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3], "image_size": 32, "dataset": "npz"}


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_networks):
    """A folder with a student of ten classes and three pictures of different kinds."""
    monkeypatch.chdir(tmp_path)
    write_student(tmp_path / "small", name="tiny")
    draw = np.random.default_rng(0)
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "photos" / "a.png")
    Image.fromarray(draw.integers(0, 256, (50, 40), dtype=np.uint8)).save(tmp_path / "photos" / "deeper" / "grey.jpg")
    Image.fromarray(draw.integers(0, 256, (20, 20, 4), dtype=np.uint8)).save(tmp_path / "photos" / "clear.png")
    return tmp_path


def test_a_folder_is_predicted_with_the_five_likeliest_names(here, capsys):
    assert main(["predict", "photos", "--model", "small.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["photos/a.png", "photos/clear.png", "photos/deeper/grey.jpg"]
    assert all(line.count("class ") == 5 for line in lines)


def test_the_probabilities_are_the_softmax_of_the_students_logits(here, capsys):
    assert main(["predict", "photos/a.png", "--model", "small", "--top", "10", "--json"]) == 0
    top = json.loads(capsys.readouterr().out)["images"][0]["top"]
    image = torch.from_numpy(np.array(Image.open("photos/a.png"))).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(CARD[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    wanted = students.load("small")[0]((image - mean) / std).softmax(1)[0]
    assert [entry["class"] for entry in top] == wanted.argsort(descending=True).tolist()
    assert [entry["probability"] for entry in top] == pytest.approx(
        wanted.sort(descending=True).values.tolist(), abs=2e-6
    )
    assert top[0]["name"] == f"class {top[0]['class']}"


def test_unreadable_images_among_good_ones_are_named_skipped_and_make_the_status_1(here, capsys):
    (here / "photos" / "broken.png").write_bytes(b"no picture")
    whole = (here / "photos" / "a.png").read_bytes()
    (here / "photos" / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert main(["predict", "photos", "gone.png", "--model", "small", "--json"]) == 1
    said = capsys.readouterr()
    answer = json.loads(said.out)
    assert len(answer["images"]) == 3
    assert [entry["file"] for entry in answer["skipped"]] == ["photos/broken.png", "photos/cut.png", "gone.png"]
    assert "skipped gone.png: there is no such file" in said.err
    assert "3 of 6 images skipped" in said.err


def test_only_unreadable_images_are_status_1_and_no_prediction(here, capsys):
    (here / "x.png").write_text("")
    assert main(["predict", "x.png", "--model", "small"]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["photos", "--model", "none.safetensors"], "There is no none.json"),
        (["photos", "--model", "none.onnx"], "There is no none.onnx"),
        (["photos", "--model", "small.pt2"], "is a torch.export program"),
        (["photos", "--model", "text.onnx"], "cannot run text.onnx"),
        (["photos", "--model", "small", "--top", "0"], "--top is 0"),
        (["empty", "--model", "small"], "holds no images; expected files ending in"),
        (["photos", "--model", "blind"], "mean [] and std []; expected three numbers each"),
    ],
)
def test_a_mistake_is_told_with_status_2(here, capsys, words, part):
    (here / "text.onnx").write_text("no model")
    (here / "empty").mkdir()
    write_student(here / "blind", name="tiny", mean=[], std=[])
    assert main(["predict", *words]) == 2
    assert part in capsys.readouterr().err


def test_a_folder_of_several_batches_is_predicted_whole_and_in_order(here, capsys, monkeypatch):
    monkeypatch.setattr(pictures, "batch_of", lambda card: 2)
    assert main(["predict", "photos", "--model", "small"]) == 0
    assert [line.partition(":")[0][-8:] for line in capsys.readouterr().out.splitlines()] == [
        "os/a.png",
        "lear.png",
        "grey.jpg",
    ]


def test_an_onnx_file_carries_its_card_and_a_foreign_one_is_refused(here, capsys):
    import onnx

    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    verified.verified_export(*students.load("small"), here / "small.onnx", "onnx", pixels)
    assert main(["predict", "photos", "--model", "small.onnx"]) == 0
    by_file = capsys.readouterr().out
    assert main(["predict", "photos", "--model", "small"]) == 0
    assert by_file == capsys.readouterr().out
    model = onnx.load("small.onnx")
    card = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps({**card, "class_names": ["a", "b"]})
    onnx.save(model, "names.onnx")
    assert main(["predict", "photos", "--model", "names.onnx"]) == 2
    assert "gives 10 logits, its card speaks of 10 classes and 2 names" in capsys.readouterr().err
    del model.metadata_props[:]
    onnx.save(model, "foreign.onnx")
    assert main(["predict", "photos", "--model", "foreign.onnx"]) == 2
    assert "has no card" in capsys.readouterr().err


# ---- pictures ----


def test_an_image_of_another_size_is_squeezed_and_imagenets_middle_is_cut_out(tmp_path):
    """Left half black, right half white, 64 x 32. Squeezed to 32 x 32 both halves stay; the cut of the middle, too."""
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, 32:] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    squeezed = pictures.read(tmp_path / "wide.png", CARD)
    assert squeezed.shape == (32, 32, 3)
    assert (squeezed[:, :14] == 0).all()
    assert (squeezed[:, 18:] == 255).all()
    pixels[:, 8:56] = 128  # only the outer eighths keep their black and white
    Image.fromarray(pixels).save(tmp_path / "outer.png")
    cut = pictures.read(tmp_path / "outer.png", {**CARD, "dataset": "imagenet"})
    assert (cut == 128).all()
    assert set(np.unique(pictures.read(tmp_path / "outer.png", CARD))) > {0, 128, 255}


def test_the_middle_is_cut_as_torchvision_does_it(tmp_path):
    from torchvision import transforms

    pixels = np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    wanted = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(Image.open(tmp_path / "x.png"))
    got = pictures.read(tmp_path / "x.png", {**CARD, "dataset": "imagenet", "image_size": 224})
    assert np.array_equal(got, np.asarray(wanted))


def test_a_card_without_normalisation_is_refused():
    with pytest.raises(PluginError, match="Write them into the card"):
        pictures.normalisation_of({"mean": None, "std": [0.5, 0.5, 0.5]})
