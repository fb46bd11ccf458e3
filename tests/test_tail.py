"""Targets and tails: what leads from a map, or a vector, to the logits; and what SimKD and ATSC do with it."""

import copy

import pytest
import torch
from tiny import HeadlessNet, MaxPoolNet, TinyNet, batch
from torch import nn

import atsc_plugin
from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import CFG
from atsc_plugin.losses import pool, through_frozen
from atsc_plugin.methods.atsc import ATSC
from atsc_plugin.methods.simkd import SimKD
from atsc_plugin.networks.maps import as_map, student_map, teacher_map
from atsc_plugin.networks.projector import MLP, Projector
from atsc_plugin.networks.tail import Tail


class HiddenNet(TinyNet):
    """A norm on the pooled map, a hidden layer, an activation in place, dropout, a classifier."""

    def __init__(self, num_classes=10, width=6):
        super().__init__(num_classes, width)
        self.norm = nn.GroupNorm(1, width)
        self.fc = nn.Sequential(nn.Linear(width, 5), nn.Hardswish(inplace=True), nn.Dropout(0.5), nn.Linear(5, 10))

    def forward(self, x):
        feature_map = self.bn(self.conv(x))  # no ReLU: it has values below zero
        vector = self.norm(feature_map.mean(dim=(2, 3), keepdim=True)).flatten(1)
        return self.fc(vector), {"feats": [feature_map]}


class TokenNet(nn.Module):
    """Patches behind a class token, alone classified; the classifier begins at zero, as torchvision's ViT's."""

    def __init__(self, num_classes=10, width=6):
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, width, 8, stride=8), nn.Parameter(torch.ones(1, 1, width))
        self.mix, self.norm, self.head = nn.Linear(17, 17), nn.LayerNorm(width), nn.Linear(width, num_classes)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.patches(x).flatten(2).transpose(1, 2)], dim=1)
        tokens = self.norm(tokens + self.mix(tokens.transpose(1, 2)).transpose(1, 2))
        return self.head(tokens[:, 0]), {"feats": [as_map(tokens, "tokens+1")]}


@pytest.fixture
def cfg():
    atsc_plugin.register()
    return CFG.clone()


def made(kind, cfg, student, teacher, **keys):
    cfg.DISTILLER.TYPE = kind.NAME
    cfg[kind.NAME].PROJECTOR.FACTOR = 1
    for name, value in keys.items():
        cfg[kind.NAME].PROJECTOR[name] = value
    torch.manual_seed(0)
    return kind(student, teacher, cfg)


def test_all_layers_behind_the_mean_of_the_map_are_the_tail():
    network, (images, _) = HiddenNet().eval(), batch()
    facts = teacher_map(network, 32, "hidden")
    assert [path for path, _ in facts.tail] == ["norm", "fc"]
    assert (facts.source.place, facts.vector, facts.signed) == ("feats", False, True)
    logits, feature_map = facts.source(network, images)
    torch.testing.assert_close(facts.tail_of(network)(pool(feature_map)), logits)
    other = copy.deepcopy(network)
    assert {id(p) for p in facts.tail_of(other).parameters()} <= {id(p) for p in other.parameters()}


def test_a_class_token_is_a_vector_and_its_map_has_one_pixel():
    network, (images, _) = TokenNet().eval(), batch()
    facts = teacher_map(network, 32, "tokens")
    assert (facts.vector, facts.size, facts.channels, facts.tail) == (True, 1, 6, (("head", 2),))
    assert not network.head.weight.any()  # it was noise only while the tail was looked for
    nn.init.normal_(network.head.weight)
    logits, vector = facts.source(network, images)
    torch.testing.assert_close(facts.tail_of(network)(pool(vector)), logits)
    assert student_map(network, 32, "tokens").size == 4  # what a map is learnt with: 32 / 8 patches a side
    assert student_map(network, 32, "tokens", vector=True).size == 1


def test_a_maximum_is_a_vector_too():
    assert teacher_map(MaxPoolNet(), 32, "maximum").vector


def test_a_network_without_a_tail_is_refused_by_name():
    with pytest.raises(ModelRefused, match="oddnet has no layers"):
        teacher_map(HeadlessNet(), 32, "oddnet")


def test_what_happens_between_the_tails_layers_is_not_missed():
    class Scaled(TinyNet):
        def forward(self, x):
            logits, feats = super().forward(x)
            return 2 * logits, feats

    with pytest.raises(ModelRefused, match="doubled has no layers"):
        teacher_map(Scaled(), 32, "doubled")


def test_tokens_become_a_map_row_by_row_without_their_prefix():
    tokens = torch.arange(10.0).view(1, 5, 2)  # one prefix token, then four patches of two channels
    assert as_map(tokens, "tokens+1").tolist() == [[[[2.0, 4.0], [6.0, 8.0]], [[3.0, 5.0], [7.0, 9.0]]]]


@pytest.mark.parametrize(
    ("teacher", "wanted", "kind", "side"),
    [
        (TinyNet(width=6), "auto", "bottleneck", 8),
        (HiddenNet(), "auto", "signed", 8),
        (TokenNet(), "auto", "mlp", 1),
        (TinyNet(width=6), "mlp", "mlp", 1),
    ],
)
def test_the_projector_follows_from_the_target(cfg, teacher, wanted, kind, side):
    distiller = made(SimKD, cfg, TinyNet(), teacher, TYPE=wanted).train()
    images, target = batch()
    logits, losses = distiller(image=images, target=target, epoch=1)
    losses["loss_feat"].backward()
    assert distiller.projector.kind == kind and distiller.branches[0].map_size == side
    assert all(p.grad is not None for p in distiller.get_learnable_parameters())
    distiller.eval()
    feature_map = distiller.student(images)[1]["feats"][-1]
    vector = distiller.projector(feature_map if side > 1 else feature_map.mean((2, 3), keepdim=True)).mean((2, 3))
    torch.testing.assert_close(distiller(image=images), distiller.tails[0](vector))


def test_a_bottleneck_on_a_vector_is_refused_by_name(cfg):
    cfg.DISTILLER.TEACHER = "oddnet"
    with pytest.raises(ModelRefused, match="SIMKD.PROJECTOR.TYPE is bottleneck, but teacher oddnet hands"):
        made(SimKD, cfg, TinyNet(), TokenNet(), TYPE="bottleneck")


def test_a_signed_projector_reaches_values_below_zero_and_an_mlp_takes_one_image():
    assert (Projector(4, 4, 4, "signed")(torch.randn(2, 4, 8, 8)) < 0).any()
    assert MLP(4, 3, 5).train()(torch.randn(1, 4, 1, 1)).shape == (1, 5, 1, 1)


def test_atscs_teacher_ce_moves_the_whole_tail_and_nothing_before_it(cfg):
    distiller = made(ATSC, cfg, TinyNet(), HiddenNet()).train()
    images, target = batch()
    distiller(image=images, target=target, epoch=1)[1]["loss_teacher_ce"].backward()
    moved = {name.split(".")[1] for name, p in distiller.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"norm", "fc"}


def test_a_students_loss_through_the_tail_does_not_move_it():
    network, vector = HiddenNet(), torch.randn(3, 6, requires_grad=True)
    tail = Tail([network.norm, network.fc], [("norm", 4), ("fc", 2)])
    through_frozen(tail, vector).sum().backward()
    assert vector.grad.any() and all(p.grad is None for p in network.parameters())


def test_a_batch_norm_in_the_tail_takes_in_the_teachers_own_forward_and_nothing_else(cfg):
    """Once a step: not the student's features, nor the teacher's a second time."""

    class NeckNet(TinyNet):
        def __init__(self):
            super().__init__(width=6)
            self.neck = nn.BatchNorm1d(6)

        def forward(self, x):
            feature_map = torch.relu(self.bn(self.conv(x)))
            return self.fc(self.neck(feature_map.mean(dim=(2, 3)))), {"feats": [feature_map]}

    images, target = batch()
    cfg.SOLVER.TRAINER = "plugin"
    for learns, ema in (("features", 0.0), ("task", 0.0), ("task", 0.9)):
        cfg.ATSC.TEACHER.LEARNS, cfg.ATSC.TEACHER.EMA = learns, ema
        distiller = made(ATSC, cfg, TinyNet(), NeckNet()).train()
        distiller(image=images, target=target, epoch=1)
        (learning,) = distiller.learning
        assert learning.bn.num_batches_tracked == learning.neck.num_batches_tracked == 1, (learns, ema)
        averaged = distiller.teacher  # with EMA another network than the one that learns
        assert averaged.bn.num_batches_tracked == averaged.neck.num_batches_tracked, (learns, ema)
