"""Image files as a deployed student takes them: found, read, resized and normalised by its card. Needs no torch.

Pixels are uint8 N x H x W x 3, RGB, as image libraries have them; `normalised` turns them into the float32
N x 3 x H x W that networks take, by the same arithmetic as the loaders: (pixel / 255 - mean) / std.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from atsc_plugin.data.arrays import SUFFIXES
from atsc_plugin.errors import PluginError

# Data sets whose evaluation cuts the middle out of a larger image: shorter side before the cut, over the side after.
ENLARGED = {"imagenet": 256 / 224}


class Unreadable(Exception):
    """One image that cannot be read; the message says why."""


def find(paths):
    """Image files named by files and folders, in order; a folder stands for all images below it, sorted."""
    found = []
    for path in (Path(name).expanduser() for name in paths):
        inside = path.rglob("*") if path.is_dir() else [path]
        files = [file for file in inside if file.suffix.lower() in SUFFIXES or not path.is_dir()]
        found += sorted(file for file in files if not file.is_dir())
        if path.is_dir() and not files:
            raise PluginError(f"{path} holds no images; expected files ending in {', '.join(sorted(SUFFIXES))}.")
    return found


def read(path, card):
    """The pixels of one file at the student's size, H x W x 3; Unreadable where there are none."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except FileNotFoundError as error:
        raise Unreadable("there is no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Unreadable((str(error).splitlines() or [type(error).__name__])[0]) from error
    return np.asarray(_fitted(image, card["image_size"], ENLARGED.get(card["dataset"], 0)))


def _fitted(image, side, enlarged):
    """As the data set's evaluation does it: the whole image squeezed into the square, or the middle cut out."""
    if not enlarged:
        return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)
    shorter = round(side * enlarged)
    scale = shorter / min(image.size)
    width, height = (max(shorter, int(length * scale)) for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))


def normalised(pixels, card):
    """float32 N x 3 x H x W: (pixel / 255 - mean) / std."""
    mean, std = (np.array(values, dtype=np.float32).reshape(1, 3, 1, 1) for values in normalisation_of(card))
    channels_first = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return (channels_first.astype(np.float32) / np.float32(255) - mean) / std


def pixels_of(images, card):
    """The inverse of `normalised`, exact for images that came from 8-bit pixels."""
    mean, std = (np.array(values, dtype=np.float32).reshape(1, 3, 1, 1) for values in normalisation_of(card))
    return np.rint((images * std + mean) * 255).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def normalisation_of(card):
    """(mean, std) by channel in 0..1; a card without them is refused."""
    mean, std = card.get("mean") or [], card.get("std") or []
    if len(mean) != 3 or len(std) != 3:
        raise PluginError(
            f"The student's card says mean {mean} and std {std}; expected three numbers each, by which its images were "
            "normalised in training. Write them into the card (.json)."
        )
    return mean, std
