"""The card of a deployed student: one schema for every file; sizes are refused before memory is asked for."""

import json

import numpy as np
import pytest
import torch
from deploy_files import card_of, write_student
from hostile import onnx_student, output_of, time_limit
from PIL import Image

from atsc_plugin import cards, students
from atsc_plugin.engine import checkpoint
from atsc_plugin.errors import PluginError

HEAD = {"map_place": "feats", "map_relu": False, "map_size": 8, "channels_in": 64, "channels_inner": 8,
        "channels_out": 24, "classifier": 0}  # fmt: skip
WRONG = [
    ({"image_size": 0}, "image_size is 0, expected a whole number from 1 to 2,048"),
    ({"image_size": -5}, "image_size is -5"),
    ({"image_size": 50_000}, "image_size is 50000"),
    ({"image_size": True}, "image_size is True"),
    ({"classes": 10**9}, "classes is 1000000000, expected a whole number from 1 to 100,000"),
    ({"classes": "ten"}, "classes is 'ten'"),
    ({"mean": "text"}, "mean is 'text', expected three numbers"),
    ({"mean": [float("nan")] * 3}, r"mean is \[nan, nan, nan\]"),
    ({"mean": [0.5, 0.5]}, r"mean is \[0.5, 0.5\]"),
    ({"std": [0.0, 0.2, 0.2]}, r"std is \[0.0, 0.2, 0.2\], expected three numbers, each from 1e-06 to 1000"),
    ({"std": [1e-300] * 3}, "std is"),
    ({"class_names": "abcdefghij"}, "class_names is 'abcdefghij', expected a list"),
    ({"class_names": [1] * 10}, "class_names is"),
    ({"student": None}, "student is None"),
    ({"dataset": ["npz"]}, "dataset is"),
]
WRONG_HEADS = [
    ({"map_size": 0}, "head 0: map_size is 0"),
    ({"map_size": -3}, "head 0: map_size is -3"),
    ({"map_size": "x"}, "head 0: map_size is 'x', expected a whole number from 1 to 2,048"),
    ({"map_place": 5}, "head 0: map_place is 5"),
    ({"map_relu": 1}, "head 0: map_relu is 1, expected true or false"),
    ({"classifier": 1}, "head 0: classifier is 1, expected 0"),
    ({"channels_inner": 10**6}, "head 0: channels_inner is 1000000"),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("good.png")
    return tmp_path


def predict(model):
    with time_limit():
        return output_of(["predict", "good.png", "--model", model])


def test_a_card_that_a_run_wrote_is_right():
    card = card_of(heads=[HEAD, {**HEAD, "classifier": 0}, {**HEAD, "classifier": 2}])
    assert cards.checked(card, "c.json", cards.TO_BUILD) == card


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_wrong_field_is_told_by_its_name(changes, message):
    with pytest.raises(
        PluginError, match=f"c.json is no card of a deployed student .*{message}.*; expected one written"
    ):
        cards.checked(card_of(**changes), "c.json", cards.TO_BUILD)


@pytest.mark.parametrize(("changes", "message"), WRONG_HEADS)
def test_a_wrong_head_is_told_by_its_number(changes, message):
    with pytest.raises(PluginError, match=message):
        cards.checked(card_of(heads=[{**HEAD, **changes}]), "c.json", cards.TO_BUILD)


@pytest.mark.parametrize("content", ["5", "[]", '"x"', "null", "{}", "{", "", '{"a":' * 200_000 + "1" + "}" * 200_000])
def test_a_card_that_is_no_mapping_is_told_in_both_kinds_of_file(here, content):
    write_student(here / "small")
    (here / "small.json").write_text(content)
    onnx_student(here / "small.onnx", content)
    for model in ("small", "small.onnx"):
        status, printed = predict(model)
        assert (status, printed.count("\n")) == (2, 1), printed
        assert "card of a deployed student" in printed


@pytest.mark.parametrize(("changes", "message"), [WRONG[0], WRONG[2], WRONG[4], WRONG[7], WRONG[9]])
def test_an_onnx_file_is_held_to_the_same_card(here, changes, message):
    onnx_student(here / "s.onnx", json.dumps(card_of(**changes)))
    status, printed = predict("s.onnx")
    assert status == 2
    assert changes.popitem()[0] in printed


def test_an_onnx_file_of_other_inputs_is_told(here):
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Neg", ["a"], ["b"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    entry = model.metadata_props.add()
    entry.key, entry.value = "atsc_plugin.card", json.dumps(card_of())
    (here / "s.onnx").write_bytes(model.SerializeToString())
    status, printed = predict("s.onnx")
    assert status == 2
    assert "has 1 inputs and 1 outputs of [1, 1] dimensions; expected one image (4) and its logits (2)" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels_in": 65_000}, r"projector.0.weight is \(8, 64, 1, 1\), expected \(8, 65000, 1, 1\)"),
        ({"channels_inner": 65_000}, r"projector.0.weight is \(8, 64, 1, 1\), expected \(65000, 64, 1, 1\)"),
        ({"channels_out": 65_000}, "projector.6.weight is"),
        ({"map_place": "unknown"}, "a resnet8 has no module 'unknown'"),
        ({"map_place": "conv1"}, "cannot take an image of 32 pixels"),
    ],
)  # fmt: skip
def test_a_head_that_the_tensors_do_not_have_is_told_before_it_is_made(here, changes, message):
    """65,000 channels inside would be 9 x 65,000^2 numbers of 4 bytes: 152 GB."""
    write_student(here / "small")
    card = json.loads((here / "small.json").read_text())
    (here / "small.json").write_text(json.dumps({**card, "heads": [{**card["heads"][0], **changes}]}))
    with pytest.raises(PluginError, match=message):
        students.load(here / "small")


def test_more_classes_than_the_tensors_have_rows_are_told(here):
    write_student(here / "small", heads=0)
    card = json.loads((here / "small.json").read_text())
    (here / "small.json").write_text(json.dumps({**card, "classes": 99_999, "class_names": []}))
    with pytest.raises(PluginError, match="no tensor has 99999 rows, one for each class"):
        students.load(here / "small")


def test_logits_that_are_not_finite_are_told(here):
    write_student(here / "small")
    tensors = checkpoint.load_tensors("small.safetensors")
    tensors["classifier.bias"] = torch.full((10,), np.nan)
    checkpoint.save_tensors(tensors, "small", json.loads((here / "small.json").read_text()))
    status, printed = predict("small")
    assert status == 2
    assert "its logits are not finite" in printed
