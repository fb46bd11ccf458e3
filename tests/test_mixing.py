"""Mixup, CutMix, label smoothing: the arithmetic, what the draws follow from, who refuses them, resuming, recording."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from every_method import NAMES, Loaders, distiller_of, network
from every_method import config as config_of
from runs import Before, assert_the_same_run, config, dying, log_of, tiny_loader, without_times
from tape import Tape
from tiny import TinyNet, batch

from atsc_plugin import contract, host, teachers
from atsc_plugin.config import check
from atsc_plugin.engine import distributed, graph, mixing
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import PluginError
from atsc_plugin.losses import hard_labels
from atsc_plugin.methods.atsc import ATSC
from atsc_plugin.methods.base import class_of

CPU = torch.device("cpu")
BOTH = ["SOLVER.MIXUP", 0.8, "SOLVER.CUTMIX", 1.0, "SOLVER.LABEL_SMOOTHING", 0.1]
REFUSING = {"DKD", "DKD_MULTI", "SWITOKD"}


@pytest.fixture(autouse=True, scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(host.cifar_model_dict, "tiny", (network, None))
        yield


# ---- arithmetic ----


def test_smoothed_labels_are_those_of_torchs_cross_entropy():
    labels, logits = torch.tensor([2, 0]), torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, -1.0]])
    soft = mixing.soft_labels(labels, 4, 0.2)
    assert torch.allclose(soft, torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]]))
    assert F.cross_entropy(logits, soft).item() == pytest.approx(
        F.cross_entropy(logits, labels, label_smoothing=0.2).item(), abs=1e-6
    )


def test_mixup_is_the_weighted_mean_of_an_image_and_its_partner_and_of_their_labels():
    image = torch.tensor([1.0, 5.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    target = mixing.soft_labels(torch.tensor([0, 1]), 3)
    x, y = mixing.mixed(image, target, torch.tensor([1, 0]), torch.tensor([0.75, 0.0, 0.5, 0.5]))
    assert torch.allclose(x[0], torch.tensor(0.75 * 1 + 0.25 * 5)) and torch.allclose(x[1], torch.tensor(4.0))
    assert torch.allclose(y, torch.tensor([[0.75, 0.25, 0.0], [0.25, 0.75, 0.0]]))
    assert hard_labels(y).tolist() == [0, 1]


def test_cutmix_pastes_the_partners_box_and_the_label_has_the_share_of_pixels_that_is_left():
    """Side 0.5 of 8 x 4 pixels around row 6, column 2: rows 4 to 7 and columns 1 to 2, 8 of 32 pixels."""
    image = torch.zeros(2, 3, 8, 4)
    image[1] = 1.0
    target = mixing.soft_labels(torch.tensor([0, 1]), 2)
    x, y = mixing.mixed(image, target, torch.tensor([1, 0]), torch.tensor([1.0, 0.5, 0.75, 0.5]))
    wanted = torch.zeros(8, 4)
    wanted[4:8, 1:3] = 1.0
    assert torch.equal(x[0, 2], wanted) and torch.equal(x[1, 0], 1 - wanted)
    assert torch.allclose(y, torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
    # at the border the box is cut off, and the label counts what is left of it: rows 5 to 7, columns 1 and 2
    x, y = mixing.mixed(image, target, torch.tensor([1, 0]), torch.tensor([1.0, 0.5, 0.999, 0.5]))
    assert x[0, 0].sum().item() == 6 and y[0, 0].item() == pytest.approx(1 - 6 / 32)


def made(*pairs, classes=10, seed=1):
    cfg = config("nowhere", *BOTH, *pairs, "EXPERIMENT.SEED", seed)
    return mixing.Mixing(cfg, TinyNet(), classes)


def test_draws_follow_from_seed_epoch_step_and_rank_and_half_of_the_batches_get_each(monkeypatch):
    mix = made()
    one = mix.draw(2, 7, 8, CPU)
    assert all(map(torch.equal, one, made().draw(2, 7, 8, CPU)))
    assert sorted(one[0].tolist()) == list(range(8))
    others = [mix.draw(3, 7, 8, CPU), mix.draw(2, 8, 8, CPU), made(seed=2).draw(2, 7, 8, CPU)]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    others.append(mix.draw(2, 7, 8, CPU))
    assert not any(torch.equal(one[1], other[1]) for other in others)
    kinds = [mix.draw(1, step, 4, CPU)[1] for step in range(200)]
    cut = [numbers for numbers in kinds if numbers[1] > 0]
    assert 70 < len(cut) < 130 and all(numbers[0] == 1 for numbers in cut)
    mean = torch.stack([1 - numbers[1] ** 2 for numbers in cut]).mean()
    assert 0.4 < mean < 0.6  # Beta(1, 1): uniform
    assert made("SOLVER.MIXUP", 0.0, "SOLVER.CUTMIX", 0.0).draw(1, 0, 4, CPU) == ()


def test_views_of_a_fork_are_mixed_alike_and_classes_come_from_the_student_where_nobody_says():
    own = made(classes=None)
    own.student.num_batches = None
    images, labels = batch(4)
    mixed = own({"image": (images, 2 * images), "target": labels}, own.draw(1, 0, 4, CPU))
    assert torch.allclose(mixed["image"][1], 2 * mixed["image"][0], atol=1e-6)
    assert mixed["target"].shape == (4, 10) and torch.allclose(mixed["target"].sum(1), torch.ones(4))
    assert own.student.training


# ---- methods ----


def test_methods_that_split_or_look_up_classes_say_so():
    assert {name for name in NAMES if class_of(name).HARD_LABELS} == REFUSING
    assert class_of("CRD").HARD_LABELS and class_of("A_METHOD_OF_A_FORK").HARD_LABELS
    assert not any(class_of(name).HARD_LABELS for name in ("AT", "SP", "VID", "REVIEWKD"))


@pytest.mark.parametrize("name", sorted(REFUSING))
def test_a_method_of_hard_labels_refuses_them_by_name_in_a_file_and_in_a_foreign_script(tmp_path, name):
    cfg = config_of(name, tmp_path, *BOTH)
    for key, value in (("MIXUP", "0.8"), ("CUTMIX", "1"), ("LABEL_SMOOTHING", "0.1")):
        assert f"SOLVER.{key} is {value}, but {name} needs one class an image. Use 0.0." in check(cfg)
    with pytest.raises(PluginError, match=f"SOLVER.MIXUP is 0.8, but {name} needs one class an image"):
        PluginTrainer("run", distiller_of(cfg), tiny_loader(seed=5), tiny_loader(), cfg, folder=tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSING])
def test_the_losses_of_soft_labels_of_one_class_are_those_of_the_class(tmp_path, name):
    """And CE is linear in the labels: half of each of two labellings costs half of both."""
    distiller = distiller_of(config_of(name, tmp_path)).train()
    method = contract.of(distiller, config_of(name, tmp_path))
    method.begin(Loaders())
    method.driven = True
    method.before_epoch(1)
    images, labels = batch(8)

    def losses(target):
        torch.manual_seed(0)
        return {key: term.item() for key, term in distiller(image=images, target=target, epoch=1)[1].items()}

    hard, other = losses(labels), losses(labels.flip(0))
    soft = [mixing.soft_labels(each, 10) for each in (labels, labels.flip(0))]
    assert losses(soft[0]) == pytest.approx(hard, rel=1e-5, abs=1e-6)
    assert losses(sum(soft) / 2) == pytest.approx({key: (hard[key] + other[key]) / 2 for key in hard}, rel=1e-4)


def test_a_hosts_trainer_does_not_mix(tmp_path):
    found = check(config("nowhere", *BOTH, "SOLVER.TRAINER", "base"))
    assert sum("SOLVER.TRAINER base does not read it" in problem for problem in found) == 3


def test_a_teacher_trained_here_has_its_own_mixing_and_none_of_the_students(tmp_path):
    data = SimpleNamespace(identity="toy")
    plain = teachers.recipe(config(tmp_path), data)
    assert teachers.recipe(config(tmp_path, *BOTH), data) == plain
    assert teachers.recipe(config(tmp_path, "TEACHER.MIXUP", 0.2), data) == {**plain, "mixup": 0.2}


# ---- runs ----


def trainer_of(cfg, folder):
    torch.manual_seed(1)
    distiller = ATSC(TinyNet(width=4), TinyNet(width=6), cfg)
    return PluginTrainer("run", distiller, tiny_loader(seed=5, count=60), tiny_loader(start=1), cfg, folder=folder)


def test_teacher_and_student_see_the_same_mixed_batch_and_the_training_top1_is_a_share_of_images(tmp_path):
    cfg = config(tmp_path, "SOLVER.EPOCHS", 1, "DISTILLER.TYPE", "KD", *BOTH)
    distiller, seen = host.distiller_dict["KD"](TinyNet(width=4), TinyNet(width=6), cfg), {"student": [], "teacher": []}
    for name, images in seen.items():
        distiller.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, images=images: images.append(inputs[0]) if distiller.training else None
        )
    loader = tiny_loader(seed=5)
    plain = [image for image, *_ in loader]
    trainer = PluginTrainer("run", distiller, loader, tiny_loader(start=1), cfg, folder=tmp_path / "run")
    trainer.train()
    student, teacher = (images[-3:] for images in seen.values())  # before them the teacher was measured
    assert len(student) == 3 and all(map(torch.equal, student, teacher))
    assert not any(torch.equal(one, two) for one in student for two in plain)
    (line,) = log_of(trainer.folder)
    assert (line["train_top1"] * 24 / 100) == pytest.approx(round(line["train_top1"] * 24 / 100))


def test_a_mixed_run_resumes_inside_an_epoch_bit_for_bit(tmp_path):
    cfg = config(tmp_path, "SOLVER.EPOCHS", 2, "LOG.CHECKPOINT_STEPS", 3, *BOTH)
    whole = trainer_of(cfg, tmp_path / "whole")
    whole.train()
    dies = trainer_of(cfg, tmp_path / "run")
    dies.step = Before(dies.step, dying(6))
    with pytest.raises(KeyboardInterrupt):
        dies.train()
    resumed = trainer_of(cfg, tmp_path / "run")
    resumed.train(resume=True)
    assert_the_same_run(whole, resumed)
    cfg.SOLVER.MIXUP = 0.4
    other = trainer_of(cfg, tmp_path / "other")
    other.train()
    weights = [each.distiller.student.conv.weight for each in (whole, other)]
    assert not torch.equal(*weights)


def test_a_recorded_step_mixes_what_is_drawn_anew_for_each_batch(tmp_path, monkeypatch):
    sgd = torch.optim.SGD
    monkeypatch.setitem(graph.RECORDERS, "cpu", Tape)
    monkeypatch.setattr(torch.optim, "SGD", lambda *args, **kwargs: sgd(*args, **{**kwargs, "fused": True}))
    cfg = config(tmp_path, "SOLVER.EPOCHS", 2, *BOTH)
    recorded = trainer_of(cfg, tmp_path / "recorded")
    assert recorded.recorded is not None
    recorded.train()
    assert re.search("whole step", (recorded.folder / "about.json").read_text())
    cfg.SOLVER.GRAPH = "none"
    eager = trainer_of(cfg, tmp_path / "eager")
    eager.train()
    for name, tensor in eager.distiller.state_dict().items():
        assert torch.equal(tensor, recorded.distiller.state_dict()[name]), name
    assert list(map(without_times, log_of(eager.folder))) == list(map(without_times, log_of(recorded.folder)))
