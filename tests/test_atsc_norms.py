"""ATSC's teachers without BN: what the monitor says of them, what affine_frozen freezes, what the drift term holds."""

import pytest
import torch
from runs import without_bn
from small_atsc import RELEASED, atsc_config
from tiny import TinyNet, batch

from atsc_plugin.errors import ModelRefused
from atsc_plugin.methods.atsc import ATSC
from atsc_plugin.networks import named

SMALL = {
    "timm/test_vit": ["depth=1", "init_values=0.1"],  # init_values: with layer scales
    "timm/test_convnext": ["depths=[1,1,1,1]", "dims=[8,8,8,12]"],
}


def atsc_of(name, *overrides):
    pytest.importorskip("timm")
    cfg = atsc_config("DISTILLER.TEACHER", name, *overrides)
    torch.manual_seed(0)
    distiller = ATSC(TinyNet(), named.new_network("npz", name, 10, 32, SMALL[name]), cfg)
    distiller.begin()
    return distiller


@pytest.mark.parametrize("recipe", [[], RELEASED], ids=["default", "released"])
@pytest.mark.parametrize("name", SMALL)
def test_the_monitor_measures_a_teacher_of_layer_norms_and_calls_its_collapse(name, recipe):
    distiller, (images, target) = atsc_of(name, *recipe), batch(20)
    sum(distiller.train()(image=images, target=target, epoch=1)[1].values()).backward()
    target = distiller.eval().teacher(images)[0].argmax(1)  # theta_0 is right on all of them
    loader = [(images, target)]
    report = distiller.after_epoch(1, loader)
    assert (report.figures["teacher_top1"], report.figures["teacher_agreement"]) == (100.0, 1.0)
    assert report.figures["feature_scale"] == pytest.approx(1.0) and report.figures["drift_vectors"] == 0.0
    assert report.warning is None
    with torch.no_grad():
        list(distiller.teacher.parameters())[-1].copy_(torch.tensor([50.0] + [0.0] * 9))  # one class for all images
    report = distiller.after_epoch(2, loader)
    assert report.warning.startswith("the teacher has collapsed: teacher top-1 ")
    assert report.figures["feature_scale"] == pytest.approx(1.0)  # nothing shrank


@pytest.mark.parametrize("name", SMALL)
def test_affine_frozen_freezes_the_scales_and_shifts_of_layer_norms_and_layer_scales(name):
    distiller = atsc_of(name, "ATSC.TEACHER.BN", "affine_frozen")
    frozen = {name for name, parameter in distiller.teacher.named_parameters() if not parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in frozen} <= {"weight", "bias", "gamma"}
    assert any("gamma" in name for name in frozen) and any("norm" in name for name in frozen)
    learning = {name: p for name, p in distiller.teacher.named_parameters() if name not in frozen}
    assert all(parameter.dim() > 1 or name.endswith("bias") for name, parameter in learning.items())
    assert all(f"{name.removesuffix('bias')}weight" in learning for name, p in learning.items() if p.dim() == 1)
    assert not distiller.held[0].keys() & frozen  # what does not move needs no drift term


def test_affine_frozen_on_a_teacher_without_any_norm_is_refused_by_name():
    cfg = atsc_config("DISTILLER.TEACHER", "bare", "ATSC.TEACHER.BN", "affine_frozen")
    with pytest.raises(ModelRefused, match="affine_frozen, but teacher bare has no layer of scales and shifts"):
        ATSC(TinyNet(), without_bn(TinyNet()), cfg)


def test_the_drift_term_on_kernels_leaves_norms_layer_scales_and_biases_and_holds_tokens():
    distiller = atsc_of("timm/test_vit", "ATSC.DRIFT.PARAMS", "kernels")
    held = {name.removeprefix("network.") for name in distiller.held[0]}
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight"} <= held
    assert not [name for name in held if "norm" in name or "gamma" in name or name.endswith("bias")]
    assert len(atsc_of("timm/test_vit").held[0]) == len(list(distiller.teacher.parameters()))
