"""`teachers --fine-tune`: weights of other classes get a new head, are kept by their hash, and are found by runs."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from small_runs import QUICK, SMALL, TINY, refused, run_folder, tiny
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin import teachers
from atsc_plugin.__main__ import main
from atsc_plugin.engine import checkpoint
from atsc_plugin.engine.optim import set_learning_rate
from atsc_plugin.engine.step import Step
from atsc_plugin.errors import PluginError, same_arguments
from atsc_plugin.host import CFG
from atsc_plugin.networks import named

SEVEN = ["DISTILLER.TEACHER_CKPT", "seven.pth"]


@pytest.fixture
def seven(here, tiny_networks):
    """A `tiny_teacher` of seven classes in the working directory; the data have 100."""
    torch.manual_seed(3)
    network = TinyNet(7, width=8)
    torch.save({"model": network.state_dict()}, here / "seven.pth")
    return network


def fine_tune(*words, method="kd"):
    command = ["teachers", "--fine-tune", "--cfg", str(QUICK / f"{method}.yaml"), *TINY, *SMALL]
    return main([*command, "TEACHER.FINE_TUNE_EPOCHS", "1", *words])


def kept(here):
    return sorted((here / "output" / "teachers").glob("*.pth"))


def config(*pairs):
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "tiny_teacher", *SEVEN, *pairs])
    return cfg


# ---- the head ----


def test_a_head_of_others_is_all_that_differs_by_the_number_of_classes_alone():
    own = TinyNet(10)
    assert checkpoint.head_of_others(own, TinyNet(7).state_dict()) == (["fc.weight", "fc.bias"], 7)
    assert checkpoint.head_of_others(own, TinyNet(10).state_dict()) == ([], None)
    assert checkpoint.head_of_others(own, TinyNet(7, width=5).state_dict()) == ([], None)
    assert checkpoint.head_of_others(own, {**TinyNet(7).state_dict(), "more": torch.ones(1)}) == ([], None)


def test_a_new_head_is_left_as_it_was_drawn_and_the_rest_is_filled():
    own, other = TinyNet(10), TinyNet(7)
    drawn = own.fc.weight.clone()
    assert checkpoint.fill(own, other.state_dict(), "seven", "tiny", 10, new_head=True) == ["fc.weight", "fc.bias"]
    assert torch.equal(own.fc.weight, drawn) and torch.equal(own.conv.weight, other.conv.weight)
    with pytest.raises(PluginError, match="seven holds a tiny for 7 classes; the data have 10"):
        checkpoint.fill(own, other.state_dict(), "seven", "tiny", 10)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_the_trunk_learns_at_its_share_of_the_rate_and_rests_at_none(scale):
    network, (images, target) = TinyNet(), batch()
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    distiller = teachers.FineTuning(network, ["fc.weight", "fc.bias"], scale)
    cfg = config("SOLVER.MOMENTUM", 0.0, "SOLVER.WEIGHT_DECAY", 0.0)
    step = Step(distiller.train(), cfg)
    set_learning_rate(step.optimizer, 0.2)
    step({"image": images, "target": target, "epoch": 1})
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    torch.testing.assert_close(network.fc.weight, start["fc.weight"] - 0.2 * gradients["fc.weight"])
    if scale:
        torch.testing.assert_close(network.conv.weight, start["conv.weight"] - 0.1 * gradients["conv.weight"])
        assert not torch.equal(network.bn.running_mean, start["bn.running_mean"])
    else:
        assert gradients["conv.weight"] is None
        assert all(torch.equal(network.state_dict()[name], start[name]) for name in start if "fc" not in name)


def test_its_epochs_and_the_stages_of_its_rate_are_those_of_a_teacher_shrunk():
    node = teachers.fine_tuning(config()).TEACHER  # 240 epochs with stages 150, 180, 210
    assert (node.EPOCHS, node.LR_DECAY_STAGES) == (10, [6, 8, 9])  # 6.25, 7.5, 8.75


# ---- the command, and runs that find what it left ----


def test_a_teacher_of_other_classes_is_refused_with_the_command_that_a_run_then_takes(here, seven, capsys, monkeypatch):
    argv = ["/x/atsc_plugin/__main__.py", "train", "--dry-run", "--cfg", str(QUICK / "kd.yaml"), *TINY, *SEVEN]
    monkeypatch.setattr(sys, "argv", argv)
    said = refused(capsys, tiny("kd", *SEVEN), "tiny_teacher tells 7 classes apart, the data 100, and KD uses its")
    assert "Name weights of 100 classes; or give these a new head, trained for" in said.err
    command = said.err.splitlines()[1].split("atsc_plugin ")[1].split()
    assert command == ["teachers", "--fine-tune", *argv[3:]]
    assert main([*command, "TEACHER.FINE_TUNE_EPOCHS", "1", *SMALL]) == 0
    assert "fine-tuning seven.pth for 1 epochs" in capsys.readouterr().out
    (file,) = kept(here)
    assert file.name.startswith("tiny_teacher-digits100-fine-tuned-1ep-")
    assert tiny("kd", *SEVEN, "TEACHER.FINE_TUNE_EPOCHS", "1") == 0
    about = json.loads((run_folder(here) / "about.json").read_text())
    assert about["teacher_from"].endswith("(seven.pth; fine-tuned here for 1 epochs)")
    model = checkpoint.load(run_folder(here) / "latest")["model"]
    left = checkpoint.load(file)["model"]
    assert all(torch.equal(model[f"teacher.{name}"], tensor) for name, tensor in left.items())


def test_what_is_kept_follows_from_the_weights_and_is_not_trained_twice(here, seven, capsys):
    assert fine_tune(*SEVEN, "TEACHER.FINE_TUNE_LR_SCALE", "0.0") == 0
    (first,) = kept(here)
    trunk = checkpoint.load(first)["model"]
    assert all(torch.equal(trunk[name], tensor) for name, tensor in seven.state_dict().items() if "fc" not in name)
    capsys.readouterr()
    assert fine_tune(*SEVEN, "TEACHER.FINE_TUNE_LR_SCALE", "0.0") == 0
    assert "epoch 1/1" not in capsys.readouterr().out
    with torch.no_grad():
        seven.conv.weight += 0.1
    torch.save({"model": seven.state_dict()}, here / "seven.pth")
    assert fine_tune(*SEVEN, "TEACHER.FINE_TUNE_LR_SCALE", "0.0") == 0
    assert len(kept(here)) == 2


@pytest.mark.parametrize("words", [[], ["DISTILLER.TEACHER_CKPT", "own.pth"]])
def test_a_teacher_of_these_classes_or_none_is_not_fine_tuned(here, tiny_networks, capsys, words):
    torch.save({"model": TinyNet(100, width=8).state_dict()}, here / "own.pth")
    status = fine_tune(*words)
    if words:
        assert status == 0 and "own.pth" in capsys.readouterr().out
    else:
        refused(capsys, status, "--fine-tune starts from weights; got none")
    assert kept(here) == []


def test_a_method_that_uses_no_logits_takes_the_weights_as_they_are(here, seven):
    cfg, data = config("DISTILLER.TYPE", "REVIEWKD"), SimpleNamespace(name="toy", identity="toy-1", classes=10)
    network = TinyNet(10, width=8)
    source = teachers.find(cfg, data, network)
    assert source.text == "seven.pth, which tells 7 other classes apart"
    teachers.load(source, cfg, network, data, None)
    assert torch.equal(network.conv.weight, seven.conv.weight)


def test_a_librarys_weights_of_fewer_classes_have_a_head_of_the_datas_where_no_logits_are_used(monkeypatch, capsys):
    """Its top-1 is measured in every run, and a label beyond its classes would end that in a traceback."""
    name = "torchvision/shufflenet_v2_x0_5"
    from torchvision.models import get_model

    there = get_model("shufflenet_v2_x0_5", num_classes=7)
    weights = named.Weights("their weights", 7, 40, [0.2] * 3, [0.5] * 3, lambda: there, "fetch")
    monkeypatch.setattr(named, "weights_of", lambda name: weights)
    cfg = config("DISTILLER.TYPE", "REVIEWKD", "DISTILLER.TEACHER", name, "DISTILLER.TEACHER_PRETRAINED", True)
    cfg.DISTILLER.TEACHER_CKPT, cfg.DATASET.TYPE = "", "npz"
    data = SimpleNamespace(name="toy", identity="toy-1", classes=10, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    network = teachers.new_teacher(cfg, data)
    source = teachers.find(cfg, data, network)
    assert source.text.endswith("which tells 7 other classes apart")
    teachers.load(source, cfg, network, data, None)
    assert network.eval()(torch.zeros(2, 3, 32, 32))[0].shape == (2, 10)
    assert torch.equal(network.network.conv5[0].weight, there.conv5[0].weight)


def test_a_librarys_weights_of_other_classes_are_fine_tuned_in_their_own_view(here, tiny_networks, capsys, monkeypatch):
    name = "torchvision/shufflenet_v2_x0_5"
    from torchvision.models import get_model

    torch.manual_seed(0)
    there = get_model("shufflenet_v2_x0_5", num_classes=7)
    weights = named.Weights("their weights", 7, 40, [0.2] * 3, [0.5] * 3, lambda: there, "fetch")
    monkeypatch.setattr(named, "weights_of", lambda name: weights)
    words = ["DISTILLER.TEACHER", name, "DISTILLER.TEACHER_PRETRAINED", "True", "TEACHER.FINE_TUNE_EPOCHS", "1"]
    refused(capsys, tiny("kd", *words), f"{name} tells 7 classes apart, the data 100, and KD", "their weights, seen at")
    assert fine_tune(*words, "TEACHER.FINE_TUNE_LR_SCALE", "0.0") == 0
    (file,) = kept(here)
    trunk = checkpoint.load(file)["model"]
    start = {f"network.{name}": tensor for name, tensor in there.state_dict().items()}
    assert all(torch.equal(trunk[name], start[name]) for name in start if ".fc." not in name)
    assert trunk["network.fc.weight"].shape == (100, 1024)
    capsys.readouterr()
    assert tiny("kd", *words, "TEACHER.FINE_TUNE_LR_SCALE", "0.0") == 0
    assert "seen at 40 px with mean [0.2, 0.2, 0.2]" in capsys.readouterr().out
    torch.save(there.state_dict(), here / "there.pth")  # the same weights, which then see the images as they are
    plain = ["DISTILLER.TEACHER", name, "DISTILLER.TEACHER_CKPT", "there.pth", *words[4:]]
    refused(capsys, tiny("kd", *plain, "TEACHER.FINE_TUNE_LR_SCALE", "0.0"), "tells 7 classes apart, the data 100")


def test_a_command_line_is_repeated_with_its_file_its_keys_and_what_it_lets_in(monkeypatch):
    words = ["train", "--resume", "A.B", "[x=1, y]", "--cfg", "my file.yaml", "--allow", "nets", "SOLVER.LR", "0.1"]
    monkeypatch.setattr(sys, "argv", ["tools/train.py", *words])
    wanted = "prepare --cfg 'my file.yaml' A.B '[x=1, y]' SOLVER.LR 0.1 --allow nets"
    assert same_arguments("prepare") == f"python -m atsc_plugin {wanted}"
