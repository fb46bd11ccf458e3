"""Keys of the run itself: its seed, its device, its data."""

from atsc_plugin.cards import LARGEST_SIDE
from atsc_plugin.key_table.entry import Key

MOST_DIGITS = 200_000  # images of 3 kB each, composed in a minute or two

KEYS = (
    Key(
        "EXPERIMENT.SEED",
        1,
        "initialisation, order of the images and augmentation each follow from it",
        minimum=0,
        maximum=2**63,
    ),
    Key(
        "EXPERIMENT.SELECT_ON",
        "auto",
        "images that choose the best epoch: val, test (mdistiller's habit; the table says so), "
        "or auto: val where the data have a validation split, else test",
        choices=("auto", "val", "test"),
    ),
    Key("EXPERIMENT.DEVICE", "auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ..."),
    Key("DATASET.ROOT", "", "the .npz file, or the folder that holds the data; empty: the host's own data folder"),
    Key("DATASET.DOWNLOAD", False, "fetch CIFAR-100 when it is absent"),
    Key(
        "DATASET.VAL_SPLIT",
        0.0,
        "share of the training images cut off for validation, the same for every run",
        minimum=0.0,
    ),
    Key(
        "DATASET.IMAGE_SIZE",
        0,
        "side in pixels that npz, folder and cifar10 images are resized to; 0: they must fit (32)",
        minimum=0,
        maximum=LARGEST_SIDE,
    ),
    Key("DATASET.MEAN", [], "mean by channel in 0..1; empty: of the training images (npz, folder, cifar10, digits100)"),
    Key("DATASET.STD", [], "standard deviation by channel; empty: of the training images"),
    Key(
        "DATASET.FLIP",
        "auto",
        "random mirroring of npz, folder, cifar10: horizontal, none, or auto (not for npz and digits100)",
        choices=("auto", "horizontal", "none"),
    ),
    Key(
        "DATASET.PADDING",
        4,
        "zero padding of the random crop of npz, folder, cifar10 and digits100",
        minimum=0,
        maximum=1024,
    ),
    Key(
        "DATASET.DIGITS100.TRAIN_IMAGES",
        5000,
        "digits100: training images to compose",
        minimum=100,
        maximum=MOST_DIGITS,
    ),
    Key("DATASET.DIGITS100.VAL_IMAGES", 1000, "digits100: validation images", minimum=100, maximum=MOST_DIGITS),
    Key("DATASET.DIGITS100.TEST_IMAGES", 10000, "digits100: test images", minimum=100, maximum=MOST_DIGITS),
    Key(
        "DATASET.DIGITS100.SEED",
        0,
        "digits100: which images are composed; not the seed of the run",
        minimum=0,
        maximum=2**63,
    ),
    Key(
        "LOG.CHECKPOINT_MINUTES",
        0.0,
        "also write `latest` inside an epoch when this many minutes have passed since the last one; 0: do not",
        minimum=0.0,
    ),
    Key("LOG.CHECKPOINT_STEPS", 0, "the same after every so many steps of an epoch; 0: not by steps", minimum=0),
    Key(
        "LOG.KEEP_LOGITS",
        "last",
        "test logits of the last epoch in logits_last.safetensors, 2 bytes a number (CIFAR-100 2 MB, ImageNet 100 MB): "
        "last, or none",
        choices=("last", "none"),
    ),
    Key("LOG.KEEP_CHECKPOINTS", 0, "how many of the newest epoch_N checkpoints are kept; 0: all", minimum=0),
    Key(
        "SOLVER.NONFINITE",
        "stop",
        "a loss part or gradient that is NaN or infinite: stop ends the run with the part and the step; skip leaves "
        "that step out and counts it (reads the device once a step)",
        choices=("stop", "skip"),
    ),
)
