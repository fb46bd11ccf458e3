"""Every configuration key of ours: where it stands, its default, what it means.

The keys join the host's own tree (`add_keys`), so a config of ours also loads by the host's plain merge; `remove_keys`
takes them away again. A key's default fixes its type.
"""

from dataclasses import dataclass

from yacs.config import CfgNode

from atsc_plugin.errors import PluginError


@dataclass(frozen=True)
class Key:
    """One key: where it stands, its default (whose type is the key's type), what it means, what is allowed."""

    name: str
    default: object
    meaning: str
    choices: tuple = ()
    minimum: float | None = None
    symbol: str = ""  # its name in the paper or the released code


KEYS = (
    Key("EXPERIMENT.SEED", 1, "initialisation, order of the images and augmentation each follow from it", minimum=0),
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
    ),
    Key("DATASET.MEAN", [], "mean by channel in 0..1; empty: of the training images (npz, folder, cifar10, digits100)"),
    Key("DATASET.STD", [], "standard deviation by channel; empty: of the training images"),
    Key(
        "DATASET.FLIP",
        "auto",
        "random mirroring of npz, folder, cifar10: horizontal, none, or auto (not for npz and digits100)",
        choices=("auto", "horizontal", "none"),
    ),
    Key("DATASET.PADDING", 4, "zero padding of the random crop of npz, folder, cifar10 and digits100", minimum=0),
    Key("DATASET.DIGITS100.TRAIN_IMAGES", 5000, "digits100: training images to compose", minimum=100),
    Key("DATASET.DIGITS100.VAL_IMAGES", 1000, "digits100: validation images", minimum=100),
    Key("DATASET.DIGITS100.TEST_IMAGES", 10000, "digits100: test images", minimum=100),
    Key("DATASET.DIGITS100.SEED", 0, "digits100: which images are composed; not the seed of the run", minimum=0),
    Key("DISTILLER.TEACHER_CKPT", "", "file with the teacher's weights; empty: the host's checkpoint folder"),
    Key("TEACHER.TRAIN_IF_MISSING", False, "train the teacher here when no checkpoint is found, and keep it"),
    Key("TEACHER.CACHE", "./output/teachers", "folder of teachers trained here, one file a recipe"),
    Key("TEACHER.SEED", 1, "seed of a teacher trained here", minimum=0),
    Key("TEACHER.EPOCHS", 240, "epochs of a teacher trained here; independent of SOLVER", minimum=1),
    Key("TEACHER.BATCH_SIZE", 64, "its batch size", minimum=1),
    Key("TEACHER.LR", 0.05, "its learning rate", minimum=0.0),
    Key("TEACHER.LR_DECAY_STAGES", [150, 180, 210], "epochs after which its rate is multiplied by LR_DECAY_RATE"),
    Key("TEACHER.LR_DECAY_RATE", 0.1, "factor at each decay stage", minimum=0.0),
    Key("TEACHER.WEIGHT_DECAY", 0.0005, "its weight decay", minimum=0.0),
    Key("SIMKD.LOSS.FEAT_WEIGHT", 1.0, "weight of mse(P(F_s), F_t)", minimum=0.0, symbol="beta (-b)"),
    Key("SIMKD.PROJECTOR.FACTOR", 2, "f: the projector's inner width is C_t / f", minimum=1, symbol="-f"),
    Key(
        "ATSC.UPDATE",
        "fused",
        "fused: one backward, one optimizer; published: the released code's two steps to rounding",
        choices=("fused", "published"),
    ),
    Key(
        "ATSC.LOSS.FEAT_WEIGHT",
        1.0,
        "weight of mse(P(F_s), F_t), which also moves the teacher's trunk",
        minimum=0.0,
        symbol="beta (-b)",
    ),
    Key("ATSC.LOSS.TEACHER_CE_WEIGHT", 1.0, "weight of the teacher's CE, which moves its classifier only", minimum=0.0),
    Key(
        "ATSC.LOSS.CE_WEIGHT",
        0.0,
        "weight of the student's CE through the shared classifier",
        minimum=0.0,
        symbol="cls (-c)",
    ),
    Key(
        "ATSC.LOSS.KD_WEIGHT",
        0.0,
        "weight of the student's KD through the shared classifier",
        minimum=0.0,
        symbol="div (-d)",
    ),
    Key("ATSC.LOSS.KD_TEMPERATURE", 4.0, "T of that KD", minimum=0.1, symbol="T"),
    Key("ATSC.PROJECTOR.FACTOR", 2, "f: the projector's inner width is C_t / f", minimum=1, symbol="-f"),
    Key(
        "ATSC.DRIFT.WEIGHT",
        10.0,
        "w: weight of sum ||theta - theta_0||^2 (released flag: 1 CIFAR, 10 ImageNet)",
        minimum=0.0,
        symbol="w (-w)",
    ),
    Key(
        "ATSC.DRIFT.PARAMS",
        "all",
        "weights that the drift term holds: all, or kernels (more than one dimension, as released)",
        choices=("all", "kernels"),
    ),
    Key(
        "ATSC.CLASSIFIER.PARAMS",
        "all",
        "what the teacher's CE moves: all of the classifier, or its bias (as released)",
        choices=("all", "bias"),
    ),
    Key("ATSC.TEACHER.LR_SCALE", 1.0, "the teacher's learning rate is SOLVER.LR times this", minimum=0.0),
    Key("ATSC.TEACHER.WEIGHT_DECAY", -1.0, "the teacher's weight decay; negative: SOLVER.WEIGHT_DECAY"),
    Key("ATSC.TEACHER.WARMUP_EPOCHS", 0, "epochs at the start with the teacher held still, as in SimKD", minimum=0),
    Key(
        "ATSC.TEACHER.BN",
        "batch",
        "batch: statistics of the batch, as released; affine_frozen: the same with scales and shifts held; "
        "frozen: the teacher's own statistics too, without which a large rate can blow up",
        choices=("batch", "affine_frozen", "frozen"),
    ),
    Key(
        "ATSC.GUARD",
        "warn",
        "when the teacher collapses: warn, stop (the run ends with exit status 3), or none",
        choices=("warn", "stop", "none"),
    ),
    Key("ATSC.MONITOR.IMAGES", 2000, "evaluation images on which the teacher is watched", minimum=1),
)


def find(cfg, name):
    """(node, leaf name) of a dotted key, or (None, None) where the tree has no such key."""
    *path, leaf = name.split(".")
    for step in path:
        cfg = cfg.get(step) if isinstance(cfg, CfgNode) else None
    return (cfg, leaf) if isinstance(cfg, CfgNode) and leaf in cfg else (None, None)


def add_keys(cfg):
    """Add what is missing and touch nothing that is there; a frozen tree stays frozen. Returns the names added."""
    frozen, added = cfg.is_frozen(), []
    for key in KEYS:
        node, leaf = find(cfg, key.name)
        if node is not None and type(node[leaf]) is not type(key.default):
            raise PluginError(
                f"The host's config already has {key.name} = {node[leaf]!r}; expected a {type(key.default).__name__} "
                "or no such key. Rename the other one, or use another host (ATSC_HOST=embedded)."
            )
    cfg.defrost()
    for key in KEYS:
        if find(cfg, key.name)[0] is None:
            *path, leaf = key.name.split(".")
            node = cfg
            for step in path:
                node = node.setdefault(step, CfgNode())
            node[leaf] = list(key.default) if isinstance(key.default, list) else key.default
            added.append(key.name)
    if frozen:
        cfg.freeze()
    return added


def remove_keys(cfg, names):
    """Take the named keys away again, and the nodes that are empty without them."""
    frozen = cfg.is_frozen()
    cfg.defrost()
    for name in names:
        path = name.split(".")
        nodes = [cfg]
        for step in path[:-1]:
            nodes.append(nodes[-1].get(step, CfgNode()))
        nodes[-1].pop(path[-1], None)
        for parent, step in reversed(list(zip(nodes, path[:-1], strict=False))):
            if step in parent and not parent[step]:
                parent.pop(step)
    if frozen:
        cfg.freeze()


def flatten(tree, prefix=""):
    """{dotted name: value} of a nested tree."""
    flat = {}
    for step, value in tree.items():
        flat |= flatten(value, f"{prefix}{step}.") if isinstance(value, dict) else {f"{prefix}{step}": value}
    return flat
