"""The embedded host against the recorded figures of mdistiller: names, shapes, numbers, and checkpoints both ways.

Needs tests/contracts/mdistiller.json only. Where MDISTILLER_PATH names a checkout of mdistiller, the two hosts are also
compared directly, in a process of their own so that nothing else here can see that mdistiller is importable.
"""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from recorded import assert_close, fill, image, labels, load_contract

from atsc_plugin.errors import PluginError
from atsc_plugin.minidistiller.distillers import distiller_dict
from atsc_plugin.minidistiller.engine import cfg as cfg_module
from atsc_plugin.minidistiller.engine import trainer_dict
from atsc_plugin.minidistiller.models import cifar_model_dict, imagenet_model_dict, tiny_imagenet_model_dict

ROOT = Path(__file__).resolve().parents[1]
CIFAR_MODELS = load_contract()["registries"]["cifar_models"]
MODELS = load_contract()["models"]
UNUSABLE = [name for name, recorded in MODELS.items() if "fails_upstream" in recorded]
LARGE_MODELS = [name for name in MODELS if "/" in name and name not in UNUSABLE]
LOSSES = load_contract()["distiller_losses_epoch10"]
OUR_LOSSES = [name for name in LOSSES if name.split()[0] in distiller_dict]
FEATURES = ("feats", "preact_feats")


def constructor_of(name, cifar, tiny_imagenet, imagenet):
    """Of "tiny_imagenet/...", "imagenet/..." or a bare CIFAR name, from the three tables of a host."""
    dataset, _, short = name.rpartition("/")
    if dataset == "imagenet":
        return partial(imagenet[short], pretrained=False)
    table, classes = (tiny_imagenet, 200) if dataset else (cifar, 100)
    return partial(table[short][0], num_classes=classes)


def construct(name):
    """The network without numbers: drawing weights that `fill` overwrites takes as long as the rest."""
    with torch.device("meta"):
        return constructor_of(name, cifar_model_dict, tiny_imagenet_model_dict, imagenet_model_dict)()


def build(name, salt=0):
    return fill(construct(name).to_empty(device="cpu"), salt)


def batch_for(name, count=2):
    """Images of the size that the figures were recorded at; one alone of ImageNet's, which cost seconds."""
    dataset = name.rpartition("/")[0]
    return image(1, 224) if dataset == "imagenet" else image(count, 64 if dataset else 32)


def fresh_cfg():
    """The tree as the file makes it: the process's own CFG gets new nodes when the plugin registers itself."""
    spec = importlib.util.spec_from_file_location(f"{cfg_module.__package__}.fresh_cfg", cfg_module.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CFG


@cache
def answer(name):
    with torch.no_grad():
        return build(name).eval()(batch_for(name))


@pytest.mark.parametrize("name", CIFAR_MODELS)
def test_a_model_has_the_recorded_parameters_in_the_recorded_order(name):
    recorded = load_contract()["models"][name]
    model = construct(name)
    assert [(key, list(value.shape)) for key, value in model.state_dict().items()] == list(
        recorded["state_dict"].items()
    )
    assert [key for key, _ in model.named_parameters()] == recorded["named_parameters_order"]
    assert sum(parameter.numel() for parameter in model.parameters()) == recorded["parameters"]


@pytest.mark.parametrize("name", CIFAR_MODELS)
def test_a_model_computes_the_recorded_logits_and_features(name):
    recorded = load_contract()["models"][name]
    logits, features = answer(name)
    assert_close(logits, recorded["logits"])
    assert_close(features["pooled_feat"], recorded["pooled_feat"])
    assert set(features) == {"pooled_feat", *(key for key in FEATURES if recorded[key])}
    for key in FEATURES:
        assert len(features.get(key, [])) == len(recorded[key])
        for found, figures in zip(features.get(key, []), recorded[key], strict=True):
            assert_close(found, figures)


@pytest.mark.parametrize("name", LARGE_MODELS)
def test_a_larger_model_computes_the_recorded_logits_and_features(name):
    recorded = MODELS[name]
    assert sum(parameter.numel() for parameter in construct(name).parameters()) == recorded["parameters"]
    logits, features = answer(name)
    assert_close(logits, recorded["logits"])
    assert len(features["feats"]) == len(recorded["feats"])
    for found, figures in zip(features["feats"], recorded["feats"], strict=True):
        assert_close(found, figures)
    # What the record leaves out follows from what it holds.
    pooled = features["feats"][-1].mean((2, 3))
    assert torch.allclose(features["pooled_feat"].flatten(1), pooled, rtol=1e-12, atol=0)
    if name == "tiny_imagenet/MobileNetV2":
        assert set(features) == {"feats", "pooled_feat"}
        return
    assert all(before.min() < 0 for before in features["preact_feats"][1:])
    for found, before in zip(features["feats"], features["preact_feats"], strict=True):
        assert torch.equal(found, before.clamp_min(0))


def test_a_model_that_fails_in_mdistiller_is_refused_by_name_with_the_reason():
    assert UNUSABLE == ["tiny_imagenet/ShuffleV2"]
    assert "2x4096 and 1024x200" in MODELS[UNUSABLE[0]]["fails_upstream"]
    with pytest.raises(PluginError, match=r"ShuffleV2.*cannot be used at 64 pixels.*4096.*1024.*Take MobileNetV2"):
        construct(UNUSABLE[0])


def test_mobilenet_alone_has_no_preactivation_maps():
    assert [name for name in CIFAR_MODELS if "preact_feats" not in answer(name)[1]] == ["MobileNetV2"]


def test_vgg_halves_a_64_pixel_image_once_more_than_a_32_pixel_one():
    model = build("vgg8").eval()
    sides = {size: [m.shape[-1] for m in model(image(1, size))[1]["feats"]] for size in (32, 64)}
    assert sides == {32: [32, 16, 8, 4, 4], 64: [64, 32, 16, 8, 4]}


@pytest.mark.parametrize("name", OUR_LOSSES)
def test_a_distiller_computes_the_recorded_losses(name):
    recorded = LOSSES[name]
    key, pair = name.split()
    teacher, student = pair.split("->")
    distiller = distiller_dict[key](build(student, salt=1), build(teacher, salt=0), fresh_cfg())
    if key == "REVIEWKD":
        fill(distiller.abfs, salt=2)
    distiller.train()
    logits, losses = distiller(image=image(8), target=labels(8), epoch=10)
    assert_close(logits, recorded["logits"])
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(recorded["losses"], rel=1e-9)
    assert distiller.get_extra_parameters() == recorded["extra_parameters"]
    learnable = sum(parameter.numel() for parameter in distiller.get_learnable_parameters())
    assert learnable == sum(p.numel() for p in distiller.student.parameters()) + recorded["extra_parameters"]


def test_all_recorded_losses_of_our_methods_were_compared():
    assert {name.split()[0] for name in OUR_LOSSES} == {"KD", "DKD", "REVIEWKD"}
    assert len(OUR_LOSSES) == 5


def typed(tree):
    """Every leaf with its type; JSON has no tuples, so they count as lists."""
    if isinstance(tree, dict):
        return {key: typed(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [typed(value) for value in tree]
    return type(tree).__name__, tree


def test_the_config_defaults_are_the_recorded_ones_but_for_wandb():
    expected = copy.deepcopy(load_contract()["cfg_defaults"])
    assert expected["LOG"]["WANDB"] is True
    expected["LOG"]["WANDB"] = False
    assert typed(fresh_cfg()) == typed(expected)


def test_the_registries_hold_recorded_names_only():
    recorded = load_contract()["registries"]
    assert list(cifar_model_dict) == recorded["cifar_models"]
    assert len(cifar_model_dict) == 23
    assert list(tiny_imagenet_model_dict) == recorded["tiny_imagenet_models"]
    assert list(imagenet_model_dict) == recorded["imagenet_models"]
    for registry, key in ((distiller_dict, "distillers"), (trainer_dict, "trainers")):
        # The plugin, once registered in this process, adds classes of its own: those are not the host's.
        own = {name for name, entry in registry.items() if entry.__module__.startswith("atsc_plugin.minidistiller")}
        assert own
        assert own <= set(recorded[key])


def test_teacher_checkpoints_are_looked_for_at_the_recorded_places():
    found = {name: path for name, (_, path) in cifar_model_dict.items() if path}
    assert found == {name: str(ROOT / path) for name, path in load_contract()["teacher_checkpoints"].items()}
    found = {name: path for name, (_, path) in tiny_imagenet_model_dict.items() if path}
    assert found == {"ResNet18": str(ROOT / "download_ckpts/tiny_imagenet_teachers/ResNet18_vanilla/ti_res18")}


def same(ours, theirs):
    """Largest difference over two nested answers or state_dicts, relative to the largest value."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        return max(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return max(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300)).item()


def compare_with_mdistiller(name, their_constructor):
    """What is wrong, "" if nothing: states both ways, then a training forward and the statistics it leaves behind."""
    ours, theirs = build(name), their_constructor().double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    worst = same(ours.train()(batch_for(name, 4)), theirs.train()(batch_for(name, 4)))
    worst = max(worst, same(ours.state_dict(), theirs.state_dict()))
    return "" if worst < 1e-9 else f"differs by {worst:.2g}"


@pytest.fixture(scope="module")
def comparison():
    checkout = os.environ.get("MDISTILLER_PATH")
    if not checkout:
        pytest.skip("set MDISTILLER_PATH to a checkout of mdistiller to compare the two hosts directly")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), checkout])}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [*CIFAR_MODELS, *LARGE_MODELS])
def test_states_and_training_forwards_agree_with_an_installed_mdistiller(name, comparison):
    assert comparison[name] == ""


if __name__ == "__main__":
    from mdistiller import models

    tables = models.cifar_model_dict, models.tiny_imagenet_model_dict, models.imagenet_model_dict
    names = [*CIFAR_MODELS, *LARGE_MODELS]
    print(json.dumps({name: compare_with_mdistiller(name, constructor_of(name, *tables)) for name in names}))
