"""get_dataset(cfg): the loaders DATASET.TYPE names, with their sizes. Called once per run, before the networks."""

from .cifar100 import get_cifar100_dataloaders

_SUPPORTED = ("cifar100",)


def get_dataset(cfg):
    """(train_loader, val_loader, number of training images, number of classes)"""
    if cfg.DATASET.TYPE not in _SUPPORTED:
        raise ValueError(
            f"DATASET.TYPE is {cfg.DATASET.TYPE!r}; the embedded host has {', '.join(map(repr, _SUPPORTED))}: "
            "set one of these, or install mdistiller for the others"
        )
    loaders = get_cifar100_dataloaders(
        batch_size=cfg.SOLVER.BATCH_SIZE,
        val_batch_size=cfg.DATASET.TEST.BATCH_SIZE,
        num_workers=cfg.DATASET.NUM_WORKERS,
        download=cfg.DATASET.get("DOWNLOAD", False),  # not one of mdistiller's keys: absent unless a plugin adds it
    )
    return (*loaders, 100)
