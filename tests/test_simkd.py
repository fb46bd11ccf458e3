"""SimKD: the released step's figures, the right maps of every network, and where each gradient goes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from recorded import assert_close, fill, image, labels, load_contract, traced_tensors
from stock import stock
from tiny import HeadlessNet, TinyNet, batch

import atsc_plugin
from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import CFG, cifar_model_dict
from atsc_plugin.losses import align, feature_loss, pool
from atsc_plugin.methods.simkd import SimKD
from atsc_plugin.networks.deployed import tensors_of
from atsc_plugin.networks.maps import student_map, teacher_map
from atsc_plugin.networks.projector import Projector


@pytest.fixture
def cfg():
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.DISTILLER.TYPE = "SIMKD"
    return cfg


def tiny_simkd(cfg, teacher_width=6, teacher=None):
    torch.manual_seed(0)
    return SimKD(TinyNet(width=4), teacher or TinyNet(width=teacher_width), cfg)


def net(name, classes=100):
    return cifar_model_dict[name][0](num_classes=classes)


def test_three_steps_equal_the_released_code_but_for_the_unused_head(cfg):
    trace = load_contract()["published_step_traces"]["simkd resnet32x4->resnet8x4"]
    distiller = SimKD(net("resnet8x4"), net("resnet32x4"), cfg)
    fill(distiller.student, 1), fill(distiller.teacher, 0), fill(distiller.projector, 2)
    head = distiller.student.fc.weight.detach().clone()
    optimizer = torch.optim.SGD(
        distiller.get_learnable_parameters(),
        lr=trace["lr"],
        momentum=trace["momentum"],
        weight_decay=trace["weight_decay"],
    )
    distiller.train()
    for step, figures in enumerate(trace["steps"]):
        target = labels(8, shift=step)
        logits, losses = distiller(image=image(8, seed=70 + step), target=target, epoch=1)
        optimizer.zero_grad()
        losses["loss_feat"].backward()
        optimizer.step()
        assert losses["loss_feat"].item() == pytest.approx(figures["loss"], rel=1e-7)
        assert 100 * (logits.argmax(1) == target).double().mean() == pytest.approx(figures["top1_projected"])
        for name, tensor in traced_tensors(distiller).items():
            if name != "student.fc.weight":  # the released code decays it, ours leaves it alone
                assert_close(tensor, figures[name], rel=1e-7)
    assert torch.equal(distiller.student.fc.weight, head)


def test_the_projector_has_the_recorded_size():
    made = Projector(256, 256 // 2, 256)
    # 256*128 + 128*128*9 + 128*256 convolution weights, and 2*(128 + 128 + 256) of the three BNs
    assert sum(p.numel() for p in made.parameters()) == 32768 + 147456 + 32768 + 1024 == 214016


@pytest.mark.parametrize("name", list(cifar_model_dict))
def test_every_models_map_averages_to_its_classifiers_input_and_it_learns_a_step_as_a_student(cfg, name):
    model = stock(name).eval()  # its target is found once for both
    facts = teacher_map(model, 32, name)
    images, _ = batch(3, seed=5)
    with torch.no_grad():
        logits, feature_map = facts.source(model, images)
        through_the_classifier = facts.tail_of(model)(pool(feature_map))
    assert isinstance(facts.tail_of(model), torch.nn.Linear)
    assert feature_map.shape[1:] == (facts.channels, facts.size, facts.size)
    torch.testing.assert_close(through_the_classifier, logits, rtol=1e-4, atol=1e-5)
    distiller = SimKD(model, TinyNet(100, width=6), cfg).train()
    images, target = batch(2, classes=100)
    logits, losses = distiller(image=images, target=target, epoch=1)
    losses["loss_feat"].backward()
    assert logits.shape == (2, 100)
    assert all(p.grad is not None for p in distiller.get_learnable_parameters())
    left = [n for n, p in distiller.student.named_parameters() if p.grad is None]
    assert sorted(left) == sorted(distiller.unused)
    heads = {"ShuffleV2": {"conv2", "bn2", "linear"}, "MobileNetV2": {"conv2.0", "conv2.1", "classifier.0"}}
    alone = {path for path, module in distiller.student.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(distiller.deployed().unused) == heads.get(name, alone)


@pytest.mark.parametrize("name", ["MobileNetV2", "ShuffleV2", "wrn_16_2"])
def test_the_map_found_on_an_untrained_teacher_is_the_trained_ones_too(name):
    """A new BN is almost the identity: what stands before it must not be taken for what stands behind."""
    model, (images, _) = net(name), batch(4, seed=5)
    facts = teacher_map(model, 32, name)  # found when a run is built, before the weights are filled
    with torch.no_grad():
        model.train()(images)  # as a training would, this moves the running statistics
        logits, feature_map = facts.source(model.eval(), images)
        torch.testing.assert_close(facts.tail_of(model)(pool(feature_map)), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [("ShuffleV2", 464, 4), ("MobileNetV2", 160, 2), ("ShuffleV1", 960, 4), ("vgg8", 512, 4), ("resnet8x4", 256, 8)],
)
def test_the_student_map_is_the_last_of_its_feats(name, channels, size):
    facts = student_map(net(name), 32, name)
    assert (facts.source.place, facts.channels, facts.size) == ("feats", channels, size)


def test_a_wrn_student_gives_the_relu_of_its_last_pre_activation():
    model = net("wrn_16_2").eval()
    facts = student_map(model, 32, "wrn_16_2")
    images, _ = batch(2)
    with torch.no_grad():
        assert torch.equal(facts.source(model, images)[1], F.relu(model(images)[1]["preact_feats"][-1]))


def test_the_larger_map_is_averaged_down_to_the_smaller():
    ramp = torch.arange(16.0).view(1, 1, 4, 4)
    # 2x2 blocks of 0..15 laid out in rows of four: (0+1+4+5)/4 = 2.5, then +2, then +8
    assert torch.equal(align(ramp, 2), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    assert align(ramp, 4) is ramp
    assert align(ramp, 8) is ramp


def test_the_loss_is_the_mean_squared_difference_times_its_weight(cfg):
    assert feature_loss(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 0.0])).item() == pytest.approx(13 / 3)
    images, target = batch()
    plain = tiny_simkd(cfg).train()(image=images, target=target)[1]["loss_feat"]
    cfg.SIMKD.LOSS.FEAT_WEIGHT = 2.5
    weighted = tiny_simkd(cfg).train()(image=images, target=target)[1]["loss_feat"]
    assert weighted.item() == pytest.approx(2.5 * plain.item())


def test_the_feature_loss_moves_student_trunk_and_projector_and_nothing_else(cfg):
    distiller = tiny_simkd(cfg).train()
    images, target = batch()
    logits, losses = distiller(image=images, target=target)
    sum(losses.values()).backward()
    moved = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in distiller.named_parameters() if p.grad is not None
    }
    assert moved == {"student.conv", "student.bn", *(f"projector.{i}" for i in (0, 1, 3, 4, 6, 7))}
    assert not logits.requires_grad


def test_the_teacher_stays_as_it_was_through_a_training_step(cfg):
    distiller = tiny_simkd(cfg)
    before = copy.deepcopy(distiller.teacher.state_dict())
    distiller.train()
    assert not distiller.teacher.training
    images, target = batch()
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.1, weight_decay=0.1)
    sum(distiller(image=images, target=target)[1].values()).backward()
    optimizer.step()
    for name, tensor in distiller.teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_prediction_goes_through_projector_and_teacher_classifier(cfg):
    distiller = tiny_simkd(cfg).eval()
    images, _ = batch()
    with torch.no_grad():
        feature_map = distiller.student(images)[1]["feats"][-1]
        by_hand = (
            distiller.projector(feature_map).mean(dim=(2, 3)) @ distiller.teacher.fc.weight.T
            + distiller.teacher.fc.bias
        )
        torch.testing.assert_close(distiller(image=images), by_hand)
        assert not torch.allclose(distiller(image=images), distiller.student(images)[0])


def test_a_student_map_larger_than_the_teachers_is_pooled_before_the_projector(cfg):
    distiller = SimKD(net("resnet8"), net("vgg8"), cfg).eval()  # 8x8 against 4x4
    images, _ = batch(2)
    with torch.no_grad():
        small = F.avg_pool2d(distiller.student(images)[1]["feats"][-1], 2)
        torch.testing.assert_close(distiller(image=images), distiller.tails[0](pool(distiller.projector(small))))


def test_what_is_deployed_predicts_the_same_without_head_and_trunk(cfg):
    distiller = tiny_simkd(cfg).eval()
    images, _ = batch()
    with torch.no_grad():
        assert torch.equal(distiller.deployed()(images), distiller(image=images))
    names = set(tensors_of(distiller.deployed()))
    assert not any(name.startswith(("backbone.fc", "teacher")) for name in names)
    assert {"backbone.conv.weight", "projector.0.weight", "classifier.weight"} <= names


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [(HeadlessNet(), "no layers, such as an nn.Linear"), (TinyNet(num_classes=7), "7")],
)
def test_a_teacher_that_cannot_be_served_is_refused_by_name(cfg, teacher, reason):
    cfg.DISTILLER.TEACHER = "oddnet"
    with pytest.raises(ModelRefused, match="oddnet") as refusal:
        tiny_simkd(cfg, teacher=teacher)
    assert reason in str(refusal.value)


def test_a_factor_larger_than_the_teachers_channels_is_refused(cfg):
    cfg.SIMKD.PROJECTOR.FACTOR = 7
    with pytest.raises(ModelRefused, match="SIMKD.PROJECTOR.FACTOR is 7.*6 channels"):
        tiny_simkd(cfg)


def test_building_the_distiller_moves_no_random_stream_and_no_statistic(cfg):
    student, teacher = TinyNet(width=4), TinyNet(width=6)
    before = copy.deepcopy(student.state_dict())
    torch.manual_seed(3)
    teacher_map(teacher, 32, "t"), student_map(student, 32, "s")
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    assert student.training
