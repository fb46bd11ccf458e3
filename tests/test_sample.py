"""A fixed part of a loader: drawn from all of it, the same every time, and all of it where it has no more."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.data.sample import sample

LABELS = torch.arange(20).repeat_interleave(50)  # class by class, as folders of images are read


def device_loader():
    images = (torch.arange(1000) % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return DeviceLoader(images, LABELS, 64, [0.0] * 3, [1.0] * 3)


def data_loader():
    return DataLoader(TensorDataset(torch.arange(1000), LABELS), batch_size=64)


def labels_of(batches):
    return torch.cat([batch[1] for batch in batches])


def test_a_sample_has_images_of_all_classes_where_the_first_ones_are_of_two():
    for loader in (device_loader(), data_loader()):
        assert len(labels_of(loader)[:100].unique()) == 2
        labels = labels_of(sample(loader, 100))
        assert len(labels) == 100
        assert len(labels.unique()) == 20  # a class is missed by a draw of 100 with a chance below 1 in 150


def test_both_kinds_of_loader_give_the_same_images_every_time():
    for loader in (device_loader(), data_loader()):
        first, second = (torch.cat([batch[0] for batch in sample(loader, 100)]) for _ in range(2))
        assert torch.equal(first, second)
    assert torch.equal(labels_of(sample(device_loader(), 100)), labels_of(sample(data_loader(), 100)))


def test_a_loader_with_no_more_images_is_gone_through_as_it_is():
    for loader in (device_loader(), data_loader()):
        for part, whole in zip(sample(loader, 1000), loader, strict=True):
            assert torch.equal(part[0], whole[0])
            assert torch.equal(part[1], whole[1])


def test_an_image_comes_with_its_label():
    for numbers, labels in sample(data_loader(), 100):
        assert torch.equal(numbers // 50, labels)


def test_a_list_of_batches_is_left_alone():
    batches = [(torch.zeros(2), torch.zeros(2))]
    assert sample(batches, 1) is batches
