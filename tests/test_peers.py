"""PEERS: who learns from whom, what one student and equal ones learn, and which student leaves."""

import pytest
import torch
from co_trained import co_trained_config, distiller_of, losses_of, network, reached
from runs import tiny_loader
from tiny import batch

from atsc_plugin.errors import ConfigError
from atsc_plugin.host import distiller_dict
from atsc_plugin.losses import softened_divergence
from atsc_plugin.methods.peers import peer_divergence
from atsc_plugin.networks.deployed import deployed_of


@pytest.fixture
def config(tmp_path, monkeypatch):
    return lambda *pairs: co_trained_config(tmp_path, monkeypatch, "PEERS", "PEERS.TEACHER.INIT", "pretrained", *pairs)


def test_every_loss_reaches_its_own_network_and_no_other(config):
    distiller = distiller_of(config("PEERS.STUDENTS", ["small"] * 3, "PEERS.TEACHER.KD_WEIGHT", 1.0))
    for name, loss in losses_of(distiller).items():
        reached(distiller, loss)
        moved = {path.partition(".conv")[0] for path, p in distiller.named_parameters()
                 if path.endswith(".conv.weight") and p.grad is not None}  # fmt: skip
        wanted = {"1": "student", "2": "peers.2", "3": "peers.3"}.get(name[-1], "teacher")
        assert moved == {wanted}, name


def test_a_frozen_teacher_keeps_weights_and_statistics_and_one_that_learns_moves_both(config):
    for init in ("frozen", "pretrained"):
        distiller = distiller_of(config("PEERS.TEACHER.INIT", init))
        before = {name: tensor.clone() for name, tensor in distiller.teacher.state_dict().items()}
        optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.1)
        sum(losses_of(distiller).values()).backward()
        optimizer.step()
        after = distiller.teacher.state_dict()
        for name in ("conv.weight", "bn.running_mean"):
            assert torch.equal(after[name], before[name]) == (init == "frozen"), (init, name)


def test_one_student_of_a_frozen_teacher_is_averkds_to_the_bit_and_the_hosts_kds_to_rounding(config):
    cfg = config("PEERS.STUDENTS", ["small"], "PEERS.TEACHER.INIT", "frozen", "KD.TEMPERATURE", 4)
    cfg.merge_from_list(["KD.LOSS.CE_WEIGHT", 1.0, "KD.LOSS.KD_WEIGHT", 1.0])
    losses = losses_of(distiller_of(cfg))
    assert losses.keys() == {"loss_ce_1", "loss_kd_1"}
    student, teacher = network("small", 1), network("tiny", 2)
    other = losses_of(distiller_dict["AVERKD"](student, [teacher], cfg))
    assert torch.equal(losses["loss_ce_1"], other["loss_ce"]) and torch.equal(losses["loss_kd_1"], other["loss_kd"])
    host = losses_of(distiller_dict["KD"](network("small", 1), network("tiny", 2), cfg))
    assert losses["loss_kd_1"].item() == pytest.approx(host["loss_kd"].item(), rel=1e-5)


def test_peers_are_kd_to_the_mean_probability_of_the_others_and_equal_ones_teach_nothing():
    draw = torch.Generator().manual_seed(0)
    logits = [torch.randn(4, 5, generator=draw, dtype=torch.double) for _ in range(3)]
    own = logits[0].requires_grad_()
    (gradient,) = torch.autograd.grad(peer_divergence(logits, 0, 1.0), own)
    mean = ((logits[1].softmax(1) + logits[2].softmax(1)) / 2).log()
    (wanted,) = torch.autograd.grad(softened_divergence(own, mean, 1.0), own)
    torch.testing.assert_close(gradient, wanted)
    equal = peer_divergence([own, own.detach()], 0, 1.0)
    (gradient,) = torch.autograd.grad(equal, own)
    assert equal.item() == pytest.approx(0, abs=1e-12) and gradient.abs().max() < 1e-12
    assert peer_divergence([own], 0, 1.0) is None


def test_the_students_start_apart_and_the_ensemble_is_the_mean_of_their_logits(config):
    distiller = distiller_of(config("PEERS.STUDENTS", ["small", "small", "tiny"])).eval()
    first, second, third = distiller.students
    assert not torch.equal(first.conv.weight, second.conv.weight)
    assert third.fc.in_features == 8
    images, _ = batch()
    with torch.no_grad():
        mean = sum(student(images)[0] for student in distiller.students) / 3
        assert torch.allclose(distiller.ensemble(images), mean, atol=1e-7)


class Counted(list):
    """Batches that note in `passes` how often they are gone through."""

    def __init__(self, batches, passes):
        super().__init__(batches)
        self.passes = passes

    def __iter__(self):
        self.passes.append(1)
        return super().__iter__()


def test_the_first_is_deployed_or_the_best_on_validation(config):
    cfg = config()
    cfg.EXPERIMENT.SELECT_ON = "val"
    for deploy in ("first", "best"):
        cfg.PEERS.DEPLOY = deploy
        distiller = distiller_of(cfg)
        for student, good in zip(distiller.students, (0, 1), strict=True):
            torch.nn.init.zeros_(student.fc.weight)
            student.fc.bias.data = torch.arange(10.0) * (-1 if good else 1)  # class 0, of which there are more; or 9
        passes = []
        figures = distiller.train().after_epoch(1, Counted(tiny_loader(), passes)).figures
        assert len(passes) == 4  # the teacher, each student once, the ensemble
        chosen = distiller.students[deploy == "best"]
        images, _ = batch()
        with torch.no_grad():
            wanted = chosen.eval()(images)[0]
            assert torch.equal(distiller.eval()(image=images), wanted)
            assert torch.equal(deployed_of(distiller)(images), wanted)
        count = sum(p.numel() for p in deployed_of(distiller).parameters())
        assert count == sum(p.numel() for p in distiller.student.parameters())
        assert figures.get("chosen_student") == (2 if deploy == "best" else None)
        assert figures["students_mean_top1"] == pytest.approx(100 * (3 / 24 + 2 / 24) / 2)  # 24 images of 10 classes


def test_the_epoch_counts_for_the_student_that_leaves_after_it(config):
    cfg = config("PEERS.DEPLOY", "best")
    cfg.EXPERIMENT.SELECT_ON = "val"
    distiller = distiller_of(cfg)
    loader = [(batch()[0], torch.tensor([0, 0, 0, 1, 2, 9]))]
    for student, top in zip(distiller.students, (9, 0), strict=True):
        torch.nn.init.zeros_(student.fc.weight)
        student.fc.bias.data = (torch.arange(10) == top).float()
    figures = distiller.after_epoch(1, loader).figures
    assert (figures["chosen_student"], figures["top1"]) == (2, 50.0)  # three of six; the first student has one


def test_mistakes_are_told_together(config):
    cfg = config("PEERS.STUDENTS", ["tiny", "smal"], "PEERS.DEPLOY", "best", "PEERS.TEACHER.INIT", "frozen")
    cfg.merge_from_list(["PEERS.TEACHER.KD_WEIGHT", 1.0, "PEERS.TEACHER.LR_SCALE", 0.5])
    with pytest.raises(ConfigError) as error:
        distiller_of(cfg)
    told = "\n".join(error.value.problems)
    for part in ("PEERS.STUDENTS: got 'smal'", "did you mean small", "begins with tiny", "chooses among equal networks",
                 "SELECT_ON is auto", "PEERS.TEACHER.KD_WEIGHT has no", "PEERS.TEACHER.LR_SCALE has no"):  # fmt: skip
        assert part in told, told
