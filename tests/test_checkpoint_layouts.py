"""Files of other tools: their layouts load as networks, or are refused by what they are."""

import argparse

import pytest
import torch
from deploy_files import student, write_student
from tiny import TinyNet

from atsc_plugin.engine import checkpoint
from atsc_plugin.errors import PluginError
from atsc_plugin.host import cifar_model_dict, imagenet_model_dict


def tiny_state(value):
    """A TinyNet's state, every entry `value`: to be told from another one."""
    return {name: torch.full_like(tensor, value) for name, tensor in TinyNet().state_dict().items()}


def saved(path, content):
    torch.save(content, path)
    return path


OPTIONS = argparse.Namespace(model="resnet32x4", lr=0.05, lr_decay_epochs=[150, 180, 210], trial="0")


@pytest.mark.parametrize(
    "content",
    [
        {"opt": OPTIONS, "model": tiny_state(2)},
        {"epoch": 240, "model": tiny_state(2), "best_acc": torch.tensor(79.4), "optimizer": {"state": {}}},
        {"epoch": 3, "arch": "tiny", "state_dict": tiny_state(2), "args": OPTIONS, "version": 2, "metric": 71.0},
        {"state_dict": tiny_state(1), "state_dict_ema": tiny_state(2), "arch": "tiny"},
        {"model": tiny_state(1), "model_ema": {f"module.{name}": t for name, t in tiny_state(2).items()}},
        {"model": {f"_orig_mod.{name}": tensor for name, tensor in tiny_state(2).items()}},
        {"model": {f"module._orig_mod.{name}": tensor for name, tensor in tiny_state(2).items()}},
        {
            "model": {f"module.student.{k}": v for k, v in tiny_state(2).items()}
            | {"module.abfs.0.conv1": torch.ones(1)}
        },
    ],
    ids=[
        "RepDistiller's last, with its options",
        "RepDistiller's and SimKD's best",
        "timm",
        "timm with EMA",
        "torchvision's references with EMA",
        "compiled",
        "compiled under DataParallel",
        "a whole ReviewKD distiller",
    ],
)
def test_a_tools_layout_gives_its_network(tmp_path, content):
    checkpoint.load_network(filled := TinyNet(), saved(tmp_path / "x.pth", content), "tiny", 10)
    assert all((tensor == 2).all() for tensor in filled.state_dict().values())


def test_timms_resnet_names_are_torchvisions_and_fill_ours(tmp_path):
    """timm's resnet18 has torchvision's parameter names: conv1, bn1, layer1.0.conv1, ..., fc."""
    from torchvision.models import resnet18

    theirs = resnet18()
    path = saved(tmp_path / "timm.pth", {"arch": "resnet18", "state_dict": theirs.state_dict()})
    ours = imagenet_model_dict["ResNet18"](pretrained=False).eval()
    checkpoint.load_network(ours, path, "ResNet18", 1000)
    image = torch.randn(1, 3, 64, 64)
    assert torch.allclose(ours(image)[0], theirs.eval()(image), atol=1e-5)


def test_safetensors_of_a_bare_network_fill_it(tmp_path):
    checkpoint.save_tensors(tiny_state(2), tmp_path / "hub", {})
    checkpoint.load_network(filled := TinyNet(), tmp_path / "hub.safetensors", "tiny", 10)
    assert (filled.fc.weight == 2).all()


def test_a_misfit_says_what_the_file_calls_its_network(tmp_path):
    network = cifar_model_dict["resnet8"][0](num_classes=10)
    for content in ({"opt": OPTIONS, "model": tiny_state(1)}, {"arch": "resnet32x4", "state_dict": tiny_state(1)}):
        path = saved(tmp_path / "x.pth", content)
        with pytest.raises(PluginError, match="does not fit a resnet8: .* The file says that it is a resnet32x4. Name"):
            checkpoint.load_network(network, path, "resnet8", 10)


# ---- students without a head of their own ----


def test_a_student_of_simkds_released_code_is_refused_by_name(tmp_path):
    path = saved(
        tmp_path / "simkd.pth", {"epoch": 240, "model": tiny_state(1), "proj": {"transfer.0.weight": torch.ones(1)}}
    )
    with pytest.raises(PluginError, match="student of SimKD's released code: .*under 'proj'"):
        checkpoint.load_network(TinyNet(), path, "tiny", 10)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("projector", ["projector.0.weight", "projector.1.0.weight"])
def test_a_whole_distiller_with_a_shared_classifier_is_refused_as_a_network(tmp_path, prefix, projector):
    state = {f"{prefix}student.{name}": tensor for name, tensor in tiny_state(1).items()}
    path = saved(tmp_path / "latest", {"model": {**state, f"{prefix}{projector}": torch.ones(1)}})
    with pytest.raises(PluginError, match="its own head was never trained. Use its deploy_"):
        checkpoint.load_network(TinyNet(), path, "tiny", 10)


def test_a_plain_deployed_student_is_a_network_and_one_with_a_head_is_not(tmp_path):
    write_student(tmp_path / "plain", heads=0)
    filled = cifar_model_dict["resnet8"][0](num_classes=10)
    checkpoint.load_network(filled, tmp_path / "plain.safetensors", "resnet8", 10)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(filled.eval()(image)[0], student(heads=0)(image))
    write_student(tmp_path / "shared")
    with pytest.raises(PluginError, match="predicts through a projector"):
        checkpoint.load_network(filled, tmp_path / "shared.safetensors", "resnet8", 10)
