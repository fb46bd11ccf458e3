"""Loaders as a host makes them, around a few images in memory: what torchvision's CIFAR-100 is to a loader."""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from atsc_plugin.data.datasets import LoaderOptions

CPU = torch.device("cpu")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
PLAIN = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
TRAIN = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *PLAIN])
TEST = transforms.Compose(PLAIN)


class Pictures(Dataset):
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


def loaders(transform=TRAIN, extra=(0,)):
    train = DataLoader(Pictures(30, transform, extra), 8, shuffle=True)
    return train, DataLoader(Pictures(12, TEST, ()), 5), 30, 10


def options(**more):
    return LoaderOptions(8, 5, CPU, 1, **more)
