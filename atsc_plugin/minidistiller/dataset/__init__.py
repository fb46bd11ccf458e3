"""get_dataset(cfg): the loaders DATASET.TYPE names, with their sizes. Called once per run, before the networks."""

from importlib import import_module

# By DATASET.TYPE: the module beside this one, imported when it is asked for (torchvision takes two seconds); its
# function; the classes.
_SUPPORTED = {
    "cifar100": ("get_cifar100_dataloaders", 100),
    "tiny_imagenet": ("get_tinyimagenet_dataloader", 200),
    "imagenet": ("get_imagenet_dataloaders", 1000),
}


def get_dataset(cfg):
    """(train_loader, val_loader, number of training images, number of classes)"""
    function, classes = _SUPPORTED[cfg.DATASET.TYPE]
    make = getattr(import_module(f".{cfg.DATASET.TYPE}", __package__), function)
    # DOWNLOAD is not one of mdistiller's keys: absent unless a plugin adds it. Only CIFAR-100 can be fetched.
    own = {"download": cfg.DATASET.get("DOWNLOAD", False)} if cfg.DATASET.TYPE == "cifar100" else {}
    loaders = make(
        batch_size=cfg.SOLVER.BATCH_SIZE,
        val_batch_size=cfg.DATASET.TEST.BATCH_SIZE,
        num_workers=cfg.DATASET.NUM_WORKERS,
        **own,
    )
    return (*loaders, classes)
