"""ImageNet (ILSVRC2012) with mdistiller's transforms and batches: training gives (image, target, index), val
(image, target).

The folders are looked for in `imagenet` of the `data` folder beside the atsc_plugin package. Called by get_dataset.
"""

from pathlib import Path

from torchvision import transforms

from ._folders import checked_folders, folder_loaders
from .cifar100 import get_data_folder

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def get_imagenet_train_transform():
    return transforms.Compose([transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *_normalised()])


def get_imagenet_test_transform():
    return transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), *_normalised()])


def _normalised():
    return transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)


def get_imagenet_dataloaders(batch_size, val_batch_size, num_workers):
    """(train_loader, val_loader, number of training images)"""
    folders = checked_folders("ImageNet", Path(get_data_folder()) / "imagenet", 1000)
    both = (get_imagenet_train_transform(), get_imagenet_test_transform())
    return folder_loaders(folders, both, batch_size, val_batch_size, num_workers)
