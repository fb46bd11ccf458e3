"""Toy data set of two-digit numbers: 100 classes "00".."99", 32x32 RGB, made in seconds without a download.

Every image shows two real handwritten digits from scikit-learn's load_digits, to be read from left to right.
It is meant for quickstarts and tests: a teacher and its students train in minutes on two CPU cores.
It is a toy: nothing about photographs or CIFAR-100 follows from it, a ranking of methods found on it need not hold
elsewhere, and with some hundred source digits behind a split a difference of a point or two means little.
Composing takes seconds and imports scikit-learn and SciPy; `cached_digits100` does it once a recipe and user.
"""

from __future__ import annotations

import hashlib
import os
from importlib import metadata
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from atsc_plugin.files import whole_file

CLASS_NAMES: tuple[str, ...] = tuple(f"{number:02d}" for number in range(100))

# ---- The recipe. Lengths are pixels of the finished image, colours run over 0..1, a pair is drawn from uniformly. ----
SIDE = 32
# Contiguous shares of the source order: neighbours there come from the same writer, so a contiguous cut keeps most
# hands within one split, where a shuffled cut would put every hand into all three.
SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}
DIGIT_SIZE = (10.5, 14.0)  # the side of the 8x8 source square when drawn; two of them must find room
DIGIT_ANGLE = (-25.0, 25.0)  # degrees, each digit for itself; much more would make a 6 a 9
DIGIT_SHEAR = (-0.25, 0.25)
# The right digit stands this far from the left one, centre to centre (the least leaves some overlap), in a direction
# of at most this many degrees above or below the horizontal, so that it is always plain which one is the left.
PAIR_DISTANCE = (11.0, 17.0)
PAIR_DIRECTION = (-45.0, 45.0)
# The pair stands anywhere that keeps both centres this far from the border: "left" is a relation, not a place.
MARGIN = 5.5
INK = (0.5, 1.0)  # each colour channel of a digit
INK_OPACITY = (0.8, 1.0)
# Distractors: round pieces cut out of other digits, as bright as these and lying under them. They make a net tell a
# whole digit from a stroke, and are what makes the set hard: each one costs every net a few points and a slower start.
DISTRACTORS = 1
DISTRACTOR_RADIUS = 3.0
DISTRACTOR_SHIFT = 2.5  # source pixels from the digit's middle to the piece's, at most, along each axis
GROUND = (0.0, 0.25)  # each colour channel of the background's blobs; dark, because a random crop pads with black
GROUND_CELLS = 4  # blobs per side
NOISE = 0.03  # standard deviation, the same for the three channels
# ---- End of the recipe. ----

_ZOOM = 8  # the sources are enlarged this much once, after which the nearest pixel is exact enough
_BORDER = 2  # source pixels of empty ground round every source digit
_CHUNK = 500  # images drawn at a time; larger chunks leave the processor's cache and take longer
_PER_LAYER = 12  # random numbers of a layer: form 0-2, source digit 3, opacity 4, colour 5-7, shift 8-9, place 10-11


def source_blocks(count: int) -> dict[str, tuple[int, int]]:
    """The half-open range of the `count` source indices that each split draws its digits from."""
    first = round(count * SHARES["train"])
    second = round(count * (SHARES["train"] + SHARES["val"]))
    return {"train": (0, first), "val": (first, second), "test": (second, count)}


def load_sources() -> tuple[np.ndarray, np.ndarray]:
    """The source digits in their original order: greys in 0..1 (count x 8 x 8, float32) and their labels."""
    from sklearn.datasets import load_digits  # a second that a cached set does not wait for

    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8) / 16).astype(np.float32), labels.astype(np.int64)


def _zoom_matrix(count: int, factor: float, order: int, mode: str) -> np.ndarray:
    """A zoom of `count` pixels along one axis. It is linear, so that the zoom of the identity is its matrix."""
    from scipy import ndimage  # a fifth of a second that a cached set does not wait for

    return ndimage.zoom(np.eye(count), (factor, 1), order=order, mode=mode, grid_mode=True).astype(np.float32)


def _enlarge(greys: np.ndarray) -> np.ndarray:
    """The sources enlarged by _ZOOM with crisper strokes."""
    padded = np.pad(greys, ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER)))
    matrix = _zoom_matrix(padded.shape[1], _ZOOM, 3, "grid-constant")
    return np.clip(1.6 * (matrix @ padded @ matrix.T) - 0.25, 0, 1)


def _between(unit: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return bounds[0] + unit * (bounds[1] - bounds[0])


def _per_image(values: np.ndarray) -> np.ndarray:
    """One float32 per image, shaped to meet n x 32 x 32."""
    return np.asarray(values, dtype=np.float32)[:, None, None]


def _cover(
    atlas: np.ndarray,
    which: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    form: np.ndarray,
    shift: np.ndarray | None = None,
) -> np.ndarray:
    """How far source digit `which`, centred at x, y, covers each pixel (n x 32 x 32, 0..1).

    form (n x 3, 0..1) gives its size, angle and shear. With shift (n x 2, source pixels) only the round piece is drawn
    that lies that far off the digit's middle, and x, y is the piece's centre.
    """
    scale = 8 * _ZOOM / _between(form[:, 0], DIGIT_SIZE)
    angle = np.deg2rad(_between(form[:, 1], DIGIT_ANGLE))
    shear = _between(form[:, 2], DIGIT_SHEAR)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    side = atlas.shape[1]
    middle = side / 2 + (np.zeros((len(which), 2)) if shift is None else shift * _ZOOM)
    across = (np.arange(SIDE) - x[:, None]).astype(np.float32)[:, None, :]
    down = (np.arange(SIDE) - y[:, None]).astype(np.float32)[:, :, None]

    def source(of_x: np.ndarray, of_y: np.ndarray, axis: int) -> np.ndarray:
        steps = across * _per_image(of_x) + down * _per_image(of_y)
        steps += _per_image(middle[:, axis])
        return np.clip(steps, 0, side - 1, out=steps).astype(np.int32)

    columns, rows = source(cos + shear * sin, sin - shear * cos, 0), source(-sin, cos, 1)
    covered = atlas.reshape(-1).take(which.astype(np.int32)[:, None, None] * (side * side) + rows * side + columns)
    if shift is not None:
        covered *= np.clip(DISTRACTOR_RADIUS + 0.5 - np.sqrt(across**2 + down**2), 0, 1)
    return covered


def _pair_places(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres of the left digit (x, y) and of the right one (x, y), from unit (n x 4, 0..1)."""
    distance, direction = _between(unit[:, 0], PAIR_DISTANCE), np.deg2rad(_between(unit[:, 1], PAIR_DIRECTION))
    step_x, step_y = distance * np.cos(direction), distance * np.sin(direction)
    room = SIDE - 1 - 2 * MARGIN
    x = MARGIN + unit[:, 2] * (room - step_x)
    y = MARGIN + unit[:, 3] * (room - np.abs(step_y)) + np.maximum(-step_y, 0)
    return x, y, x + step_x, y + step_y


def _ground(unit: np.ndarray) -> np.ndarray:
    """Soft blobs of colour (n x 32 x 32 x 3) from unit (n x 3 x cells x cells, 0..1)."""
    blend = _zoom_matrix(GROUND_CELLS, SIDE / GROUND_CELLS, 1, "nearest")
    blobs = blend @ _between(unit, GROUND).astype(np.float32) @ blend.T
    return np.ascontiguousarray(blobs.transpose(0, 2, 3, 1))


def _paint(canvas: np.ndarray, covered: np.ndarray, layer: np.ndarray) -> None:
    """Lay one stroke pattern over every image, in place, in the layer's colour and opacity."""
    colour = _between(layer[:, 5:8], INK).astype(np.float32)[:, None, None, :]
    canvas += (covered * _per_image(_between(layer[:, 4], INK_OPACITY)))[..., None] * (colour - canvas)


def _draw(
    atlas: np.ndarray,
    pools: list[np.ndarray],
    labels: np.ndarray,
    rng: np.random.Generator,
    noise_rng: np.random.Generator,
) -> np.ndarray:
    """One image per label; pools holds the source indices of each digit.

    An image takes one row of random numbers and one block of noise, each from its own stream, so that a longer split
    begins with the images of a shorter one.
    """
    n, cells = len(labels), 3 * GROUND_CELLS**2
    unit = rng.random((n, cells + 4 + _PER_LAYER * (2 + DISTRACTORS)))
    canvas = _ground(unit[:, :cells].reshape(n, 3, GROUND_CELLS, GROUND_CELLS))
    left_x, left_y, right_x, right_y = _pair_places(unit[:, cells : cells + 4])
    layers = unit[:, cells + 4 :].reshape(n, 2 + DISTRACTORS, _PER_LAYER).transpose(1, 0, 2)
    sources = np.concatenate(pools)
    for layer in layers[2:]:
        which = sources[(layer[:, 3] * len(sources)).astype(np.int64)]
        shift = _between(layer[:, 8:10], (-DISTRACTOR_SHIFT, DISTRACTOR_SHIFT))
        _paint(canvas, _cover(atlas, which, layer[:, 10] * SIDE, layer[:, 11] * SIDE, layer[:, :3], shift), layer)
    sizes = np.array([len(pool) for pool in pools])
    starts = np.cumsum(sizes) - sizes
    for layer, digit, x, y in ((layers[0], labels // 10, left_x, left_y), (layers[1], labels % 10, right_x, right_y)):
        which = sources[starts[digit] + (layer[:, 3] * sizes[digit]).astype(np.int64)]
        _paint(canvas, _cover(atlas, which, x, y, layer[:, :3]), layer)
    canvas += NOISE * noise_rng.standard_normal((n, SIDE, SIDE, 1), dtype=np.float32)
    return np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8)


def _labels(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int64) % 100


def digits100(train: int, val: int, test: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (N x 32 x 32 x 3 uint8) and labels (N, int64: 10 * left + right) of "train", "val" and "test".

    Label i is i % 100: shuffle before training. A split depends on the seed and on its own size alone, and its first
    images are those of any smaller size. Another machine or NumPy may round a few pixels to the next grey.
    """
    sizes = {"train": train, "val": val, "test": test}
    greys, digit_of = load_sources()
    atlas = _enlarge(greys)
    blocks = source_blocks(len(greys))
    splits = {}
    for (name, count), stream in zip(sizes.items(), np.random.SeedSequence(seed).spawn(3), strict=True):
        low, high = blocks[name]
        pools = [low + np.flatnonzero(digit_of[low:high] == digit) for digit in range(10)]
        rng, noise_rng = (np.random.Generator(np.random.PCG64(child)) for child in stream.spawn(2))
        labels = _labels(count)
        chunks = [_draw(atlas, pools, labels[i : i + _CHUNK], rng, noise_rng) for i in range(0, count, _CHUNK)]
        splits[name] = (np.concatenate(chunks), labels)
    return splits


# ---- The cache: one file a combination of sizes and seed, which a newer recipe overwrites. ----


def cache_folder() -> Path:
    """Where composed sets are kept: below XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "atsc_plugin"


def cached_digits100(train: int, val: int, test: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`digits100`, composed by the first call of a user and read from the cache by the others, bit for bit the same.

    A cached file of another recipe, or whose content is not what was written, is composed anew. Where nothing can be
    written (a read-only or full disk) every call composes.
    """
    sizes, recipe = {"train": train, "val": val, "test": test}, _recipe()
    try:
        path = cache_folder() / f"digits100-{train}-{val}-{test}-{seed}.safetensors"
    except RuntimeError:  # no home folder
        return digits100(train, val, test, seed)
    if images := _read_cache(path, sizes, recipe):
        return {name: (array, _labels(len(array))) for name, array in images.items()}
    splits = digits100(train, val, test, seed)
    images = {name: pair[0] for name, pair in splits.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(save(images, {"recipe": recipe, "content": _content(images)}))
    except OSError:
        pass  # the set is here all the same
    return splits


def _recipe() -> str:
    """A hash of all that decides the pixels besides sizes and seed: this file and the libraries that draw."""
    versions = [metadata.version(name) for name in ("numpy", "scipy", "scikit-learn")]
    return hashlib.blake2b("\n".join([Path(__file__).read_text(encoding="utf-8"), *versions]).encode()).hexdigest()


def _content(images: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b()
    for array in images.values():
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _read_cache(path: Path, sizes: dict[str, int], recipe: str) -> dict[str, np.ndarray] | None:
    """The images of every split, None where the file is absent, of another recipe, or damaged."""
    try:
        with safe_open(path, framework="np") as file:
            written = file.metadata() or {}
            if written.get("recipe") != recipe:
                return None
            images = {name: file.get_tensor(name) for name in sizes}
    except (OSError, SafetensorError):
        return None
    whole = all(images[name].shape == (count, SIDE, SIDE, 3) for name, count in sizes.items())
    return images if whole and _content(images) == written.get("content") else None
