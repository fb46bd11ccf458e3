"""What a method whose teacher learns comes down to when a term or a network is taken away: another method, to the bit.

Every test makes three steps of the engine, momentum and weight decay included, and compares all weights and statistics.
"""

import copy

import pytest
import torch
from co_trained import assert_same_losses, co_trained_config, distiller_of, losses_of, network
from runs import without_bn
from tiny import batch

from atsc_plugin.engine.optim import learning_rate, set_learning_rate
from atsc_plugin.engine.step import Step


@pytest.fixture
def config(tmp_path, monkeypatch):
    return lambda method, *pairs: co_trained_config(tmp_path, monkeypatch, method, *pairs)


def stepped(distiller, cfg, steps=3):
    """The distiller after steps of the first epoch on different batches."""
    step = Step(distiller.train(), cfg)
    step.method.driven = True
    set_learning_rate(step.optimizer, learning_rate(cfg, 1))
    step.method.begin()
    step.method.before_epoch(1)
    for number in range(steps):
        images, target = batch(seed=number)
        step.method.before_step(1, number)
        step({"image": images, "target": target, "epoch": 1})
    return distiller


def assert_same_network(one, other):
    theirs = other.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def differs(one, other):
    return not torch.equal(one.conv.weight, other.conv.weight)


def vanilla(config, student):
    cfg = config("NONE")
    return stepped(distiller_of(cfg, student=student), cfg).student


# ---- weights of zero ----

# Keys beside the weights with which each network's own loss is plain CE.
PLAIN = {
    "DML": ["DML.TEACHER.INIT", "pretrained"],
    "SWITOKD": ["SWITOKD.TEACHER.INIT", "pretrained"],
    "BDKD": ["BDKD.TEACHER.INIT", "pretrained"],
    "DCM": ["DCM.TEACHER.INIT", "pretrained", "DCM.HEADS", "none"],
    "PEERS": ["PEERS.TEACHER.INIT", "pretrained", "PEERS.LOSS.PEER_WEIGHT", 0.0],
    "ADAPTKD": ["ADAPTKD.MODULE", "all", "ADAPTKD.LOSS.CE_WEIGHT", 1.0, "ADAPTKD.TEACHER.LR_SCALE", 1.0],
    "SHAKE": ["SHAKE.NORM", "none"],
}
BESIDE = {"PEERS": ("teacher", "peers.2"), "SHAKE": ("shadow",)}  # else the teacher


@pytest.mark.parametrize("method", PLAIN)
def test_a_student_that_learns_nothing_from_the_teacher_is_vanillas_while_the_others_learn_from_it(config, method):
    cfg = config(method, *PLAIN[method], f"{method}.LOSS.KD_WEIGHT", 0.0)
    node = "SHADOW" if method == "SHAKE" else "TEACHER"
    ends = []
    for weight in (1.0, 0.0):
        cfg[method][node].KD_WEIGHT = weight
        distiller = distiller_of(cfg)
        ends.append(stepped(distiller, cfg))
        assert_same_network(ends[-1].student, vanilla(config, network("small", 1)))
    name = BESIDE.get(method, ("teacher",))[0]
    one, other = (torch.cat([p.flatten() for p in end.get_submodule(name).parameters()]) for end in ends)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("method", [name for name in PLAIN if name != "SHAKE"])  # its shadow head is no network
def test_a_teacher_that_learns_nothing_from_the_student_is_vanillas_while_the_student_learns_from_it(config, method):
    cfg = config(method, *PLAIN[method], f"{method}.LOSS.KD_WEIGHT", 1.0, f"{method}.TEACHER.KD_WEIGHT", 0.0)
    distiller = distiller_of(cfg)
    distiller.pauses = lambda *_: False  # SWITOKD's teacher would rest
    before = copy.deepcopy(distiller)
    stepped(distiller, cfg)
    assert_same_network(distiller.teacher, vanilla(config, before.teacher))
    assert differs(distiller.student, vanilla(config, before.student))


def test_peers_without_weight_are_so_many_runs_of_kd(config):
    cfg = config("PEERS", "PEERS.TEACHER.INIT", "frozen", "PEERS.STUDENTS", ["small", "tiny", "small"])
    cfg.PEERS.LOSS.PEER_WEIGHT = 0.0
    distiller = distiller_of(cfg)
    starts = copy.deepcopy(distiller.students)
    stepped(distiller, cfg)
    kd = config("AVERKD")
    for start, end in zip(starts, distiller.students, strict=True):
        assert_same_network(end, stepped(distiller_of(kd, student=start), kd).student)


# ---- one network learns ----

# Keys with which a teacher of rate 0 teaches by KD of temperature 4, weights .1 and .9.
KD = {
    "DML": ["DML.TEMPERATURE", 4.0],
    "SWITOKD": ["SWITOKD.TEMPERATURE", 4.0],
    "BDKD": ["BDKD.RULE", "forward"],
    "DCM": ["DCM.TEMPERATURE", 4.0, "DCM.HEADS", "none", "DCM.LINKS", "final", "DCM.SMOOTH", 0.0],
    "PEERS": ["PEERS.STUDENTS", ["small"]],
    "ADAPTKD": ["ADAPTKD.MODULE", "all"],
}


@pytest.mark.parametrize("method", KD)
def test_with_a_teacher_at_rate_0_it_is_kd(config, method):
    """Without BN, whose statistics of the batch are another teacher's."""
    cfg = config(method, *KD[method], f"{method}.TEACHER.LR_SCALE", 0.0)
    cfg[method].LOSS.CE_WEIGHT, cfg[method].LOSS.KD_WEIGHT = 0.1, 0.9
    if method != "ADAPTKD":
        cfg[method].TEACHER.INIT = "pretrained"
    kd = config("AVERKD", "AVERKD.LOSS.CE_WEIGHT", 0.1, "AVERKD.LOSS.KD_WEIGHT", 0.9)
    ends = [
        stepped(distiller_of(each, *(without_bn(network(*which)) for which in (("small", 1), ("tiny", 2)))), each)
        for each in (cfg, kd)
    ]
    assert_same_network(ends[0].student, ends[1].student)
    assert_same_network(ends[0].teacher, without_bn(network("tiny", 2)))


# ---- one method is another ----


WEIGHTS = {"LOSS.CE_WEIGHT": 0.5, "LOSS.KD_WEIGHT": 3.0, "TEACHER.KD_WEIGHT": 7.0, "TEACHER.LR_SCALE": 0.2,
           "TEMPERATURE": 2.0}  # fmt: skip
DML = {
    "BDKD": ["BDKD.TEACHER.INIT", "pretrained", "BDKD.RULE", "forward"],
    "DCM": ["DCM.TEACHER.INIT", "pretrained", "DCM.HEADS", "none", "DCM.LINKS", "final", "DCM.SMOOTH", 0.0],
    "SWITOKD": ["SWITOKD.TEACHER.INIT", "pretrained"],  # while its teacher does not rest
    "ADAPTKD": ["ADAPTKD.MODULE", "all", "ADAPTKD.TEACHER.CE_WEIGHT", 0.5],  # DML's CE_WEIGHT is both networks'
}


@pytest.mark.parametrize("method", DML)
def test_with_the_same_weights_it_is_dml_of_a_pretrained_teacher(config, method):
    ends, losses = [], []
    for name, own in ((method, DML[method]), ("DML", ["DML.TEACHER.INIT", "pretrained"])):
        cfg = config(name, *own, *(entry for key, value in WEIGHTS.items() for entry in (f"{name}.{key}", value)))
        losses.append(losses_of(distiller_of(cfg)))
        distiller = distiller_of(cfg)
        distiller.pauses = lambda *_: False
        ends.append(stepped(distiller, cfg))
    assert_same_losses(*losses)
    assert ends[0].state_dict().keys() == ends[1].state_dict().keys()
    assert_same_network(*ends)


def test_two_peers_that_learn_nothing_from_the_teacher_are_dml(config):
    cfg = config("PEERS", "PEERS.TEACHER.INIT", "frozen", "PEERS.STUDENTS", ["small", "tiny"], "PEERS.TEMPERATURE", 2.0)
    cfg.PEERS.LOSS.KD_WEIGHT, cfg.PEERS.LOSS.PEER_WEIGHT = 0.0, 3.0
    dml = config("DML", "DML.TEACHER.INIT", "pretrained", "DML.TEMPERATURE", 2.0)
    dml.DML.LOSS.KD_WEIGHT = dml.DML.TEACHER.KD_WEIGHT = 3.0
    peers = distiller_of(cfg)
    both = distiller_of(dml, teacher=copy.deepcopy(peers.students[1]))
    losses = losses_of(peers)
    assert losses.pop("loss_kd_1").item() == losses.pop("loss_kd_2").item() == 0
    names = {"loss_ce_1": "loss_ce", "loss_peer_1": "loss_kd", "loss_ce_2": "loss_teacher_ce"}
    names["loss_peer_2"] = "loss_teacher_kd"
    assert_same_losses({names[name]: loss for name, loss in losses.items()}, losses_of(both))
    stepped(peers, cfg), stepped(both, dml)
    assert_same_network(peers.students[0], both.student)
    assert_same_network(peers.students[1], both.teacher)


def test_the_order_of_the_peers_changes_nothing_but_the_names_of_their_losses(config):
    """To rounding: sums over peers are made in another order."""
    cfg = config("PEERS", "PEERS.TEACHER.INIT", "pretrained", "PEERS.STUDENTS", ["small"] * 4)
    cfg.PEERS.TEACHER.KD_WEIGHT = 1.0
    order = {"2": "4", "3": "2", "4": "3"}  # peer 2 of the first is peer 4 of the second
    one, other = distiller_of(cfg), distiller_of(cfg)
    for name, place in order.items():
        other.peers[place].load_state_dict(one.peers[name].state_dict())
    theirs = losses_of(other)
    for name, loss in losses_of(one).items():
        known = f"{name[:-1]}{order.get(name[-1], name[-1])}"
        assert loss.item() == pytest.approx(theirs[known].item(), rel=1e-5), name
    stepped(one, cfg), stepped(other, cfg)
    for name in ("student", "teacher", *(f"peers.{peer}" for peer in order)):
        known = f"peers.{order[name[-1]]}" if name.startswith("peers") else name
        for own, same in zip(
            one.get_submodule(name).parameters(), other.get_submodule(known).parameters(), strict=True
        ):
            torch.testing.assert_close(own, same, rtol=1e-4, atol=1e-6)


# ---- ATSC's reverse KD ----

TASK = ["ATSC.TEACHER.LEARNS", "task", "ATSC.DRIFT.WEIGHT", 1.0]


def test_a_reverse_term_of_weight_0_or_still_to_come_is_a_teacher_that_learns_its_task_alone(config):
    runs = [
        config("ATSC", *TASK, *more)
        for more in (
            [],
            ["ATSC.LOSS.REVERSE_KD_WEIGHT", 0.0, "ATSC.LOSS.REVERSE_KD_WARMUP_EPOCHS", 1],
            ["ATSC.LOSS.REVERSE_KD_WEIGHT", 0.5, "ATSC.LOSS.REVERSE_KD_WARMUP_EPOCHS", 1],
        )
    ]
    plain, *others = [stepped(distiller_of(cfg), cfg) for cfg in runs]
    for other in others:
        assert_same_network(plain, other)


def test_the_reverse_term_moves_the_teacher_in_the_first_step_and_the_student_by_it_in_the_second(config):
    runs = [config("ATSC", *TASK, "ATSC.LOSS.REVERSE_KD_WEIGHT", weight) for weight in (0.0, 0.5)]
    for steps in (1, 2):
        plain, reverse = (stepped(distiller_of(cfg), cfg, steps) for cfg in runs)
        assert differs(plain.teacher, reverse.teacher)
        assert differs(plain.student, reverse.student) == (steps == 2)


def test_while_its_teacher_is_frozen_atsc_with_the_reverse_term_is_simkd(config):
    frozen = ["ATSC.LOSS.REVERSE_KD_WEIGHT", 0.5, "ATSC.TEACHER.WARMUP_EPOCHS", 1]
    ends = [stepped(distiller_of(cfg), cfg) for cfg in (config("ATSC", *TASK, *frozen), config("SIMKD"))]
    for name in ("student", "projector", "teacher"):
        assert_same_network(*(end.get_submodule(name) for end in ends))
