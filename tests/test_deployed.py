"""The student that leaves a run: its heads, their ensemble, and the way to the files and back."""

import json

import pytest
import torch
from tiny import TinyNet, batch
from torch import nn

from atsc_plugin import students
from atsc_plugin.engine import checkpoint
from atsc_plugin.errors import PluginError
from atsc_plugin.host import cifar_model_dict
from atsc_plugin.networks.deployed import DeployedStudent, Head, ensemble_of, tensors_of
from atsc_plugin.networks.maps import FEATS
from atsc_plugin.networks.projector import Projector

Z = [torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 1.0]])]


def test_logits_are_averaged_and_one_alone_is_left_as_it_is():
    assert ensemble_of(Z, "logits").tolist() == [[2.0, 1.5]]
    for rule in ("logits", "probs"):
        assert ensemble_of(Z[:1], rule) is Z[0]


def test_probabilities_are_averaged_and_come_back_as_logarithms():
    first, second = torch.tensor([0.0, 2.0]).exp(), torch.tensor([4.0, 1.0]).exp()
    wanted = (first / first.sum() + second / second.sum()) / 2
    torch.testing.assert_close(ensemble_of(Z, "probs").exp(), wanted[None])


def several_heads(classes=10, ensemble="logits"):
    """A resnet8 with three heads of two widths, the third behind the first one's classifier."""
    torch.manual_seed(0)
    backbone = cifar_model_dict["resnet8"][0](num_classes=classes)
    one, two = nn.Linear(12, classes), nn.Linear(20, classes)
    heads = [Head(8, Projector(64, 6, 12), one), Head(4, Projector(64, 5, 20), two), Head(8, Projector(64, 3, 12), one)]
    return DeployedStudent(backbone, FEATS, heads, ensemble, unused=["fc"]).eval()


@pytest.mark.parametrize("ensemble", ["logits", "probs"])
def test_several_heads_predict_the_ensemble_of_each_alone_with_one_pass_of_the_backbone(ensemble):
    module = several_heads(ensemble=ensemble)
    images, _ = batch(3)
    passes = []
    module.backbone.conv1.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        got = module(images)
        assert len(passes) == 1
        alone = [DeployedStudent(module.backbone, FEATS, [head])(images) for head in module.heads()]
    assert len(alone) == 3
    assert torch.equal(got, ensemble_of(alone, ensemble))


@pytest.mark.parametrize("ensemble", ["logits", "probs"])
def test_several_heads_go_to_their_files_and_come_back_bit_for_bit_with_a_shared_classifier_once(tmp_path, ensemble):
    module = several_heads(ensemble=ensemble)
    names = {name.split(".")[0] for name in tensors_of(module)}
    assert names == {"backbone", "projector", "classifier", "projector_2", "classifier_2", "projector_3"}
    card = {"dataset": "cifar100", "student": "resnet8", "classes": 10, **module.facts()}
    checkpoint.save_tensors(tensors_of(module), tmp_path / "deploy_last", card)
    again, read = students.load(tmp_path / "deploy_last")
    assert [head["classifier"] for head in read["heads"]] == [0, 1, 0]
    images, _ = batch(3)
    with torch.no_grad():
        assert torch.equal(again(images), module(images))
    held = sum(p.numel() for p in again.parameters())
    assert held == sum(t.numel() for n, t in tensors_of(module).items() if "running" not in n and "num_" not in n)


def test_a_plain_student_has_no_heads():
    images, _ = batch(2)
    network = TinyNet().eval()
    module = DeployedStudent(network)
    assert module.facts()["heads"] == []
    assert torch.equal(module(images), network(images)[0])


def test_a_card_whose_head_points_to_a_classifier_that_is_not_there_is_told(tmp_path):
    module = several_heads()
    card = {"dataset": "cifar100", "student": "resnet8", "classes": 10, **module.facts()}
    card["heads"][0]["classifier"] = 7
    checkpoint.save_tensors(tensors_of(module), tmp_path / "d", card)
    with pytest.raises(PluginError, match="head 0: classifier is 7, expected 0 or an earlier head with its own"):
        students.load(tmp_path / "d")


@pytest.mark.parametrize("change", [{"heads": None}, {"unused": ["no.such.layer"]}, {"classes": "ten"}, None])
def test_a_card_of_the_wrong_shape_is_told(tmp_path, change):
    module = several_heads()
    card = {"dataset": "cifar100", "student": "resnet8", "classes": 10, **module.facts()}
    checkpoint.save_tensors(tensors_of(module), tmp_path / "d", card)
    (tmp_path / "d.json").write_text(json.dumps([] if change is None else {**card, **change}))
    with pytest.raises(PluginError, match="d.json is no card .*expected one written by a run"):
        students.load(tmp_path / "d")
