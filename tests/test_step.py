"""The training step: micro-batches, a clipped gradient, the teacher's rate in a group, and nothing that waits."""

import copy

import pytest
import torch
from runs import without_bn
from tiny import TinyNet, batch

import atsc_plugin
from atsc_plugin.config import load_cfg
from atsc_plugin.engine import precision
from atsc_plugin.engine.meters import Meters
from atsc_plugin.engine.optim import set_learning_rate
from atsc_plugin.engine.step import Step, micro_batches
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.host import CFG, distiller_dict
from atsc_plugin.methods.atsc import ATSC
from atsc_plugin.methods.simkd import SimKD

TINY = "configs/quickstart/atsc.yaml"


@pytest.fixture
def cfg():
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["SOLVER.LR", 0.05, "SOLVER.TRAINER", "plugin"])
    return cfg


def vanilla(seed=1, bn=False):
    torch.manual_seed(seed)
    network = TinyNet()
    return distiller_dict["NONE"](network if bn else without_bn(network))


def inputs(count=10, seed=0):
    image, target = batch(count, seed=seed)
    return {"image": image, "target": target, "epoch": 1}


def weights(distiller):
    return torch.cat([p.detach().reshape(-1) for p in distiller.parameters()])


def test_a_batch_is_split_into_micro_batches_as_equal_as_can_be():
    cut = micro_batches({"image": (torch.arange(10), torch.arange(10)), "target": torch.arange(10), "epoch": 3}, 4)
    assert [len(micro["target"]) for micro, _ in cut] == [3, 3, 2, 2]
    assert [share for _, share in cut] == [0.3, 0.3, 0.2, 0.2]
    assert cut[1][0]["image"][1].tolist() == [3, 4, 5]
    assert cut[1][0]["epoch"] == 3
    assert len(micro_batches({"target": torch.arange(2)}, 8)) == 2


@pytest.mark.parametrize(("images", "counts"), [(64, 16), (16, 4), (17, 5), (1, 1)])
def test_a_short_last_batch_is_split_into_micro_batches_of_the_same_size(cfg, images, counts):
    cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.ACCUMULATE = 64, 16  # four images each
    step, seen = Step(vanilla(bn=True), cfg), []
    step.distiller.register_forward_pre_hook(lambda _m, _a, given: seen.append(len(given["target"])), with_kwargs=True)
    step(inputs(images))
    assert (len(seen), sum(seen), max(seen)) == (counts, images, min(images, 4))


def test_one_image_at_a_norm_behind_one_pixel_ends_with_a_remedy(cfg):
    network = TinyNet()
    network.fc = torch.nn.Sequential(torch.nn.BatchNorm1d(network.fc.in_features), network.fc)
    with pytest.raises(PluginError, match="A batch of one image met a BatchNorm .* Choose SOLVER.BATCH_SIZE"):
        Step(distiller_dict["NONE"](network), cfg)(inputs(1))


def test_a_host_method_that_may_call_view_gets_maps_in_the_default_layout(cfg):
    """Channels-last maps have their channels next to each other; `.view(N, -1)` refuses them."""

    class Viewing(distiller_dict["NONE"]):
        def forward_train(self, image, target, **kwargs):
            logits, maps = self.student(image)
            return logits, {"ce": maps["feats"][-1].view(len(image), -1).mean() + logits.mean()}

    torch.manual_seed(1)
    viewing = Viewing(TinyNet().to(memory_format=torch.channels_last))
    given = inputs() | {"image": inputs()["image"].to(memory_format=torch.channels_last)}
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        viewing.forward_train(**given)
    cfg.DISTILLER.TYPE = "A_METHOD_OF_A_FORK"
    assert Step(viewing, cfg)(given)[1]["ce"].isfinite()


@pytest.mark.parametrize("count", [3, 10])
def test_accumulated_micro_batches_make_the_step_of_the_whole_batch_for_a_net_without_bn(cfg, count):
    cfg.SOLVER.ACCUMULATE = count
    accumulated = vanilla()
    cfg_whole = cfg.clone()
    cfg_whole.SOLVER.ACCUMULATE = 1
    whole = vanilla()
    one, other = Step(accumulated, cfg), Step(whole, cfg_whole)
    for seed in range(3):
        logits, losses = one(inputs(seed=seed))
        wanted, expected = other(inputs(seed=seed))
        assert torch.allclose(logits, wanted, atol=1e-6)
        assert losses["ce"].item() == pytest.approx(expected["ce"].item(), rel=1e-5)
    assert torch.allclose(weights(accumulated), weights(whole), atol=1e-6)
    assert not torch.allclose(weights(whole), weights(vanilla()), atol=1e-3)


def started_atsc(cfg):
    distiller = ATSC(TinyNet(width=4), TinyNet(width=6), cfg)
    distiller.begin()
    return distiller


def test_accumulated_atsc_counts_drift_once_and_keeps_the_teachers_own_rate(cfg):
    cfg.merge_from_list(["ATSC.TEACHER.LR_SCALE", 0.3, "SOLVER.LR", 0.02])
    steps = []
    for count in (1, 3):
        cfg.SOLVER.ACCUMULATE = count
        torch.manual_seed(3)
        steps.append(Step(without_bn(started_atsc(cfg)).train(), cfg))
    for seed in range(3):
        (_, losses), (_, accumulated) = (step(inputs(9, seed)) for step in steps)
        assert {k: v.item() for k, v in losses.items()} == pytest.approx(
            {k: v.item() for k, v in accumulated.items()}, rel=1e-4, abs=1e-7
        )
    assert losses["loss_drift"] > 0
    whole, accumulated = (weights(step.distiller) for step in steps)
    assert torch.allclose(whole, accumulated, atol=1e-6)


def test_the_teachers_group_makes_the_step_of_its_own_rate(cfg):
    """Plain SGD on two groups whose rates are written out."""
    cfg.merge_from_list(["ATSC.TEACHER.LR_SCALE", 0.3, "SOLVER.LR", 0.02])
    torch.manual_seed(5)
    ours = started_atsc(cfg)
    torch.manual_seed(5)
    other = started_atsc(cfg)
    step = Step(ours.train(), cfg)
    set_learning_rate(step.optimizer, 0.02)
    assert [group["lr"] for group in step.optimizer.param_groups] == pytest.approx([0.02, 0.006])
    teacher = {id(p) for p in other.teacher.parameters()}
    rest = [p for p in other.get_learnable_parameters() if id(p) not in teacher]
    groups = [{"params": rest}, {"params": list(other.teacher.parameters()), "lr": 0.006}]
    plain = torch.optim.SGD(groups, 0.02, momentum=cfg.SOLVER.MOMENTUM, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
    other.train()
    for seed in range(4):
        step(inputs(seed=seed))
        plain.zero_grad()
        sum(other(**inputs(seed=seed))[1].values()).backward()
        plain.step()
    assert torch.allclose(weights(ours), weights(other), atol=1e-6)


def test_a_teacher_at_rate_zero_has_no_graph_and_stays(cfg):
    cfg.merge_from_list(["ATSC.TEACHER.LR_SCALE", 0.0])
    distiller = started_atsc(cfg).train()
    before = [p.clone() for p in distiller.teacher.parameters()]
    Step(distiller, cfg)(inputs())
    assert all(p.grad is None for p in distiller.teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, distiller.teacher.parameters(), strict=True))


def test_a_clipped_gradient_has_the_norm_that_was_asked_for_and_a_short_one_is_left(cfg):
    def moved(limit):
        cfg.SOLVER.CLIP_NORM = limit
        cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM = 0.0, 0.0
        distiller = vanilla(bn=True).train()
        before = weights(distiller)
        Step(distiller, cfg)(inputs())
        return (weights(distiller) - before) / -cfg.SOLVER.LR  # plain SGD: the gradient it used

    whole = moved(0.0)
    cut = moved(0.1)
    assert whole.norm() > 0.2
    assert cut.norm().item() == pytest.approx(0.1, rel=1e-3)
    assert torch.allclose(cut / cut.norm(), whole / whole.norm(), atol=1e-4)
    assert torch.allclose(moved(1e6), whole)


@pytest.mark.parametrize("method", ["SIMKD", "ATSC", "KD"])
def test_a_step_and_its_meters_read_no_number_back_from_the_device(cfg, method, monkeypatch):
    cfg.merge_from_list(["DISTILLER.TYPE", method, "SOLVER.CLIP_NORM", 1.0, "SOLVER.ACCUMULATE", 2])
    distiller = distiller_dict[method](TinyNet(width=4), TinyNet(width=6), cfg).train()
    step, meters = Step(distiller, cfg), Meters(torch.device("cpu"))
    step(inputs())  # the optimizer makes its state
    reads = []
    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "cpu", "numpy", "nonzero"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda *a, _n=name, _o=original, **k: reads.append(_n) or _o(*a, **k))
    logits, losses = step(inputs(seed=1))
    meters.add(losses, logits, inputs()["target"])
    assert reads == []
    meters.summary()
    assert reads  # the counters do count


def test_momentum_from_another_memory_layout_is_laid_out_as_the_weights(cfg):
    contiguous, last = vanilla(), vanilla()
    last.to(memory_format=torch.channels_last)
    one, other = Step(contiguous, cfg), Step(last, cfg)
    one(inputs())
    other(inputs())
    other.load_state(copy.deepcopy(one.state()))
    for parameter, state in other.optimizer.state.items():
        assert state["momentum_buffer"].stride() == parameter.stride()
    kept = other.optimizer.state[last.student.conv.weight]["momentum_buffer"]
    assert torch.equal(kept, one.optimizer.state[contiguous.student.conv.weight]["momentum_buffer"])


def test_engine_keys_that_a_trainer_or_the_released_step_cannot_have_are_refused_all_at_once(tmp_path):
    atsc_plugin.register()
    keys = ["SOLVER.AMP", "bf16", "SOLVER.COMPILE", "default", "SOLVER.ACCUMULATE", "2", "SOLVER.CLIP_NORM", "1"]
    with pytest.raises(ConfigError) as error:
        load_cfg("configs/quickstart/atsc_published.yaml", keys)
    assert len(error.value.problems) == 4
    assert all("makes two steps a batch" in problem for problem in error.value.problems)
    with pytest.raises(ConfigError) as error:
        load_cfg(TINY, [*keys, "SOLVER.TRAINER", "base"])
    assert [problem.split(" is ")[0] for problem in error.value.problems] == keys[::2]
    with pytest.raises(ConfigError, match="at most one micro-batch an image"):
        load_cfg(TINY, ["SOLVER.ACCUMULATE", "65", "SOLVER.BATCH_SIZE", "64"])
    with pytest.raises(ConfigError, match="CUDA graphs"):
        load_cfg(TINY, ["SOLVER.ACCUMULATE", "2", "SOLVER.COMPILE", "reduce-overhead"])


def test_simkd_keeps_the_teachers_forward_out_of_the_graph(cfg):
    distiller = SimKD(TinyNet(width=4), TinyNet(width=6), cfg).train()
    seen = []
    distiller.teacher.register_forward_hook(lambda _m, _i, output: seen.append(output[0].requires_grad))
    Step(distiller, cfg)(inputs())
    assert seen == [False]


# ---- the optimizer's momentum ----


@pytest.mark.parametrize("fused", [False, True])
def test_a_teacher_that_warms_up_shares_a_group_with_the_student(cfg, fused, monkeypatch):
    """The fused kernel wants all momentum buffers of a group or none; the warming teacher has no gradient."""
    _forced(monkeypatch, fused)
    cfg.merge_from_list(["DISTILLER.TYPE", "ATSC", "ATSC.TEACHER.WARMUP_EPOCHS", 1, "SOLVER.EPOCHS", 2])
    torch.manual_seed(0)
    step = Step(started_atsc(cfg).train(), cfg)
    for epoch in (1, 1, 2, 2):
        step(inputs() | {"epoch": epoch})
    assert all(torch.isfinite(p).all() for p in step.parameters())


def test_an_overflow_in_the_first_fp16_step_leaves_weights_and_momentum_as_they_were(cfg, monkeypatch):
    _forced(monkeypatch, True)
    step = Step(vanilla(), cfg)
    step.precision = precision.Precision(torch.device("cpu"), None, torch.amp.GradScaler("cpu", init_scale=2.0**127))
    before = weights(step.distiller)
    step(inputs() | {"image": 1e4 * inputs()["image"]})  # gradients far above 1, times 2^127, are infinite in fp32
    assert torch.equal(weights(step.distiller), before)
    assert all(not step.optimizer.state[p]["momentum_buffer"].any() for p in step.parameters())


def test_gradients_that_overflow_whatever_the_scale_are_noticed():
    overflowing = precision.Precision(torch.device("cpu"), None, torch.amp.GradScaler("cpu", init_scale=0.5))
    working = precision.Precision(torch.device("cpu"), None, torch.amp.GradScaler("cpu", init_scale=65536.0))
    for each in (overflowing, working):
        each.scaler.scale(torch.ones(()))  # the scale is made with the first loss
    assert overflowing.overflows_always()
    assert not working.overflows_always()


def _forced(monkeypatch, fused):
    """SGD as a GPU has it, here."""
    plain = torch.optim.SGD
    monkeypatch.setattr(torch.optim, "SGD", lambda *args, **options: plain(*args, **{**options, "fused": fused}))
