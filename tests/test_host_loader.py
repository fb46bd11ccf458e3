"""A host's data set on the device, or through workers that stay: which way is taken; the law stays the same."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from atsc_plugin.data import datasets
from atsc_plugin.data.datasets import LoaderFacts, validation_indices, with_validation_loader
from atsc_plugin.data.worker_loader import RankBatches, SeededImages, WorkerLoader
from atsc_plugin.errors import PluginError
from atsc_plugin.seeds import stream

CPU = torch.device("cpu")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
PLAIN = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
TRAIN = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *PLAIN])
TEST = transforms.Compose(PLAIN)


class Pictures(Dataset):
    """What torchvision's CIFAR100 is to a loader."""

    def __init__(self, count, transform, extra=(0,)):
        draw = np.random.default_rng(count)
        self.data = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.targets, self.transform, self.extra = [i % 10 for i in range(count)], transform, extra
        self.classes = [f"class {i}" for i in range(10)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        image = self.transform(transforms.functional.to_pil_image(self.data[index]))
        return (image, self.targets[index], *([index, np.arange(3)][: len(self.extra)]))


def found(transform=TRAIN, extra=(0,)):
    train = DataLoader(Pictures(30, transform, extra), 8, shuffle=True)
    return train, DataLoader(Pictures(12, TEST, ()), 5), 30, 10


def facts(**more):
    return LoaderFacts(8, 5, CPU, 1, **more)


def node(loader="auto", share=0.0):
    return SimpleNamespace(LOADER=loader, VAL_SPLIT=share, TYPE="cifar100")


def test_known_transforms_go_to_the_device_with_the_same_padding_flips_and_statistics():
    train, val, test, images, classes, names = datasets.host_loaders(found(), node(), facts(), "plugin")
    assert (type(train).__name__, val, images, classes) == ("DeviceLoader", None, 30, 10)
    assert (train.padding, train.flip, test.padding, test.seed) == (4, True, 0, None)
    assert train.mean.flatten().tolist() == pytest.approx(MEAN)
    assert names[3] == "class 3"
    theirs = [batch[0] for batch in found()[1]]
    ours = [batch[0] for batch in test]
    assert [len(batch) for batch in ours] == [5, 5, 2]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_the_validation_split_on_the_device_is_the_one_that_host_loaders_get():
    train, val, _, images, *_ = datasets.host_loaders(found(), node(share=0.2), facts(), "plugin")
    kept, cut = validation_indices(30, 0.2)
    assert (images, len(train.labels), len(val.labels)) == (24, 24, 6)
    assert val.labels.tolist() == [index % 10 for index in cut]
    _, theirs = with_validation_loader(*found()[:2], 0.2)
    assert torch.equal(torch.cat([batch[0] for batch in val]), torch.cat([batch[0] for batch in theirs]))


def test_unknown_transforms_contrastive_samples_and_full_memory_stay_with_the_host(monkeypatch):
    rotated = transforms.Compose([transforms.RandomRotation(20), *PLAIN])
    filled = transforms.Compose([transforms.RandomCrop(32, padding=4, padding_mode="reflect"), *PLAIN])
    for changed in (rotated, filled, transforms.Compose([transforms.RandomHorizontalFlip(0.3), *PLAIN])):
        assert "transforms are not" in datasets.why_not(*found(changed)[:2], CPU)
    assert "contrastive" in datasets.why_not(*found(extra=(0, 0))[:2], CPU)
    monkeypatch.setattr(datasets, "_free_bytes", lambda device: 2**17)
    assert "MiB that are free on cpu" in datasets.why_not(*found()[:2], CPU)
    train, *_ = datasets.host_loaders(found(), node(), facts(), "plugin")
    assert isinstance(train, WorkerLoader)


def test_the_key_decides_and_a_device_loader_that_cannot_be_is_refused():
    given = found()
    assert datasets.host_loaders(given, node("host"), facts(), "plugin")[0] is given[0]
    assert datasets.host_loaders(given, node(), facts(), "base")[0] is given[0]
    with pytest.raises(PluginError, match="LOADER is device, but cifar100 cannot: SOLVER.TRAINER is base"):
        datasets.host_loaders(found(), node("device"), facts(), "base")
    with pytest.raises(PluginError, match="its batches carry contrastive samples. Use auto or host"):
        datasets.host_loaders(found(extra=(0, 0)), node("device"), facts(), "plugin")


def epoch_of(loader, epoch, first=0):
    loader.set_epoch(epoch)
    return list(loader.batches_from(first))


def test_keys_that_a_hosts_own_loaders_do_not_follow_are_refused():
    datasets.check_host_keys(found(), node(share=0.1), 32, "KD")
    with pytest.raises(PluginError, match="IMAGE_SIZE is 64, but the host's cifar100 has images of 32 pixels"):
        datasets.check_host_keys(found(), node(), 64, "KD")
    with pytest.raises(PluginError, match="VAL_SPLIT is 0.1, but CRD's memory"):
        datasets.check_host_keys(found(), node(share=0.1), 32, "CRD")


def test_what_a_worker_draws_from_numpy_and_from_python_follows_from_the_seed_too():
    class Drawing:
        def __getitem__(self, index):
            return float(torch.rand(())), np.random.rand(), random.random()

    images = SeededImages(Drawing(), seed=3)
    first, other = images[(1, 5)], images[(1, 6)]
    assert images[(1, 5)] == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_an_image_seeds_the_cpus_generator_alone_and_draws_as_before(monkeypatch):
    class Drawing:
        def __getitem__(self, index):
            return torch.rand(3)

    torch.manual_seed(stream(3, "augment", 1, 5))
    expected = torch.rand(3)
    monkeypatch.setattr(torch, "manual_seed", None)  # it would seed every device: a hundred times the cost
    assert torch.equal(SeededImages(Drawing(), seed=3)[(1, 5)], expected)


def test_a_worker_loader_draws_the_same_whoever_draws_it_and_can_start_inside_an_epoch():
    alone = WorkerLoader(found()[0], facts())
    source = found()[0]
    source.num_workers = 0
    with_workers = WorkerLoader(
        SimpleNamespace(dataset=source.dataset, num_workers=2, collate_fn=source.collate_fn), facts()
    )
    first, again = epoch_of(alone, 3), epoch_of(with_workers, 3)
    assert [len(batch[1]) for batch in first] == [8, 8, 8, 6]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[2], b[2]) for a, b in zip(first, again, strict=True))
    late = epoch_of(alone, 3, first=2)
    assert len(late) == 2
    assert torch.equal(late[0][0], first[2][0])
    assert not torch.equal(epoch_of(alone, 4)[0][2], first[0][2])
    assert len(epoch_of(with_workers, 4)) == 4  # the workers that stayed know the new epoch


def test_the_ranks_of_a_worker_loader_share_every_batch_and_its_draws():
    whole = epoch_of(WorkerLoader(found()[0], facts()), 1)
    parts = [epoch_of(WorkerLoader(found()[0], facts(rank=rank, world=2)), 1) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[number][0] for part in parts]), batch[0])
    seen = [index for batch in RankBatches(30, 8, 1) for _, index in batch]
    assert sorted(seen) == list(range(30))
