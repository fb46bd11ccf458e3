"""Configuration keys: what a key is, the keys of run, engine and teachers, and how keys join a host's tree.

A method's keys stand in its own file. A key's default fixes its type. `add_keys` joins keys to the host's tree, so that
a config of ours also loads by the host's plain merge; `remove_keys` takes them away again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from atsc_plugin.errors import PluginError


@dataclass(frozen=True)
class Key:
    """One key: where it stands, its default, what it means, what is allowed."""

    name: str
    default: Any
    meaning: str
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None  # of sizes and counts: memory is asked for by them
    symbol: str = ""  # its name in the paper or the released code


LARGEST_SIDE = 2048  # pixels; one map of 64 channels at this size has a GB
MOST_DIGITS = 200_000  # images of 3 kB each, composed in a minute or two

RUN_KEYS = (
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
    Key(
        "DATASET.MEAN",
        [],
        "mean by channel in 0..1; empty: of the training images (npz, folder, cifar10, digits100; of a stream "
        "1,000 of them)",
    ),
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
        "DATASET.CROP",
        "pad",
        "training crop of folder. pad: the image as in evaluation, zeros around it, a window of IMAGE_SIZE; resized: a "
        "window of 8 to 100 % of the file's pixels, resized (RandomResizedCrop; images stream)",
        choices=("pad", "resized"),
    ),
    Key(
        "DATASET.EVAL_CROP",
        0.0,
        "evaluation of folder: the shorter side becomes IMAGE_SIZE / EVAL_CROP, then the middle is cut out (ImageNet: "
        "0.875); 0: the whole image, squeezed into the square",
        minimum=0.0,
        maximum=1.0,
    ),
    Key(
        "DATASET.AUGMENT",
        "none",
        "torchvision's policy after crop and mirror, of folder, npz, cifar10, digits100 and cifar100: rand-2-9 "
        "(RandAugment, 2 operations of magnitude 9), trivial (TrivialAugmentWide), auto (AutoAugment, ImageNet's)",
        choices=("none", "rand-2-9", "trivial", "auto"),
    ),
    Key(
        "DATASET.ERASING",
        0.0,
        "probability of setting a rectangle of 2 to 33 % of the normalised image to 0 (RandomErasing); of the same "
        "data as AUGMENT",
        minimum=0.0,
        maximum=1.0,
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
        "a loss term or gradient that is NaN or infinite: stop ends the run and names term and step; skip leaves "
        "that step out and counts it (reads the device once a step)",
        choices=("stop", "skip"),
    ),
)

RECIPE = ("TYPE", "SCHEDULE", "WARMUP_EPOCHS", "MIN_LR", "EMA", "NO_DECAY")  # of a run, and of a teacher trained here


def recipe_keys(node: str, network: str) -> tuple[Key, ...]:
    """The optimizer, its schedule and the average of the weights, for the student (SOLVER) and for a teacher."""
    return (
        Key(
            f"{node}.TYPE",
            "SGD",
            "SGD, or AdamW with betas (SOLVER.MOMENTUM, 0.999) and decoupled decay",
            choices=("SGD", "AdamW"),
        ),
        Key(
            f"{node}.SCHEDULE",
            "steps",
            "steps: LR_DECAY_STAGES and LR_DECAY_RATE, by the epoch; cosine: from LR to MIN_LR, by the step, without "
            "stages",
            choices=("steps", "cosine"),
        ),
        Key(
            f"{node}.WARMUP_EPOCHS",
            0,
            "epochs at the start in which the rate rises by the step: LR (t + 1) / (w + 1) in step t of w; the cosine "
            "begins behind them",
            minimum=0,
        ),
        Key(f"{node}.MIN_LR", 0.0, "where SCHEDULE cosine ends", minimum=0.0),
        Key(
            f"{node}.EMA",
            0.0,
            f"decay per step of an average of the {network}'s weights and BN statistics, e.g. 0.999, which looks back "
            "1,000 steps; it is then what is evaluated, kept and called top1, beside raw_top1 in the log. 0: none",
            minimum=0.0,
        ),
        Key(
            f"{node}.NO_DECAY",
            "none",
            "norms: no weight decay of norms, biases and other weights of one dimension; none: decay of all",
            choices=("none", "norms"),
        ),
    )


def mixing_keys(node: str, more: str = "") -> tuple[Key, ...]:
    """What makes labels soft, of the SOLVER and the TEACHER node; `more` is said of the first."""
    return (
        Key(
            f"{node}.MIXUP",
            0.0,
            f"alpha of mixup, a ~ Beta(alpha, alpha); 0: none{more}",
            minimum=0.0,
            maximum=100.0,
        ),
        Key(
            f"{node}.CUTMIX",
            0.0,
            "alpha of CutMix; 0: none. With MIXUP half of the batches get each",
            minimum=0.0,
            maximum=100.0,
        ),
        Key(
            f"{node}.LABEL_SMOOTHING",
            0.0,
            "e: labels are (1 - e) onehot(y) + e / classes. As MIXUP and CUTMIX, refused by methods that need one "
            "class an image",
            minimum=0.0,
            maximum=1.0,
        ),
    )


ENGINE_KEYS = (
    *recipe_keys("SOLVER", "deployed student"),
    Key(
        "SOLVER.AMP",
        "auto",
        "number format of the step's networks; weights and losses stay fp32. auto: bf16 where a GPU has it; a CPU "
        "without bf16 units emulates it, many times slower than fp32",
        choices=("none", "auto", "bf16", "fp16"),
    ),
    Key(
        "SOLVER.COMPILE",
        "none",
        "compile the networks (torch.compile's mode); reduce-overhead and max-autotune record CUDA graphs, for GPUs. "
        "Evaluation runs uncompiled",
        choices=("none", "default", "reduce-overhead", "max-autotune"),
    ),
    Key(
        "SOLVER.GRAPH",
        "auto",
        "auto: on one GPU with small batches the whole step, loader and optimizer included, is recorded as one CUDA "
        "graph; about.json has the reason where it is not. none: every step launches its kernels one by one",
        choices=("auto", "none"),
    ),
    Key(
        "SOLVER.ACCUMULATE",
        1,
        "micro-batches a batch is split into; their gradients are added. Less memory, the same step, except that BN "
        "uses the statistics of each micro-batch",
        minimum=1,
    ),
    Key("SOLVER.CLIP_NORM", 0.0, "the whole gradient is clipped to this norm; 0: no clipping", minimum=0.0),
    *mixing_keys(
        "SOLVER",
        ". Teacher and student see the same mixed batch; an image's partner comes from its rank's own, so two ranks "
        "mix other pairs than one. The training top-1 counts the class with the larger share",
    ),
    Key("SOLVER.SYNC_BN", False, "under torchrun on GPUs: BN statistics over the images of all ranks"),
    Key(
        "DATASET.LOADER",
        "auto",
        "device: images live on the device whole and are augmented there; host: DATASET.NUM_WORKERS processes read and "
        "augment them (of cifar100 and ImageNets the host's DataLoader); auto: device where the images fit (a folder: "
        "2 GiB) and AUGMENT, ERASING and CROP ask for no more; the plan says which and why",
        choices=("auto", "device", "host"),
    ),
)

TEACHER_KEYS = (
    Key("DISTILLER.TEACHER_CKPT", "", "file with the teacher's weights; empty: the host's checkpoint folder"),
    Key(
        "DISTILLER.STUDENT_ARGS",
        [],
        "arguments of a student from timm, torchvision or a package, e.g. [drop_rate=0.1]",
    ),
    Key("DISTILLER.TEACHER_ARGS", [], "the same for the teacher, where there is one, e.g. [patch_size=4]"),
    Key(
        "DISTILLER.TEACHER_PRETRAINED",
        False,
        "timm's or torchvision's weights, from their caches, for a teacher of theirs; it sees the images in its own "
        "size and normalisation",
    ),
    Key("TEACHER.TRAIN_IF_MISSING", False, "train the teacher here when no checkpoint is found, and keep it"),
    Key("TEACHER.CACHE", "./output/teachers", "folder of teachers trained here, one file a recipe"),
    Key("TEACHER.SEED", 1, "seed of a teacher trained here", minimum=0, maximum=2**63),
    Key("TEACHER.EPOCHS", 240, "epochs of a teacher trained here; independent of SOLVER", minimum=1),
    Key("TEACHER.BATCH_SIZE", 64, "its batch size", minimum=1),
    Key("TEACHER.LR", 0.05, "its learning rate", minimum=0.0),
    Key("TEACHER.LR_DECAY_STAGES", [150, 180, 210], "epochs after which its rate is multiplied by LR_DECAY_RATE"),
    Key("TEACHER.LR_DECAY_RATE", 0.1, "factor at each decay stage", minimum=0.0),
    Key("TEACHER.WEIGHT_DECAY", 0.0005, "its weight decay", minimum=0.0),
    *recipe_keys("TEACHER", "teacher"),
    *mixing_keys("TEACHER"),
    Key(
        "TEACHER.FINE_TUNE_EPOCHS",
        10,
        "epochs of `teachers --fine-tune`, which gives weights of other classes a new head; LR_DECAY_STAGES and "
        "WARMUP_EPOCHS shrink as TEACHER.EPOCHS do",
        minimum=1,
    ),
    Key(
        "TEACHER.FINE_TUNE_LR_SCALE",
        0.1,
        "there all but the new head learns at TEACHER.LR times this; 0: it is frozen, BN statistics included",
        minimum=0.0,
    ),
    Key(
        "DISTILLER.TEACHERS",
        [],
        "several teachers by name, e.g. [resnet32x4, wrn_40_2, vgg13], for methods that take several; empty: "
        "DISTILLER.TEACHER alone",
    ),
    Key(
        "DISTILLER.TEACHER_CKPTS",
        [],
        "a file for each of DISTILLER.TEACHERS, '' for one that is looked for or trained; empty: all of them are",
    ),
    Key(
        "TEACHER.SEEDS",
        [],
        "a seed for each of DISTILLER.TEACHERS that is trained here; empty: TEACHER.SEED, TEACHER.SEED + 1, ...",
    ),
)

COMMON_KEYS = (*RUN_KEYS, *ENGINE_KEYS, *TEACHER_KEYS)
DEFAULTS = {key.name: key.default for key in COMMON_KEYS}


def names_in(text: str) -> str | list[str]:
    """A list of names as YAML writes it, [resnet20, vgg13], without quotes that a shell would want quoted again.

    Commas in brackets divide nothing: [stages_repeats=[4,8,4], drop_rate=0.1] are two arguments.
    """
    if not (text.startswith("[") and text.endswith("]")):
        return text
    return [name.strip(" '\"") for name in re.split(r",(?![^\[(]*[\])])", text[1:-1])]


def find(cfg: CfgNode, name: str) -> tuple[CfgNode | None, str | None]:
    """(node, leaf name) of a dotted key, or (None, None) where the tree has no such key."""
    *path, leaf = name.split(".")
    for step in path:
        cfg = cfg.get(step) if isinstance(cfg, CfgNode) else None
    return (cfg, leaf) if isinstance(cfg, CfgNode) and leaf in cfg else (None, None)


def changed(cfg: CfgNode, values: dict[str, Any]) -> CfgNode:
    """A frozen copy of the tree with these values, by dotted names."""
    copy = cfg.clone()
    copy.defrost()
    for name, value in values.items():
        *path, leaf = name.split(".")
        node = copy
        for step in path:
            node = node[step]
        node[leaf] = value
    copy.freeze()
    return copy


def add_keys(cfg: CfgNode, keys: Iterable[Key]) -> list[str]:
    """Add what is missing and touch nothing that is there; a frozen tree stays frozen. Returns the names added."""
    keys, frozen, added = list(keys), cfg.is_frozen(), []
    for key in keys:
        node, leaf = find(cfg, key.name)
        if node is not None and type(node[leaf]) is not type(key.default):
            raise PluginError(
                f"The host's config already has {key.name} = {node[leaf]!r}; expected a {type(key.default).__name__} "
                "or no such key. Rename the other one, or use another host (ATSC_HOST=embedded)."
            )
    cfg.defrost()
    for key in keys:
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


def remove_keys(cfg: CfgNode, names: Iterable[str]) -> None:
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


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of a nested tree."""
    flat: dict[str, Any] = {}
    for step, value in tree.items():
        flat |= flatten(value, f"{prefix}{step}.") if isinstance(value, dict) else {f"{prefix}{step}": value}
    return flat


def unknown_name(key: str, value: Any, allowed: Iterable[Any]) -> str:
    """The problem with a value that is none of the allowed names, with the nearest of them."""
    names = [str(entry) for entry in allowed]
    if not names:
        return f"{key}: got '{value}', but this host has no table of them. ATSC_HOST=embedded has one."
    return f"{key}: got '{value}', expected one of {', '.join(names)}{did_you_mean(str(value), names)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?" with the nearest of the known names; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
