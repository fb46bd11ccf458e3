"""What mdistiller does not say of its own methods: titles, teachers, mistakes that it would only meet in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atsc_plugin.contract import NONE, HostMethod
from atsc_plugin.errors import ModelRefused
from atsc_plugin.methods.base import host_method
from atsc_plugin.networks.maps import evaluating, probe_image

# DKD's BETA and ReviewKD's weight by pair, from mdistiller's configs (a08d46f) and the ReviewKD repository's script.
# None: no weight is published for the pair, and 5.0 is ours.
PUBLISHED = {
    ("resnet32x4", "resnet8x4"): (8.0, 5.0),
    ("vgg13", "vgg8"): (6.0, None),
    ("wrn_40_2", "wrn_40_1"): (6.0, 5.0),
    ("wrn_40_2", "wrn_16_2"): (6.0, 5.0),
    ("resnet56", "resnet20"): (2.0, 0.6),
    ("resnet110", "resnet32"): (2.0, 1.0),
    ("resnet32x4", "ShuffleV1"): (8.0, 5.0),
    ("resnet32x4", "ShuffleV2"): (8.0, 8.0),
    ("wrn_40_2", "ShuffleV1"): (8.0, 5.0),
    ("vgg13", "MobileNetV2"): (6.0, None),
    ("ResNet50", "MobileNetV2"): (8.0, None),
    ("ResNet34", "ResNet18"): (0.5, 1.0),  # ImageNet, as the next
    ("ResNet50", "MobileNetV1"): (2.0, 8.0),
}
# Channels and sides of feats[1:] (teachers: preact_feats[1:]) and the pooled width: ReviewKD needs them written down.
MAPS = {
    "resnet20": ([16, 32, 64], [32, 16, 8], 64),
    "resnet32": ([16, 32, 64], [32, 16, 8], 64),
    "resnet56": ([16, 32, 64], [32, 16, 8], 64),
    "resnet110": ([16, 32, 64], [32, 16, 8], 64),
    "resnet8x4": ([64, 128, 256], [32, 16, 8], 256),
    "resnet32x4": ([64, 128, 256], [32, 16, 8], 256),
    "wrn_40_2": ([32, 64, 128], [32, 16, 8], 128),
    "wrn_16_2": ([32, 64, 128], [32, 16, 8], 128),
    "wrn_40_1": ([16, 32, 64], [32, 16, 8], 64),
    "vgg13": ([128, 256, 512, 512], [16, 8, 4, 4], 512),
    "vgg8": ([128, 256, 512, 512], [16, 8, 4, 4], 512),
    "ResNet50": ([256, 512, 1024, 2048], [32, 16, 8, 4], 2048),
    "MobileNetV2": ([12, 16, 48, 160], [16, 8, 4, 2], 1280),
    "ShuffleV1": ([240, 480, 960], [16, 8, 4], 960),
    "ShuffleV2": ([116, 232, 464], [16, 8, 4], 1024),
}
LISTS = ("SHAPES", "OUT_SHAPES", "IN_CHANNELS", "OUT_CHANNELS")  # REVIEWKD's keys of the maps
# On ImageNet: (student's channels, teacher's); the last map's channels stand again for the pooled features.
IMAGENET_MAPS = {
    ("ResNet34", "ResNet18"): ([64, 128, 256, 512, 512], [64, 128, 256, 512, 512]),
    ("ResNet50", "MobileNetV1"): ([128, 256, 512, 1024, 1024], [256, 512, 1024, 2048, 2048]),
}


def review_keys(student: tuple[list[int], list[int]], teacher: tuple[list[int], list[int]]) -> dict[str, list[int]]:
    """REVIEWKD's lists from (sides, channels) of the maps, shallowest first: it wants the sides the other way round."""
    lists = student[0][::-1], teacher[0][::-1], student[1], teacher[1]
    return {f"REVIEWKD.{name}": values for name, values in zip(LISTS, lists, strict=True)}


def review_keys_of_pair(teacher: str, student: str) -> dict[str, list[int]]:
    """The lists for a pair of the tables above; the pooled features are a map of one pixel."""
    if (teacher, student) in IMAGENET_MAPS:
        return review_keys(*(([56, 28, 14, 7, 1], channels) for channels in IMAGENET_MAPS[teacher, student]))
    tables = (MAPS[name] for name in (student, teacher))
    return review_keys(*(([*sides, 1], [*channels, pooled]) for channels, sides, pooled in tables))


def review_maps(network: nn.Module, image_size: int, kind: str, first: int = 1) -> list[Tensor]:
    """The maps of a kind from the `first` on, shallowest first, and the pooled features; [] where there are none."""
    with evaluating(network), torch.no_grad():
        feats = network(probe_image(network, image_size))[1]
    maps = feats.get(kind, [])[first:]
    return [*maps, feats["pooled_feat"][:, :, None, None]] if maps else []


def sizes_of(maps: list[Tensor]) -> tuple[list[int], list[int]]:
    """(sides, channels) of maps, as `review_keys` takes them."""
    return [each.shape[-1] for each in maps], [each.shape[1] for each in maps]


class TensorStep(HostMethod):
    """A host's method whose step is made of tensors alone, the same in every epoch."""

    HARD_LABELS = False
    ANY_LAYOUT = True

    @classmethod
    def needs(cls, cfg):
        return {}

    def phase(self, epoch):
        return None


def not_above_zero(key: str, value: float) -> list[str]:
    """The problem with a temperature that logits cannot be divided by; [] without one."""
    return [] if value > 0 else [f"{key}: got {value}, expected a number above 0."]


@host_method("NONE", "vanilla")
class Vanilla(TensorStep):
    TEACHERS = NONE


@host_method("KD", "KD")
class KD(TensorStep):
    MULTI = "AVERKD"

    @classmethod
    def problems(cls, cfg):
        return not_above_zero("KD.TEMPERATURE", cfg.KD.TEMPERATURE)


@host_method("DKD", "DKD")
class DKD(TensorStep):
    MULTI = "DKD_MULTI"
    HARD_LABELS = True  # it splits the classes into the label's and the others
    HYPER = {pair: {"DKD.BETA": beta} for pair, (beta, _) in PUBLISHED.items()}

    @classmethod
    def problems(cls, cfg):
        """It divides the epoch by WARMUP."""
        warmup, problems = cfg.DKD.WARMUP, not_above_zero("DKD.T", cfg.DKD.T)
        return problems if warmup >= 1 else [*problems, f"DKD.WARMUP: got {warmup}, expected at least 1."]

    def phase(self, epoch):
        return min(epoch, self.cfg.DKD.WARMUP)


@host_method("REVIEWKD", "ReviewKD")
class ReviewKD(TensorStep):
    """Its maps are free of ReLU: preact_feats from the second on, then the pooled features as a map of one pixel.

    OUT_SHAPES lists the sides of the teacher's maps deepest first, OUT_CHANNELS their channels shallowest first.
    """

    TEACHER_CLASSES = False
    HYPER = {
        pair: {"REVIEWKD.REVIEWKD_WEIGHT": weight or 5.0, **review_keys_of_pair(*pair)}
        for pair, (_, weight) in PUBLISHED.items()
    }

    @classmethod
    def problems(cls, cfg):
        """It divides the epoch by WARMUP_EPOCHS."""
        warmup = cfg.REVIEWKD.WARMUP_EPOCHS
        return [] if warmup >= 1 else [f"REVIEWKD.WARMUP_EPOCHS: got {warmup}, expected at least 1."]

    def phase(self, epoch):
        return min(epoch, self.cfg.REVIEWKD.WARMUP_EPOCHS)

    @classmethod
    def derives(cls, cfg):
        """Its four lists, for a pair that nobody has published."""
        published = (cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT) in PUBLISHED
        return () if published else tuple(f"REVIEWKD.{name}" for name in LISTS)

    @staticmethod
    def _kinds(cfg):
        """Which maps it takes of the student, and which of the teacher."""
        return "preact_feats" if cfg.REVIEWKD.STU_PREACT else "feats", "preact_feats"

    @classmethod
    def derived(cls, cfg, student, teachers, image_size):
        """Read off the maps."""
        if not cls.derives(cfg):
            return {}
        names, shapes = (cfg.DISTILLER.STUDENT, cfg.DISTILLER.TEACHER), []
        for network, name, kind in zip((student, *teachers), names, cls._kinds(cfg), strict=True):
            maps = review_maps(network, image_size, kind)
            if not maps or any(each.dim() != 4 or each.shape[-1] != each.shape[-2] for each in maps):
                raise ModelRefused(
                    f"REVIEWKD compares square maps of several stages; {name} has none in {kind}. Use KD or SIMKD."
                )
            shapes.append(sizes_of(maps))
        ours, theirs = (len(sides) - 1 for sides, _ in shapes)
        if ours != theirs:
            raise ModelRefused(
                f"REVIEWKD pairs stages in order; {names[0]} has {ours} behind its stem, {names[1]} {theirs}. Use "
                "another pair, or KD or SIMKD."
            )
        return review_keys(*shapes)

    def misfits(self, image_size):
        """Lists that do not fit the maps; only a published pair's can be wrong, by a file or the command line.

        As many maps of the student as of the teacher are compared: its last, the first map among them if need be.
        """
        node, names = self.cfg.REVIEWKD, (self.cfg.DISTILLER.STUDENT, self.cfg.DISTILLER.TEACHER)
        of_student, of_teacher = self._kinds(self.cfg)
        theirs = review_maps(self.distiller.teacher, image_size, of_teacher)
        ours = review_maps(self.distiller.student, image_size, of_student, first=0)[-len(theirs) :]
        for name, maps, kind in zip(names, (ours, theirs), (of_student, of_teacher), strict=True):
            if not maps:
                return [f"{name} has no {kind}, which REVIEWKD compares. Use another network or method."]
        fitting = review_keys(sizes_of(ours), sizes_of(theirs))
        return [
            f"{key} is {list(node[leaf])}, but the maps of {names[leaf.startswith('OUT')]} have {wanted}. Set it so."
            for key, wanted in fitting.items()
            if list(node[leaf := key.removeprefix("REVIEWKD.")]) != wanted
        ]


@host_method("CRD", "CRD")
class CRD(HostMethod):
    """Its memory banks hold a feature of every training image, found by the image's number; HARD_LABELS stays True."""

    PER_IMAGE = False

    @classmethod
    def more_arguments(cls, train_images):
        return [train_images]

    @classmethod
    def problems(cls, cfg):
        if not cfg.DATASET.VAL_SPLIT:
            return []
        return [
            f"DATASET.VAL_SPLIT is {cfg.DATASET.VAL_SPLIT}, but CRD's memory counts the images of the whole training "
            "split, and would take negatives from those cut off; use 0.0."
        ]


# mdistiller's other methods use the labels in F.cross_entropy alone, which takes probabilities too.
for _name in ("AT", "FITNET", "KDSVD", "NST", "OFD", "PKT", "RKD", "SP", "VID"):
    host_method(_name, _name)(type(_name, (HostMethod,), {"HARD_LABELS": False}))
