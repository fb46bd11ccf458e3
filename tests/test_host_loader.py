"""A host's data set on the device, or through workers that stay: which way is taken; the law stays the same."""

import pytest
import torch
from host_pictures import CPU, MEAN, PLAIN, loaders, options
from torchvision import transforms
from yacs.config import CfgNode

from atsc_plugin.data import datasets
from atsc_plugin.data.datasets import validation_indices, with_validation_loader
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.data.worker_loader import WorkerLoader
from atsc_plugin.errors import PluginError


def node(loader="auto", share=0.0, augment="none"):
    keys = {"LOADER": loader, "VAL_SPLIT": share, "TYPE": "cifar100", "CROP": "pad", "AUGMENT": augment, "ERASING": 0.0}
    return CfgNode(keys)


def test_known_transforms_go_to_the_device_with_the_same_padding_flips_and_statistics():
    train, val, test, images, classes, names, loading = datasets.host_loaders(loaders(), node(), options(), "plugin")
    assert (type(train).__name__, val, images, classes) == ("DeviceLoader", None, 30, 10)
    assert (train.padding, train.flip, test.padding, test.seed) == (4, True, 0, None)
    assert train.rows[0][:3].tolist() == pytest.approx(MEAN)
    assert (names[3], loading) == ("class 3", "on the device")
    theirs = [batch[0] for batch in loaders()[1]]
    ours = [batch[0] for batch in test]
    assert [len(batch) for batch in ours] == [5, 5, 2]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_validation_split_on_the_device_is_the_one_that_host_loaders_get():
    train, val, _, images, *_ = datasets.host_loaders(loaders(), node(share=0.2), options(), "plugin")
    kept, cut = validation_indices(30, 0.2)
    assert (images, len(train.labels), len(val.labels)) == (24, 24, 6)
    assert val.labels.tolist() == [index % 10 for index in cut]
    _, theirs = with_validation_loader(*loaders()[:2], 0.2)
    assert torch.equal(torch.cat([batch[0] for batch in val]), torch.cat([batch[0] for batch in theirs]))


def test_unknown_transforms_contrastive_samples_and_full_memory_stay_with_the_host(monkeypatch):
    rotated = transforms.Compose([transforms.RandomRotation(20), *PLAIN])
    filled = transforms.Compose([transforms.RandomCrop(32, padding=4, padding_mode="reflect"), *PLAIN])
    for changed in (rotated, filled, transforms.Compose([transforms.RandomHorizontalFlip(0.3), *PLAIN])):
        assert "transforms are not" in datasets.why_not(*loaders(changed)[:2], CPU)
    assert "contrastive" in datasets.why_not(*loaders(extra=(0, 0))[:2], CPU)
    monkeypatch.setattr(datasets, "_free_bytes", lambda device: 2**17)
    assert "MiB that are free on cpu" in datasets.why_not(*loaders()[:2], CPU)
    train, *_ = datasets.host_loaders(loaders(), node(), options(), "plugin")
    assert isinstance(train, WorkerLoader)


def test_the_key_decides_and_a_device_loader_that_cannot_be_is_refused():
    given = loaders()
    assert datasets.host_loaders(given, node("host"), options(), "plugin")[0] is given[0]
    assert datasets.host_loaders(given, node(), options(), "base")[0] is given[0]
    with pytest.raises(PluginError, match="LOADER is device, but cifar100 cannot: SOLVER.TRAINER is base"):
        datasets.host_loaders(loaders(), node("device"), options(), "base")
    with pytest.raises(PluginError, match="its batches carry contrastive samples. Use auto or host"):
        datasets.host_loaders(loaders(extra=(0, 0)), node("device"), options(), "plugin")


def test_a_hosts_images_are_augmented_by_workers_where_its_transforms_are_known():
    asked = node(share=0.2, augment="trivial")
    train, val, test, images, *_, loading = datasets.host_loaders(loaders(), asked, options(), "plugin")
    assert (type(train), type(val), type(test)) == (WorkerLoader, DeviceLoader, DeviceLoader)
    assert (images, loading) == (24, "0 workers: DATASET.AUGMENT trivial")
    kept, _ = validation_indices(30, 0.2)
    labels = {int(i): int(label) for _, some, index in train for label, i in zip(some, index, strict=True)}
    assert labels == {number: index % 10 for number, index in enumerate(kept)}
    rotated = transforms.Compose([transforms.RandomRotation(20), *PLAIN])
    with pytest.raises(PluginError, match="AUGMENT trivial, but cifar100 cannot be augmented here: its transforms are"):
        datasets.host_loaders(loaders(rotated), asked, options(), "plugin")


def test_keys_that_a_hosts_own_loaders_do_not_follow_are_refused():
    datasets.check_host_keys(loaders(), node(share=0.1), 32)
    with pytest.raises(PluginError, match="IMAGE_SIZE is 64, but the host's cifar100 has images of 32 pixels"):
        datasets.check_host_keys(loaders(), node(), 64)
