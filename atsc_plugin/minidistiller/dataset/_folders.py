"""Data sets that are folders of images, train and val, with one folder a class; used by the files beside this one.

The tree is checked before torchvision lists it: labels are places in the sorted list of class folders, so a stray
folder, or a val that is not sorted into classes, would give wrong labels without a word.
"""

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from atsc_plugin.errors import PluginError


class IndexedImageFolder(ImageFolder):
    """Adds the image's number, by which contrastive and memory-bank methods know it again."""

    def __getitem__(self, index):
        return (*super().__getitem__(index), index)


def checked_folders(name, folder, classes):
    """(train, val) in `folder`, each with one folder a class, the same in both. A part of the classes will do."""
    train, val = folder / "train", folder / "val"
    if not (train.is_dir() and val.is_dir()):
        raise PluginError(
            f"no {name} at {folder}; expected the folders train and val, in each one folder a class. Unpack it there, "
            f"or name another folder for {folder.name} to lie in with DATASET.ROOT."
        )
    names, val_names = _class_names(train), _class_names(val)
    if not 1 <= len(names) <= classes:
        raise PluginError(
            f"{train} has {len(names)} class folders; expected the {classes} of {name}, or a part of them. Remove what "
            "is no class."
        )
    if names != val_names:
        odd = sorted(set(names) ^ set(val_names))
        raise PluginError(
            f"{val} has {len(val_names)} class folders, expected the {len(names)} of {train}; in one of the two only: "
            f"{', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}. Sort the images of val into the class folders of "
            "train."
        )
    if len(names) < classes:
        print(
            f"{folder} has {len(names)} of the {classes} classes of {name}: labels are 0 to {len(names) - 1}, the "
            f"networks keep {classes} outputs",
            flush=True,
        )
    return train, val


def _class_names(folder):
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


def folder_loaders(folders, transforms, batch_size, val_batch_size, num_workers):
    """(train_loader, val_loader, number of training images) from two folders and their two transforms."""
    train_set = IndexedImageFolder(folders[0], transform=transforms[0])
    val_set = ImageFolder(folders[1], transform=transforms[1])
    common = {"num_workers": num_workers, "pin_memory": torch.cuda.is_available()}
    train_loader = DataLoader(train_set, batch_size=batch_size, shuffle=True, **common)
    return train_loader, DataLoader(val_set, batch_size=val_batch_size, shuffle=False, **common), len(train_set)
