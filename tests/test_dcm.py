"""DCM: its smoothed divergence, which heads learn from which, who is moved, and what full heads are."""

import pytest
import torch
from co_trained import co_trained_config, distiller_of, losses_of, network, reached
from tiny import TinyNet, batch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import cifar_model_dict
from atsc_plugin.losses import softened_divergence
from atsc_plugin.methods import dcm
from atsc_plugin.methods.dcm import _outputs, links, smoothed_divergence
from atsc_plugin.networks.deployed import deployed_of
from atsc_plugin.networks.stages import stage_facts


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Two networks of three stages: two hidden ones each."""
    return lambda *pairs: co_trained_config(
        tmp_path, monkeypatch, "DCM", "DISTILLER.STUDENT", "deep", "DISTILLER.TEACHER", "deep",
        "DCM.TEACHER.INIT", "pretrained", *pairs,
    )  # fmt: skip


def divergence(p, q, smooth):
    """KL(p || q) of two distributions."""
    logits, wanted = (torch.tensor([each], dtype=torch.double).log() for each in (q, p))
    return smoothed_divergence(logits, wanted, 1.0, smooth).item()


def test_smoothing_is_a_cap_and_no_noise():
    p, q = (0.7, 0.2, 0.1), (0.2, 0.5, 0.3)
    assert divergence(p, q, 0.0) == pytest.approx(0.583815, abs=1e-6)
    assert abs(divergence(p, q, 1e-8) - divergence(p, q, 0.0)) == pytest.approx(3.7e-8, rel=0.02)
    p, q = (0.5, 0.5), (1 - 1e-9, 1e-9)
    assert divergence(p, q, 0.0) == pytest.approx(9.668, abs=1e-3)
    assert divergence(p, q, 1e-8) == pytest.approx(8.470, abs=1e-3)


def test_under_bf16_the_smoothing_is_in_fp32():
    half = torch.tensor([[30.0, -30.0]], dtype=torch.bfloat16)
    value = smoothed_divergence(half, -half, 1.0, 1e-8)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(18.42, abs=0.01)  # log(1e8)


@pytest.mark.parametrize(("rule", "kl", "ce"), [("dense", 18, 6), ("same", 6, 6), ("final", 2, 6)])
def test_so_many_terms(config, monkeypatch, rule, kl, ce):
    distiller = distiller_of(config("DCM.LINKS", rule))
    calls = {"kl": 0, "ce": 0}

    def counted(name, function):
        def call(*args, **keywords):
            calls[name] += 1
            return function(*args, **keywords)

        return call

    monkeypatch.setattr(dcm, "smoothed_divergence", counted("kl", smoothed_divergence))
    monkeypatch.setattr(dcm.F, "cross_entropy", counted("ce", dcm.F.cross_entropy))
    losses_of(distiller)
    assert calls == {"kl": kl, "ce": ce}
    assert len(links(rule, 3, 3)) == kl / 2


@pytest.mark.parametrize("heads", ["light", "full"])
def test_every_loss_moves_its_own_network_and_heads_and_no_source(config, heads):
    distiller = distiller_of(config("DCM.HEADS", heads))
    moved = {name: reached(distiller, loss) for name, loss in losses_of(distiller).items()}
    own, other = {"student", "student_heads"}, {"teacher", "teacher_heads"}
    assert moved == {"loss_ce": own, "loss_kd": own, "loss_teacher_ce": other, "loss_teacher_kd": other}


def test_dense_links_into_a_head_are_three_times_kd_to_the_mean_probability(config):
    distiller = distiller_of(config("DCM.SMOOTH", 0.0))
    draw = torch.Generator().manual_seed(0)
    ours, theirs = [[torch.randn(4, 5, generator=draw, dtype=torch.double) for _ in range(3)] for _ in range(2)]
    head = ours[0].requires_grad_()
    (gradient,) = torch.autograd.grad(distiller.divergence(ours, theirs, [(0, j) for j in range(3)]), head)
    mean = torch.stack([z.softmax(1) for z in theirs]).mean(0).log()
    (wanted,) = torch.autograd.grad(3 * softened_divergence(head, mean, 1.0), head)
    torch.testing.assert_close(gradient, wanted)
    assert distiller.divergence([theirs[0]] * 3, [theirs[0]] * 3, distiller.pairs).item() == pytest.approx(0, abs=1e-12)


def test_swapping_the_networks_and_their_heads_swaps_the_losses(config):
    one = distiller_of(config())
    other = distiller_of(config(), student=network("deep", 2), teacher=network("deep", 1))
    other.student_heads.load_state_dict(one.teacher_heads.state_dict())
    other.teacher_heads.load_state_dict(one.student_heads.state_dict())
    first, second = losses_of(one), losses_of(other)
    assert second["loss_kd"].item() == pytest.approx(first["loss_teacher_kd"].item(), rel=1e-5)
    assert second["loss_teacher_ce"].item() == first["loss_ce"].item()


@pytest.mark.parametrize("heads", ["light", "full"])
def test_heads_run_in_training_alone_and_leave_nothing_in_the_student(config, heads):
    distiller = distiller_of(config("DCM.HEADS", heads))
    ran = []
    for heads in (distiller.student_heads, distiller.teacher_heads):
        for head in heads.values():
            head.register_forward_hook(lambda *_: ran.append(1))
    losses_of(distiller)
    assert len(ran) == 4
    images, _ = batch()
    with torch.no_grad():
        predicted = distiller.eval()(image=images)
        assert len(ran) == 4
        assert torch.equal(predicted, distiller.student(images)[0])
        assert torch.equal(predicted, deployed_of(distiller)(images))
    assert distiller.student.state_dict().keys() == network("deep", 1).state_dict().keys()
    assert [z.shape for z in _outputs(distiller.student, distiller.student_heads, images)] == [(6, 10)] * 3


def shapes_of(head):
    return [tuple(block.second.weight.shape[:2]) for block in head if isinstance(block, dcm.ResidualBlock)]


def test_full_heads_repeat_the_further_stages_half_as_deep_or_twice_as_wide():
    """wrn_40_2 has six blocks a stage, of 32, 64 and 128 channels; resnet20 three, of 16, 32 and 64."""
    for name, depth, width in (("wrn_40_2", 6, 32), ("resnet20", 3, 16)):
        network = cifar_model_dict[name][0](num_classes=100)
        facts = stage_facts(network, 32, name)
        assert dcm.block_counts(network, facts, 32)[1:] == [depth] * 3
        first, second = dcm.heads_on(network, facts, "full", 32).values()
        wide = 4 * width
        assert shapes_of(first) == [(2 * width,) * 2] * depth + [(wide, wide)] * (depth // 2)
        assert shapes_of(second) == [(2 * wide,) * 2] * depth
        assert [block.first.stride[0] for block in second[:2]] == [2, 1]


@pytest.mark.parametrize(("name", "times"), [("wrn_16_2", 2.70), ("wrn_40_2", 2.79)])
def test_a_wide_residual_network_with_full_heads_costs_what_the_released_one_does(name, times):
    network = cifar_model_dict[name][0](num_classes=100).eval()
    heads = dcm.heads_on(network, stage_facts(network, 32, name), "full", 32).eval()
    flops = []
    for used in (nn.ModuleDict(), heads):
        with torch.no_grad(), FlopCounterMode(display=False) as counted:
            logits = _outputs(network, used, torch.zeros(1, 3, 32, 32))
        flops.append(counted.get_total_flops())
    assert [z.shape for z in logits] == [(1, 100)] * 3
    assert flops[1] / flops[0] == pytest.approx(times, abs=0.02)


def test_a_residual_block_adds_what_it_computes_to_its_input():
    block = dcm.ResidualBlock(3, 3, 1).eval()
    x = batch()[0]
    running = 1 / (1 + block.enter[0].eps) ** 0.5  # BN of mean 0 and variance 1
    hidden = torch.conv2d((x * running).relu(), block.first.weight, padding=1)
    by_hand = x + torch.conv2d((hidden * running).relu(), block.second.weight, padding=1)
    torch.testing.assert_close(block(x), by_hand)
    assert dcm.ResidualBlock(3, 5, 2)(x).shape == (6, 5, 16, 16)


def test_networks_whose_stages_do_not_fit_are_refused_by_name(config):
    cfg = config("DISTILLER.STUDENT", "small", "DCM.LINKS", "same")
    with pytest.raises(ModelRefused, match="student small has 2 heads and teacher deep 3.*DCM.LINKS dense"):
        distiller_of(cfg)
    cfg.DCM.LINKS = "dense"
    assert len(distiller_of(cfg).pairs) == 6

    with pytest.raises(ModelRefused, match="student small has no hidden stage.*DCM.HEADS none"):
        distiller_of(cfg, student=TinyNet())
