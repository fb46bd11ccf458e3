"""Toy data set of two-digit numbers: 100 classes "00".."99", 32x32 RGB, made in seconds without a download.

Every image shows two real handwritten digits from scikit-learn's load_digits, read from left to right.
It is meant for quickstarts and tests: a whole distillation run fits in minutes on two CPU cores.
It is a toy. It says nothing about CIFAR-100 or about photographs, a ranking of methods found on it need not hold
elsewhere, and its few hundred source digits per split make a difference of a point or two mean little.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

CLASS_NAMES: tuple[str, ...] = tuple(f"{number:02d}" for number in range(100))

# ---- The recipe. Lengths are in pixels of the 32x32 image, colours in 0..1, ranges are drawn from uniformly. ----
SIDE = 32
# Contiguous shares of the source order: neighbours there come from the same writer, so a contiguous cut keeps most
# writers in one split, where a shuffled cut would put every hand on both sides.
SHARES = {"train": 0.60, "val": 0.15, "test": 0.25}
# The side of the 8x8 source square when drawn. Small digits take depth to read.
DIGIT_SIZE = (10.5, 14.0)
DIGIT_ANGLE = (-25.0, 25.0)  # degrees, each digit for itself; more would turn 6 into 9
DIGIT_SHEAR = (-0.25, 0.25)
# The right digit stands this far from the left one, centre to centre (the least leaves some overlap), in a direction
# of at most this many degrees above or below the horizontal.
PAIR_DISTANCE = (11.0, 17.0)
PAIR_DIRECTION = (-60.0, 60.0)
# The pair stands anywhere that keeps both centres this far from the border. The free place makes "left" a relation
# between two digits and no place in the image, and the distance puts the relation beyond what a shallow net sees.
MARGIN = 5.5
INK = (0.5, 1.0)  # each colour channel of a digit
INK_OPACITY = (0.8, 1.0)
GROUND = (0.0, 0.25)  # each colour channel of the background's blobs
GROUND_CELLS = 4  # blobs per side
# Distractors: round pieces cut out of other digits, lying under the two whole ones.
DISTRACTORS = 3
DISTRACTOR_OPACITY = (0.8, 1.0)
DISTRACTOR_RADIUS = 3.0
DISTRACTOR_SHIFT = 2.5  # the piece's middle lies at most this many source pixels off the digit's middle, each way
NOISE = 0.03  # standard deviation, the same in the three channels
# ---- End of the recipe. ----

_ZOOM = 8  # the source is enlarged this much once, so that the nearest pixel is exact enough afterwards
_BORDER = 2  # source pixels of empty ground round every source digit
_CHUNK = 500  # images drawn at a time: larger chunks leave the processor's cache and take longer


def source_blocks(count: int = 1797) -> dict[str, tuple[int, int]]:
    """The half-open range of source indices that each split draws its digits from."""
    first = round(count * SHARES["train"])
    second = round(count * (SHARES["train"] + SHARES["val"]))
    return {"train": (0, first), "val": (first, second), "test": (second, count)}


def load_sources() -> tuple[np.ndarray, np.ndarray]:
    """The source digits in their original order: greys in 0..1 (count x 8 x 8) and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits100: got no scikit-learn; do `pip install scikit-learn`") from error
    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8) / 16).astype(np.float32), labels.astype(np.int64)


def _enlarge(greys: np.ndarray) -> np.ndarray:
    """Smoothly enlarge the source digits by _ZOOM. A cubic zoom is linear, so that of the identity is its matrix."""
    padded = np.pad(greys, ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER)))
    identity = np.eye(padded.shape[1])
    matrix = ndimage.zoom(identity, (_ZOOM, 1), order=3, mode="grid-constant", grid_mode=True).astype(np.float32)
    return np.clip(1.6 * (matrix @ padded @ matrix.T) - 0.25, 0, 1)


def _between(unit: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return bounds[0] + unit * (bounds[1] - bounds[0])


def _cover(atlas: np.ndarray, which: np.ndarray, x: np.ndarray, y: np.ndarray, unit: np.ndarray, shift: np.ndarray | None = None) -> np.ndarray:
    """How much each pixel is covered (n x 32 x 32) by digit `which` centred at x, y; unit's 3 columns give its form."""
    scale = 8 * _ZOOM / _between(unit[:, 0], DIGIT_SIZE)
    angle = np.deg2rad(_between(unit[:, 1], DIGIT_ANGLE))
    shear = _between(unit[:, 2], DIGIT_SHEAR)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    side = atlas.shape[1]
    grid = np.arange(SIDE)
    across = (grid[None] - x[:, None]).astype(np.float32)[:, None, :]
    down = (grid[None] - y[:, None]).astype(np.float32)[:, :, None]

    def source(of_x: np.ndarray, of_y: np.ndarray, axis: int) -> np.ndarray:
        steps = across * of_x.astype(np.float32)[:, None, None] + down * of_y.astype(np.float32)[:, None, None]
        steps += np.float32(side / 2) if shift is None else (side / 2 + shift[:, axis]).astype(np.float32)[:, None, None]
        return np.clip(steps, 0, side - 1, out=steps).astype(np.int32)

    columns = source(cos + shear * sin, sin - shear * cos, 0)
    rows = source(-sin, cos, 1)
    values = atlas.reshape(-1).take(which.astype(np.int32)[:, None, None] * (side * side) + rows * side + columns)
    if shift is not None:
        values *= np.clip(DISTRACTOR_RADIUS + 0.5 - np.sqrt(across**2 + down**2), 0, 1)
    return values


def _pair_places(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres x, y of the left digit and of the right one, from unit's 4 columns."""
    distance, direction = _between(unit[:, 0], PAIR_DISTANCE), np.deg2rad(_between(unit[:, 1], PAIR_DIRECTION))
    step_x, step_y = distance * np.cos(direction), distance * np.sin(direction)
    free_x = SIDE - 1 - 2 * MARGIN - step_x
    free_y = SIDE - 1 - 2 * MARGIN - np.abs(step_y)
    x = MARGIN + unit[:, 2] * free_x
    y = MARGIN + unit[:, 3] * free_y + np.maximum(-step_y, 0)
    return x, y, x + step_x, y + step_y


def _ground(unit: np.ndarray) -> np.ndarray:
    """Soft blobs (n x 32 x 32 x 3) from unit (n x 3 x cells x cells)."""
    identity = np.eye(GROUND_CELLS)
    blend = ndimage.zoom(identity, (SIDE / GROUND_CELLS, 1), order=1, mode="nearest", grid_mode=True)
    blend = blend.astype(np.float32)
    cells = _between(unit, GROUND).astype(np.float32)
    return np.ascontiguousarray((blend @ cells @ blend.T).transpose(0, 2, 3, 1))


def _draw(atlas: np.ndarray, pools: list[np.ndarray], labels: np.ndarray, rng: np.random.Generator,
          noise_rng: np.random.Generator) -> np.ndarray:
    """Draw one image per label. Every image takes its row of random numbers, so a longer split begins as a shorter."""
    n = len(labels)
    cells = 3 * GROUND_CELLS**2
    unit = rng.random((n, cells + 4 + 12 * (2 + DISTRACTORS)))
    canvas = _ground(unit[:, :cells].reshape(n, 3, GROUND_CELLS, GROUND_CELLS))
    place, layers = unit[:, cells : cells + 4], unit[:, cells + 4 :].reshape(n, 2 + DISTRACTORS, 12)
    left_x, left_y, right_x, right_y = _pair_places(place)

    def paint(cover: np.ndarray, layer: np.ndarray, opacity: tuple[float, float]) -> None:
        strength = _between(layer[:, 4], opacity).astype(np.float32)
        colour = _between(layer[:, 5:8], INK).astype(np.float32)[:, None, None, :]
        canvas[...] += (cover * strength[:, None, None])[..., None] * (colour - canvas)

    everything = np.concatenate(pools)
    for k in range(DISTRACTORS):
        layer = layers[:, 2 + k]
        which = everything[(layer[:, 3] * len(everything)).astype(np.int64)]
        shift = _between(layer[:, 8:10], (-DISTRACTOR_SHIFT * _ZOOM, DISTRACTOR_SHIFT * _ZOOM))
        cover = _cover(atlas, which, layer[:, 10] * SIDE, layer[:, 11] * SIDE, layer[:, :3], shift)
        paint(cover, layer, DISTRACTOR_OPACITY)
    for k, (digit, x, y) in enumerate(((labels // 10, left_x, left_y), (labels % 10, right_x, right_y))):
        layer = layers[:, k]
        sizes = np.array([len(pool) for pool in pools])[digit]
        starts = np.cumsum([0] + [len(pool) for pool in pools])[digit]
        which = everything[starts + (layer[:, 3] * sizes).astype(np.int64)]
        paint(_cover(atlas, which, x, y, layer[:, :3]), layer, INK_OPACITY)
    canvas += NOISE * noise_rng.standard_normal((n, SIDE, SIDE, 1), dtype=np.float32)
    return np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8)


def digits100(train: int, val: int, test: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (N x 32 x 32 x 3 uint8) and labels (int64, 10 * left + right) of "train", "val" and "test"."""
    greys, digit_of = load_sources()
    atlas = _enlarge(greys)
    splits = {}
    for position, (name, count) in enumerate({"train": train, "val": val, "test": test}.items()):
        if count < 1:
            raise ValueError(f"digits100: got {name}={count}; expected at least 1 image")
        low, high = source_blocks(len(greys))[name]
        pools = [low + np.flatnonzero(digit_of[low:high] == digit) for digit in range(10)]
        streams = np.random.SeedSequence(seed).spawn(3)[position].spawn(2)
        rng, noise_rng = (np.random.Generator(np.random.PCG64(stream)) for stream in streams)
        labels = np.arange(count, dtype=np.int64) % 100
        chunks = [_draw(atlas, pools, labels[i : i + _CHUNK], rng, noise_rng) for i in range(0, count, _CHUNK)]
        splits[name] = (np.concatenate(chunks), labels)
    return splits
