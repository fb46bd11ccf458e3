"""SOLVER.AMP: what computes in 16 bits, what stays in 32, what is refused where."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from runs import config, tiny_loader
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin import teachers
from atsc_plugin.engine import precision
from atsc_plugin.engine.batches import layout_of
from atsc_plugin.engine.optim import set_learning_rate
from atsc_plugin.engine.precision import precision_of
from atsc_plugin.engine.step import Step
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import PluginError
from atsc_plugin.host import CFG, distiller_dict
from atsc_plugin.losses import softened_divergence
from atsc_plugin.methods.atsc import ATSC

CPU = torch.device("cpu")


@pytest.fixture
def cfg():
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["SOLVER.TRAINER", "plugin", "SOLVER.AMP", "bf16"])
    return cfg


def inputs(seed=0):
    image, target = batch(16, seed=seed)
    return {"image": image, "target": target, "epoch": 1}


def test_auto_is_no_autocast_on_a_cpu_and_bf16_on_a_gpu_that_has_it_and_the_reason_is_the_one_that_held(monkeypatch):
    def said(*asked, **reason):
        return precision.chosen(precision_of(*asked, **reason))["precision"]

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # it is set on a GPU
    gpu = torch.device("cuda")
    monkeypatch.setattr(precision, "layout_of", lambda device: torch.channels_last)
    assert said("auto", CPU) == "fp32: a CPU"
    assert said("none", CPU) == "fp32: asked for" and said("bf16", CPU) == "bf16: asked for"
    monkeypatch.setattr(precision, "_has_bf16", lambda: True)
    assert said("auto", gpu) == "bf16: fp32's range, and no scaler"
    assert said("auto", gpu, second_step="two steps a batch") == "fp32: two steps a batch"
    monkeypatch.setattr(precision, "_has_bf16", lambda: False)
    assert said("auto", gpu) == "fp32: no bf16 units"


def test_fp16_on_a_cpu_and_any_format_under_a_second_step_are_refused():
    with pytest.raises(PluginError, match="fp16 needs a CUDA device; this run is on cpu. Use bf16, auto or none"):
        precision_of("fp16", CPU)
    with pytest.raises(PluginError, match="SOLVER.AMP is bf16, but it makes two steps, .* Use SOLVER.AMP none"):
        precision_of("bf16", CPU, second_step="it makes two steps")


@pytest.mark.parametrize("method", ["SIMKD", "ATSC", "KD", "DKD"])
def test_under_bf16_maps_are_16_bit_and_losses_logits_weights_and_gradients_32(cfg, method):
    cfg.merge_from_list(["ATSC.LOSS.CE_WEIGHT", 1.0, "ATSC.LOSS.KD_WEIGHT", 1.0])
    distiller = distiller_dict[method](TinyNet(width=4), TinyNet(width=6), cfg).train()
    seen = []
    distiller.student.conv.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    step = Step(distiller, cfg)
    logits, losses = step(inputs())
    assert seen == [torch.bfloat16]
    assert {name: term.dtype for name, term in losses.items()} == dict.fromkeys(losses, torch.float32)
    if method in ("KD", "DKD", "ATSC"):
        assert logits.dtype is torch.float32
    assert all(p.dtype is torch.float32 and p.grad.dtype is torch.float32 for p in step.parameters())


def test_a_divergence_of_16_bit_logits_is_computed_in_32_bits():
    draw = torch.Generator().manual_seed(1)
    a, b = (torch.randn(8, 100, generator=draw).bfloat16() for _ in range(2))
    exact = F.kl_div(F.log_softmax(a.double() / 4, 1), F.softmax(b.double() / 4, 1), reduction="batchmean") * 16
    with torch.autocast("cpu", torch.bfloat16):
        ours = softened_divergence(a, b, 4.0)
        theirs = F.kl_div(F.log_softmax(a / 4, 1), F.softmax(b / 4, 1), reduction="batchmean") * 16
    assert ours.item() == pytest.approx(exact.item(), rel=1e-5)
    assert abs(theirs.item() - exact.item()) > 1e-3 * exact.item()  # what 16 bits would have made of it


def test_the_drift_gradient_under_bf16_is_that_of_fp32(cfg):
    torch.manual_seed(2)
    distiller = ATSC(TinyNet(width=4), TinyNet(width=6), cfg).train()
    weight = distiller.teacher.conv.weight
    with torch.no_grad():
        weight += 1e-4  # bf16 has 8 bits: beside weights of .3 it would not see this
    with torch.autocast("cpu", torch.bfloat16):
        loss = distiller.drift_loss()
    (gradient,) = torch.autograd.grad(loss, [weight])
    start = dict(distiller.theta_0[0].items())["conv.weight"]
    assert torch.equal(gradient, 2 * cfg.ATSC.DRIFT.WEIGHT * (weight - start).detach())


def test_bf16_training_follows_fp32_within_its_rounding(cfg):
    ends = []
    for name in ("bf16", "none"):
        cfg.SOLVER.AMP = name
        torch.manual_seed(3)
        step = Step(distiller_dict["NONE"](TinyNet(width=8)).train(), cfg)
        set_learning_rate(step.optimizer, 0.5)
        losses = [step(inputs(seed=0))[1]["ce"].item() for _ in range(30)]
        ends.append(losses)
    assert ends[1][-1] < 0.9 * ends[1][0]  # it learns
    assert ends[0][-1] == pytest.approx(ends[1][-1], rel=0.05)
    assert ends[0] != ends[1]


class Scaler:
    """Stands for GradScaler, which needs a GPU: scales by 8, and writes down what is asked of it."""

    def __init__(self):
        self.asked, self.growth = [], 0

    def scale(self, loss):
        return loss * 8

    def unscale_(self, optimizer):
        self.asked.append("unscale")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= 8

    def step(self, optimizer):
        self.asked.append("step")
        if "unscale" not in self.asked:
            self.unscale_(optimizer)
        optimizer.step()

    def update(self):
        self.asked.append("update")

    def state_dict(self):
        return {"growth": 5}

    def load_state_dict(self, state):
        self.growth = state["growth"]


def test_fp16s_scaler_is_unscaled_before_clipping_stepped_updated_and_its_state_kept(cfg):
    cfg.merge_from_list(["SOLVER.AMP", "none", "SOLVER.CLIP_NORM", 0.1, "SOLVER.MOMENTUM", 0.0])
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    torch.manual_seed(4)
    distiller = distiller_dict["NONE"](TinyNet()).train()
    step = Step(distiller, cfg)
    step.precision = precision.Precision(CPU, None, Scaler())
    before = [p.detach().clone() for p in distiller.parameters()]
    step(inputs())
    assert step.precision.scaler.asked == ["unscale", "step", "update"]
    moved = torch.cat([(a - b).reshape(-1) for a, b in zip(distiller.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.1 * cfg.SOLVER.LR, rel=1e-3)
    state = step.state()
    assert state["scaler"] == {"growth": 5}
    step.load_state(state)
    assert step.precision.scaler.growth == 5


# ---- which format it was ----


@pytest.mark.parametrize(("amp", "resolved"), [("auto", "fp32"), ("none", "fp32"), ("bf16", "bf16")])
def test_the_format_that_auto_became_stands_in_the_result_and_in_about(tmp_path, amp, resolved):
    cfg = config(tmp_path, "DISTILLER.TYPE", "NONE", "SOLVER.EPOCHS", 1, "SOLVER.AMP", amp)
    distiller = distiller_dict["NONE"](TinyNet())
    trainer = PluginTrainer("t", distiller, tiny_loader(seed=1), tiny_loader(), cfg)
    assert trainer.train()["precision"] == resolved
    for name in ("result.json", "about.json"):
        written = json.loads((trainer.folder / name).read_text())
        assert written["precision"] == resolved
        assert written["settings"].keys() == {"layout", "precision", "cudnn_benchmark", "tf32"}
        assert written["settings"]["precision"].startswith(f"{resolved}: ")
        assert written["settings"]["layout"] == "channels-last: faster here for CIFAR ResNets"


@pytest.mark.parametrize(("has_bf16", "layout"), [(True, "channels-last: 16-bit"), (False, "contiguous: no bf16")])
def test_on_a_gpu_layout_follows_its_16_bit_kernels_and_cudnn_looks_for_the_fastest(monkeypatch, has_bf16, layout):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    layout_of.cache_clear()
    settings = precision.chosen(precision.Precision(torch.device("cuda")))
    layout_of.cache_clear()
    assert settings["layout"].startswith(layout)
    assert settings["cudnn_benchmark"].startswith("on") and torch.backends.cudnn.benchmark
    assert settings["tf32"].startswith("convolutions")


def test_on_a_cpu_cudnn_stays_as_it_was():
    before = torch.backends.cudnn.benchmark
    assert precision.chosen(precision.Precision(CPU))["cudnn_benchmark"] == "off: no GPU"
    assert torch.backends.cudnn.benchmark == before


def test_a_teacher_trained_in_another_format_is_another_teacher(cfg, monkeypatch):
    """fp32 is left out of the recipe, so that teachers trained before it was looked at keep their names."""
    data = SimpleNamespace(identity="toy-24-ab", name="toy")
    plain, file = teachers.recipe(cfg, data), teachers.cached_file(cfg, data)
    assert "precision" not in plain
    bf16 = precision.Precision(CPU, torch.bfloat16)
    monkeypatch.setattr(teachers, "precision_of", lambda wanted, device: bf16)
    assert teachers.recipe(cfg, data) == {**plain, "precision": "bf16"}
    assert teachers.cached_file(cfg, data) != file
