"""What mdistiller does not say of its own methods: titles, teachers, mistakes that it would only meet in training."""

from __future__ import annotations

import torch

from atsc_plugin.contract import NONE, HostMethod
from atsc_plugin.methods.base import host_method
from atsc_plugin.networks.maps import evaluating


@host_method("NONE", "vanilla")
class Vanilla(HostMethod):
    TEACHERS = NONE


@host_method("KD", "KD")
class KD(HostMethod):
    MULTI = "AVERKD"


@host_method("DKD", "DKD")
class DKD(HostMethod):
    MULTI = "DKD_MULTI"

    @classmethod
    def problems(cls, cfg):
        """It divides the epoch by WARMUP."""
        warmup = cfg.DKD.WARMUP
        return [] if warmup >= 1 else [f"DKD.WARMUP: got {warmup}, expected at least 1."]


@host_method("REVIEWKD", "ReviewKD")
class ReviewKD(HostMethod):
    """Its maps are free of ReLU: preact_feats from the second on, then the pooled features as a map of one pixel.

    OUT_SHAPES lists the sides of the teacher's maps deepest first, OUT_CHANNELS their channels shallowest first.
    """

    @classmethod
    def problems(cls, cfg):
        """It divides the epoch by WARMUP_EPOCHS."""
        warmup = cfg.REVIEWKD.WARMUP_EPOCHS
        return [] if warmup >= 1 else [f"REVIEWKD.WARMUP_EPOCHS: got {warmup}, expected at least 1."]

    def misfits(self, image_size):
        teacher, name, node = self.distiller.teacher, self.cfg.DISTILLER.TEACHER, self.cfg.REVIEWKD
        with evaluating(teacher), torch.no_grad():
            feats = teacher(torch.zeros(2, 3, image_size, image_size))[1]
        if not feats.get("preact_feats"):
            return [
                f"teacher {name} has no pre-activation maps, which REVIEWKD compares. Use another teacher or method."
            ]
        maps = [*feats["preact_feats"][1:], feats["pooled_feat"][:, :, None, None]]
        fitting = {"OUT_SHAPES": [m.shape[-1] for m in maps][::-1], "OUT_CHANNELS": [m.shape[1] for m in maps]}
        return [
            f"REVIEWKD.{key} is {list(node[key])}, but the maps of teacher {name} have {wanted}. Set it to that."
            for key, wanted in fitting.items()
            if list(node[key]) != wanted
        ]


@host_method("CRD", "CRD")
class CRD(HostMethod):
    """Its memory banks hold a feature of every training image, found by the image's number."""

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
