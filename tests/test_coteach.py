"""COTEACH: three terms written out, who is moved by which, a scratch teacher of its own stream, a shared stem."""

import pytest
import torch
from co_trained import reached
from recorded import fill, image, load_contract
from runs import tiny_loader
from small_coteach import coteach_config, losses_of, tiny_coteach
from small_runs import QUICK
from tiny import TinyNet, batch
from tiny_stages import TinyStages

import atsc_plugin
from atsc_plugin.config import load_cfg
from atsc_plugin.engine.evaluate import evaluate
from atsc_plugin.errors import ConfigError, ModelRefused
from atsc_plugin.host import cifar_model_dict
from atsc_plugin.methods.coteach import COTEACH, logits_distance
from atsc_plugin.networks.stages import attention, attention_distance

CONFIG = QUICK / "coteach.yaml"


@pytest.fixture
def cfg(tmp_path, monkeypatch):
    return coteach_config(tmp_path, monkeypatch)


# ---- the formulas ----


def test_attention_is_the_normalised_mean_of_squares():
    feature_map = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])  # two channels, one row of two positions
    # means of squares: (1 + 9) / 2 = 5 and (4 + 0) / 2 = 2, of length sqrt(29)
    torch.testing.assert_close(attention(feature_map), torch.tensor([[5.0, 2.0]]) / 29**0.5)


def test_the_attention_distance_is_a_mean_over_images_and_positions():
    student = torch.tensor([[[[3.0, 0.0], [0.0, 0.0]]]])  # attention (1, 0, 0, 0)
    expert = torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]])  # attention (0, 1, 0, 0)
    assert attention_distance(student, expert).item() == pytest.approx((1 + 1) / 4)
    larger = expert.repeat_interleave(2, 2).repeat_interleave(2, 3)  # 4 x 4, pooled back to 2 x 2
    assert attention_distance(student, larger).item() == pytest.approx(0.5)
    assert attention_distance(larger, student).item() == pytest.approx(0.5)


def test_attention_transfer_equals_mdistillers_recorded_figure():
    recorded = load_contract()["distiller_losses_epoch10"]["AT resnet32x4->resnet8x4"]["losses"]["loss_kd"]
    student, expert = (cifar_model_dict[name][0](num_classes=100) for name in ("resnet8x4", "resnet32x4"))
    maps = fill(student, 1).train()(image(8))[1]["feats"], fill(expert, 0).eval()(image(8))[1]["feats"]
    total = sum(attention_distance(s, e) for s, e in zip(maps[0][1:], maps[1][1:], strict=True))
    assert 1000 * total.item() == pytest.approx(recorded, rel=1e-9)


def test_the_distance_of_logits_is_a_sum_over_classes_divided_by_the_images():
    logits, wanted = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[0.0, 2.0], [3.0, 2.0]])
    assert logits_distance(logits, wanted).item() == pytest.approx((1 + 0 + 9 + 4) / 2)


def test_the_four_losses_are_the_formulas_with_their_weights(cfg):
    distiller = tiny_coteach(cfg).train()
    images, target = batch()
    logits, losses = distiller(image=images, target=target)
    with torch.no_grad():
        own, feats = distiller.student(images)
        scratch = distiller.scratch(images)[0]
        expert = distiller.teacher(images)[1]["feats"]
    torch.testing.assert_close(logits, own)
    rows = torch.arange(6)
    ce = -torch.log_softmax(own, 1)[rows, target].mean()
    scratch_ce = -torch.log_softmax(scratch, 1)[rows, target].mean()
    guidance = sum(attention_distance(feats["feats"][k], expert[k]) for k in (1, 2))
    by_hand = {
        "loss_ce": ce,
        "loss_scratch_ce": scratch_ce,
        "loss_logits": 0.5 * ((own - scratch) ** 2).sum() / 6,
        "loss_attention": 1000 * guidance,
    }
    assert losses.keys() == by_hand.keys()
    for name, value in by_hand.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name


# ---- who is moved by what ----


def test_every_loss_reaches_its_own_network_and_no_other(cfg):
    distiller = tiny_coteach(cfg)
    losses = losses_of(distiller)
    assert reached(distiller, losses["loss_ce"]) == {"student"}
    assert reached(distiller, losses["loss_scratch_ce"]) == {"scratch"}
    assert reached(distiller, losses["loss_logits"]) == {"student"}
    assert reached(distiller, losses["loss_attention"]) == {"student"}


def test_the_attention_reaches_the_students_stages(cfg):
    distiller = tiny_coteach(cfg)
    reached(distiller, losses_of(distiller)["loss_attention"])
    for name, parameter in distiller.student.named_parameters():
        behind = name.startswith("fc")  # its head lies behind every stage
        assert (parameter.grad is None) == behind, name
        assert behind or parameter.grad.abs().max() > 0, name


def test_the_scratch_teacher_is_moved_by_its_cross_entropy_alone(cfg):
    distiller = tiny_coteach(cfg)
    losses = losses_of(distiller)
    reached(distiller, sum(losses.values()))
    whole = [p.grad.clone() for p in distiller.scratch.parameters()]
    reached(distiller, losses["loss_scratch_ce"])
    assert all(torch.equal(a, p.grad) for a, p in zip(whole, distiller.scratch.parameters(), strict=True))


def test_a_step_moves_student_and_scratch_teacher_and_leaves_the_expert_as_it_was(cfg):
    distiller = tiny_coteach(cfg)
    before = {name: tensor.clone() for name, tensor in distiller.state_dict().items()}
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.1, weight_decay=0.1)
    sum(losses_of(distiller).values()).backward()
    optimizer.step()
    for name, tensor in distiller.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("teacher."), name


# ---- the scratch teacher ----


def test_its_start_follows_from_the_seed_and_moves_no_other_draw(cfg):
    torch.manual_seed(8)
    first = tiny_coteach(cfg)
    student, teacher = TinyStages(width=2), TinyStages()
    torch.manual_seed(3)
    again = COTEACH(student, teacher, cfg)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert torch.equal(first.scratch.conv.weight, again.scratch.conv.weight)
    cfg.EXPERIMENT.SEED = 2
    assert not torch.equal(first.scratch.conv.weight, tiny_coteach(cfg).scratch.conv.weight)


def test_it_is_the_experts_architecture_or_the_named_one(cfg):
    assert tiny_coteach(cfg).scratch.fc.in_features == 8
    cfg.COTEACH.SCRATCH_TEACHER = "wide"
    distiller = tiny_coteach(cfg)
    assert distiller.scratch.fc.in_features == 16
    assert distiller.get_extra_parameters() == sum(p.numel() for p in distiller.scratch.parameters())


def test_its_figures_of_an_epoch_are_counted_on_the_batches_and_the_loader(cfg):
    distiller = tiny_coteach(cfg).train()
    images, target = batch()
    hits = (distiller.scratch(images)[0].argmax(1) == target).sum().item()  # batch statistics: the same twice
    distiller(image=images, target=target)
    loader = tiny_loader()
    report = distiller.after_epoch(1, loader)
    distiller.eval()
    by_hand = evaluate(lambda x: distiller.scratch(x)[0], loader, torch.device("cpu"))["top1"]
    assert report.figures == {"scratch_train_top1": pytest.approx(100 * hits / 6), "scratch_top1": by_hand}
    assert (report.warning, report.stop) == (None, False)


# ---- the shared stem ----


def test_a_shared_stem_is_one_set_of_layers_moved_by_both(cfg):
    cfg.COTEACH.SHARE_STEM = True
    distiller = tiny_coteach(cfg)
    assert distiller.scratch.conv is distiller.student.conv
    assert distiller.scratch.bn is distiller.student.bn
    assert distiller.scratch.stages[0] is not distiller.student.stages[0]
    learnable = distiller.get_learnable_parameters()
    assert len({id(p) for p in learnable}) == len(learnable)
    stem = 3 * 3 * 9 + 2 * 3
    assert distiller.get_extra_parameters() == sum(p.numel() for p in distiller.scratch.parameters()) - stem
    losses = losses_of(distiller)
    for name in ("loss_ce", "loss_scratch_ce"):
        reached(distiller, losses[name])
        assert distiller.student.conv.weight.grad.abs().max() > 0


def test_stems_that_differ_are_refused_by_name(cfg):
    cfg.COTEACH.SHARE_STEM, cfg.COTEACH.SCRATCH_TEACHER = True, "otherstem"
    with pytest.raises(
        ModelRefused, match=r"student small has .*\[3, 3, 3, 3\].*scratch teacher otherstem.*\[5, 3, 3, 3\]"
    ):
        tiny_coteach(cfg)


@pytest.mark.parametrize(
    ("student", "scratch", "shared"),
    [
        ("resnet8x4", "resnet32x4", {"conv1", "bn1"}),
        ("wrn_16_2", "wrn_40_2", {"conv1"}),
        ("resnet8", "resnet32x4", None),
        ("vgg8", "vgg13", None),
    ],
)
def test_which_of_mdistillers_networks_share_their_stem(cfg, student, scratch, shared):
    cfg.merge_from_list(["DISTILLER.STUDENT", student, "DISTILLER.TEACHER", scratch, "COTEACH.SHARE_STEM", True])
    nets = [cifar_model_dict[name][0](num_classes=10) for name in (student, scratch)]
    if shared is None:
        with pytest.raises(ModelRefused, match=f"student {student} has .*scratch teacher {scratch} has "):
            COTEACH(*nets, cfg)
        return
    distiller = COTEACH(*nets, cfg)
    own = {id(module): name for name, module in distiller.student.named_modules() if not list(module.children())}
    both = {own[id(module)] for module in distiller.scratch.modules() if id(module) in own}
    assert {name for name in both if list(distiller.student.get_submodule(name).parameters())} == shared


# ---- which stages are compared ----


def test_stages_that_do_not_pair_up_are_refused_until_the_pairs_are_named(cfg):
    with pytest.raises(ModelRefused, match="student small has 3 stages, expert tiny 2.*COTEACH.STAGES"):
        tiny_coteach(cfg, TinyStages(stages=3))
    cfg.COTEACH.STAGES = [[1, 1], [2, 3]]
    distiller = tiny_coteach(cfg, TinyStages(stages=3))
    assert distiller.stages == [(1, 1), (2, 3)]
    assert losses_of(distiller)["loss_attention"].item() > 0
    cfg.COTEACH.STAGES = [[3, 1]]
    with pytest.raises(ModelRefused, match="COTEACH.STAGES names 3; expert tiny has maps 0"):
        tiny_coteach(cfg, TinyStages(stages=3))


def test_a_network_with_one_map_is_compared_on_that(cfg):
    torch.manual_seed(0)
    assert COTEACH(TinyNet(), TinyNet(width=6), cfg).stages == [(0, 0)]


# ---- bad input ----


def test_mistakes_of_its_keys_are_told_together():
    atsc_plugin.register()
    words = ["COTEACH.SCRATCH_TEACHER", "resnet21", "COTEACH.LOSS.LOGITS_WEIGHT", "-1", "COTEACH.STAGES", "[[1, 2], 3]"]
    with pytest.raises(ConfigError) as error:
        load_cfg(CONFIG, [*words, "COTEACH.LOSS.ATTENTION_WEIGHT", "-0.5"])
    told = "\n".join(error.value.problems)
    for part in (
        "SCRATCH_TEACHER: got 'resnet21'",
        "did you mean resnet",
        "LOGITS_WEIGHT: got -1.0",
        "STAGES: got [[1, 2], 3]",
    ):
        assert part in told, told
    assert "ATTENTION_WEIGHT: got -0.5, expected at least 0.0" in told


def test_an_expert_of_other_classes_is_refused_by_name(cfg):
    with pytest.raises(ModelRefused, match="student small has 10 classes, expert tiny 7"):
        tiny_coteach(cfg, num_classes=7)
