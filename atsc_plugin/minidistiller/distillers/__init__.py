"""distiller_dict: DISTILLER.TYPE -> class. NONE takes (student), the others (student, teacher, cfg)."""

from ._base import Vanilla
from .DKD import DKD
from .KD import KD
from .ReviewKD import ReviewKD

distiller_dict = {"NONE": Vanilla, "KD": KD, "REVIEWKD": ReviewKD, "DKD": DKD}
