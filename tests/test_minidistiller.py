"""The embedded host's distillers and CIFAR-100: modes, losses worked out by hand, data on disk.

Its numbers are held in test_contracts.py, its trainer in test_minidistiller_engine.py.
"""

import math
import os
import pickle

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.datasets import CIFAR100

from atsc_plugin.minidistiller.dataset import cifar100, get_dataset
from atsc_plugin.minidistiller.distillers import KD, distiller_dict
from atsc_plugin.minidistiller.distillers._base import Distiller
from atsc_plugin.minidistiller.distillers.DKD import dkd_loss
from atsc_plugin.minidistiller.distillers.KD import kd_loss
from atsc_plugin.minidistiller.distillers.ReviewKD import hcl_loss
from atsc_plugin.minidistiller.engine.cfg import CFG
from atsc_plugin.minidistiller.models import cifar_model_dict


def network():
    return cifar_model_dict["resnet8"][0](num_classes=5)


def batch():
    return torch.randn(6, 3, 32, 32), torch.arange(6) % 5


# Distillers


def test_a_distiller_in_training_mode_keeps_its_teacher_in_eval_mode():
    distiller = KD(network(), network(), CFG)
    distiller.train()
    assert distiller.training
    assert distiller.student.bn1.training
    assert not any(module.training for module in distiller.teacher.modules())
    distiller.eval()
    assert not distiller.student.bn1.training


def test_a_distiller_returns_losses_in_training_and_logits_alone_in_evaluation():
    distiller = KD(network(), network(), CFG)
    image, target = batch()
    logits, losses = distiller(image=image, target=target, epoch=1, index=target)
    assert logits.shape == (6, 5)
    assert set(losses) == {"loss_ce", "loss_kd"}
    distiller.eval()
    assert torch.equal(distiller(image=image), distiller.student(image)[0])


def test_the_optimizer_gets_the_student_and_never_the_teacher():
    distiller = KD(network(), network(), CFG)
    learnable = {id(parameter) for parameter in distiller.get_learnable_parameters()}
    assert learnable == {id(parameter) for parameter in distiller.student.parameters()}
    assert distiller.get_extra_parameters() == 0


def test_a_distiller_without_forward_train_says_so():
    with pytest.raises(NotImplementedError, match="Distiller has to define forward_train"):
        Distiller(network(), network())(image=torch.randn(2, 3, 32, 32), target=torch.zeros(2))


def test_vanilla_is_the_cross_entropy_and_no_distiller():
    vanilla = distiller_dict["NONE"](network()).train()
    image, target = batch()
    logits, losses = vanilla(image=image, target=target)
    assert not isinstance(vanilla, Distiller)
    assert list(losses) == ["ce"]
    log_p = logits.log_softmax(1)
    expected = -sum(log_p[i, target[i]].item() for i in range(6)) / 6
    assert losses["ce"].item() == pytest.approx(expected, rel=1e-6)


# Loss formulas, worked out by hand

STUDENT, TEACHER = (0.2, -1.0, 0.7), (1.5, 0.3, -0.6)


def softened(logits, temperature):
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def rows(*logits):
    return torch.tensor(logits, dtype=torch.float64)


def test_kd_loss_is_the_softened_divergence_from_the_teacher_times_t_squared():
    expected = 16 * kl(softened(TEACHER, 4), softened(STUDENT, 4))
    assert kd_loss(rows(STUDENT), rows(TEACHER), 4).item() == pytest.approx(expected, rel=1e-12)
    two_images = kd_loss(rows(STUDENT, STUDENT), rows(TEACHER, STUDENT), 4)
    assert two_images.item() == pytest.approx(expected / 2, rel=1e-12)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_dkd_loss_weighs_label_against_rest_and_the_rest_among_itself(label):
    p_t, p_s = softened(TEACHER, 4), softened(STUDENT, 4)
    target_part = kl([p_t[label], 1 - p_t[label]], [p_s[label], 1 - p_s[label]])
    others = [i for i in range(3) if i != label]
    other_part = kl(softened([TEACHER[i] for i in others], 4), softened([STUDENT[i] for i in others], 4))
    found = dkd_loss(rows(STUDENT), rows(TEACHER), torch.tensor([label]), 3.0, 8.0, 4)
    assert found.item() == pytest.approx(16 * (3 * target_part + 8 * other_part), rel=1e-10)


def test_dkd_loss_stays_finite_when_a_network_is_certain():
    certain, unsure = torch.tensor([[400.0, 0.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 1.0, 2.0]])
    loss = dkd_loss(certain, unsure, torch.tensor([0]), 1.0, 8.0, 1.0)
    loss.backward()
    assert math.isfinite(loss.item())
    assert certain.grad.isfinite().all()


def test_review_loss_pools_to_the_levels_below_the_maps_own_size():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    full = ((student - teacher) ** 2).mean()
    pooled = ((student.mean((2, 3)) - teacher.mean((2, 3))) ** 2).mean()
    expected = (full + pooled / 2) / 1.5
    assert hcl_loss([student], [teacher]).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_feature_map_is_not_overwritten_by_what_the_network_does_next():
    for name in ("resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"):
        _, features = cifar_model_dict[name][0](num_classes=10).train()(torch.randn(2, 3, 32, 32))
        assert all(before.min() < 0 for before in features.get("preact_feats", [])[1:]), name
        if name not in ("wrn_16_1", "MobileNetV2"):
            for after, before in zip(features["feats"][1:], features["preact_feats"][1:], strict=True):
                found, expected = (m.clamp_min(0).sum().item() for m in (after, before))
                assert found == pytest.approx(expected, rel=1e-4), name


# CIFAR-100


def write_cifar100(root, counts):
    folder = root / CIFAR100.base_folder
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for split, count in counts.items():
        pixels = rng.randint(0, 256, (count, 3072), dtype=np.uint8)
        entry = {"data": pixels, "fine_labels": [i % 100 for i in range(count)]}
        (folder / split).write_bytes(pickle.dumps(entry))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))
    return folder


def test_cifar100_on_disk_gives_indexed_training_tuples_and_plain_test_tuples(tmp_path, monkeypatch):
    folder = write_cifar100(tmp_path, {"train": 10, "test": 6})
    # torchvision compares MD5 sums with the published files', which a made-up folder cannot have.
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    monkeypatch.setattr(cifar100, "get_data_folder", lambda: str(tmp_path))
    cfg = CFG.clone()
    cfg.defrost()
    cfg.DATASET.NUM_WORKERS, cfg.SOLVER.BATCH_SIZE, cfg.DATASET.TEST.BATCH_SIZE = 0, 4, 4
    train, test, num_data, num_classes = get_dataset(cfg)
    assert (num_data, num_classes, len(train), len(test)) == (10, 100, 3, 2)
    batches = list(train)
    assert sorted(torch.cat([index for _, _, index in batches]).tolist()) == list(range(10))
    assert all(torch.equal(target, index % 100) for _, target, index in batches)
    image, target = next(iter(test))
    assert target.tolist() == [0, 1, 2, 3]
    raw = pickle.loads((folder / "test").read_bytes())["data"][0].reshape(3, 32, 32)
    mean, std = (np.reshape(v, (3, 1, 1)) for v in ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)))
    assert np.allclose(image[0].numpy(), (raw / 255 - mean) / std, atol=1e-6)


def test_a_damaged_cifar100_folder_is_not_taken_for_the_real_one(tmp_path, monkeypatch):
    write_cifar100(tmp_path, {"train": 2, "test": 2})
    monkeypatch.setattr(cifar100, "get_data_folder", lambda: str(tmp_path))
    with pytest.raises(RuntimeError, match="corrupted"):
        cifar100.get_cifar100_dataloaders(2, 2, 0)


def test_the_transforms_are_the_published_crop_flip_and_normalisation():
    normalisation = [
        transforms.ToTensor(),
        transforms.Normalize((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    ]
    published = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *normalisation]
    )
    assert repr(cifar100.get_cifar100_train_transform()) == repr(published)
    assert repr(cifar100.get_cifar100_test_transform()) == repr(transforms.Compose(normalisation))


def test_the_data_folder_lies_beside_the_package_and_is_not_made_by_asking():
    folder = cifar100.get_data_folder()
    existed = os.path.exists(folder)
    package = os.path.dirname(os.path.dirname(os.path.dirname(cifar100.__file__)))
    assert folder == os.path.join(os.path.dirname(package), "data")
    assert cifar100.get_data_folder() == folder
    assert os.path.exists(folder) is existed
