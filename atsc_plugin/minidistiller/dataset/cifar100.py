"""CIFAR-100 with mdistiller's transforms and batches: training gives (image, target, index), testing (image, target).

The files are looked for in HOME's `data` folder and fetched only when asked for.
Called by get_dataset.
"""

from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR100

from .. import HOME

_MEAN, _STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


class IndexedCIFAR100(CIFAR100):
    """Adds the image's number, by which contrastive and memory-bank methods know it again."""

    def __getitem__(self, index):
        return (*super().__getitem__(index), index)


def get_data_folder():
    return str(HOME / "data")


def get_cifar100_test_transform():
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)])


def get_cifar100_train_transform():
    augmentation = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    return transforms.Compose(augmentation + get_cifar100_test_transform().transforms)


def get_cifar100_dataloaders(batch_size, val_batch_size, num_workers, download=False):
    """(train_loader, test_loader, number of training images)"""
    root = get_data_folder()
    train_set = IndexedCIFAR100(root, train=True, transform=get_cifar100_train_transform(), download=download)
    test_set = CIFAR100(root, train=False, transform=get_cifar100_test_transform(), download=download)
    train_loader = DataLoader(train_set, batch_size=batch_size, shuffle=True, num_workers=num_workers)
    test_loader = DataLoader(test_set, batch_size=val_batch_size, shuffle=False, num_workers=num_workers)
    return train_loader, test_loader, len(train_set)
