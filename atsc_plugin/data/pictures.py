"""Image files as a deployed student takes them: found, read, resized and normalised by its card. Needs no torch.

Pixels are uint8 N x H x W x 3, RGB, as image libraries have them; `normalised` turns them into the float32
N x 3 x H x W that networks take, by the same arithmetic as the loaders: (pixel / 255 - mean) / std.
"""

import hashlib
import os
import warnings
from contextlib import contextmanager

import numpy as np
from PIL import Image

from atsc_plugin.errors import PluginError
from atsc_plugin.untrusted import expand_user, first_line, open_regular

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"}
# Pillow goes by a file's content, not by its name, and for some formats (EPS) it starts another program.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")
ENDS = 4096  # bytes at each end of a file that tell it from another and say whether it is whole
END_MARKS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}  # JPEG, PNG
LARGEST = 110_000_000  # pixels of a file; cameras have up to 108 million
# Host's data sets whose evaluation cuts the middle out of a larger image: the side after the cut, over the shorter side
# before it. A folder's card says it itself (DATASET.EVAL_CROP).
EVAL_CROP = {"imagenet": 224 / 256}
# EXIF's orientation: what brings the image upright.
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TO_EIGHT_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)


class Unreadable(Exception):
    """One image that cannot be read; the message says why."""


def find(paths):
    """Image files named by files and folders, in order; a folder stands for all images below it, sorted."""
    found = []
    for path in map(expand_user, paths):
        inside = path.rglob("*") if path.is_dir() else [path]
        files = [file for file in inside if file.suffix.lower() in SUFFIXES or not path.is_dir()]
        found += sorted(file for file in files if not file.is_dir())
        if path.is_dir() and not files:
            raise PluginError(f"{path} holds no images; expected files ending in {', '.join(sorted(SUFFIXES))}.")
    return found


def read(path, card):
    """The pixels of one file at the student's size, H x W x 3; Unreadable where there are none."""
    crop = card.get("eval_crop", EVAL_CROP.get(card["dataset"], 0.0))
    return np.asarray(fitted(decoded(path), card["image_size"], crop))


def decoded(path):
    """One image file as an upright 8-bit RGB image; Unreadable, with the reason, for whatever is none.

    16-bit greys are scaled to 8 bits. Floating-point pixels are refused: their range is not in the file.
    """
    with _image(path) as image:
        image.load()
        turn = UPRIGHT.get(_orientation(image))
        colours = _eight_bits(image).convert("RGB")
        return colours if turn is None else colours.transpose(turn)


def as_torchvision(path):
    """As torchvision's loader of image folders reads a file, but for what another program would have to read."""
    try:
        with _image(path) as image:
            return image.convert("RGB")
    except Unreadable as error:
        raise PluginError(f"{path} cannot be read as an image: {error}. Repair or remove it.") from error


def size_of(path):
    """(width, height) of an image file as `decoded` gives it, from its first bytes; Unreadable as there."""
    with _image(path) as image:
        return image.size[::-1] if _orientation(image) in (5, 6, 7, 8) else image.size


def check(path):
    """Refuse, from a file's first and last bytes, what `decoded` would; a hash of those bytes and of its length.

    A file without its format's end mark is decoded whole. Damage in between shows when the image is read.
    """
    with _image(path) as image, open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        head, tail = (_bytes_at(file, place) for place in (0, max(0, size - ENDS)))
        if image.mode == "F":
            _eight_bits(image)
        if not _ends(head, tail, size):
            image.load()
    return hashlib.blake2b(b"%d/%b/%b" % (size, head, tail), digest_size=8).digest()


def _bytes_at(file, place):
    file.seek(place)
    return file.read(ENDS)


def _ends(head, tail, size):
    """Whether the last bytes are the format's end mark; not for formats that have none."""
    if head.startswith(b"RIFF"):
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return any(head.startswith(begin) and end in tail[-12:] for begin, end in END_MARKS.items())


@contextmanager
def _image(path):
    """The image of a file, of the named formats only: what is thrown in the block as well ends as Unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd palettes, and of sizes, which are bounded here
            with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > LARGEST:
                    raise Unreadable(f"it has {image.width} x {image.height} pixels; expected at most {LARGEST:,}")
                yield image
    except FileNotFoundError as error:
        raise Unreadable("there is no such file") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable(f"it is no image of the kinds {', '.join(FORMATS)}") from error
    except (Unreadable, PluginError) as error:
        raise Unreadable(str(error)) from error
    except Exception as error:  # decoders of damaged files throw exceptions of every kind
        raise Unreadable(first_line(error)) from error


def _orientation(image):
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # EXIF that cannot be read says nothing; the pixels are whole all the same
        return None


def _eight_bits(image):
    """A 16-bit grey image as an 8-bit one, any other as it is: round(v / 257) takes 0..65535 to 0..255."""
    if image.mode == "F":
        raise Unreadable("its pixels are floating-point numbers (mode F); expected 8 or 16 bits. Convert it")
    if not image.mode.startswith("I"):
        return image
    low, high = image.getextrema()
    if low < 0 or high > 65535:
        raise Unreadable(f"its pixels (mode {image.mode}) are {low} to {high}; expected 8 or 16 bits. Convert it")
    return Image.fromarray(TO_EIGHT_BITS[np.asarray(image)])


def fitted(image, side, crop):
    """As evaluation does it: the whole image squeezed into the square, or for a `crop` above 0 the middle cut out.

    The shorter side becomes side / crop before the cut; torchvision's Resize and CenterCrop give the same pixels.
    """
    if not crop:
        return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)
    shorter = round(side / crop)
    width, height = (int(shorter * length / min(image.size)) for length in image.size)
    if width * height > LARGEST:
        raise Unreadable(f"it is {image.width} x {image.height} pixels, too narrow to be brought to {shorter}")
    left, top = round((width - side) / 2), round((height - side) / 2)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))


def batch_of(card):
    """How many images of the card's size are taken through the network at once: 64, fewer of large ones."""
    return max(1, min(64, 2**22 // card["image_size"] ** 2))


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
