"""Tiny-ImageNet with mdistiller's transforms and batches: training gives (image, target, index), val (image, target).

The folders are looked for in tiny-imagenet-200 of the `data` folder beside the atsc_plugin package. Called by
get_dataset.
"""

from pathlib import Path

from torchvision import transforms

from ._folders import checked_folders, folder_loaders
from .cifar100 import get_data_folder

_MEAN, _STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)


def get_tinyimagenet_test_transform():
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)])


def get_tinyimagenet_train_transform():
    augmentation = [transforms.RandomRotation(20), transforms.RandomHorizontalFlip()]
    return transforms.Compose(augmentation + get_tinyimagenet_test_transform().transforms)


def get_tinyimagenet_dataloader(batch_size, val_batch_size, num_workers):
    """(train_loader, val_loader, number of training images)"""
    folders = checked_folders("Tiny-ImageNet", Path(get_data_folder()) / "tiny-imagenet-200", 200)
    both = (get_tinyimagenet_train_transform(), get_tinyimagenet_test_transform())
    return folder_loaders(folders, both, batch_size, val_batch_size, num_workers)
