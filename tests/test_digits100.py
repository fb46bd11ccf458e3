"""The toy data set: its promises about splits, order, classes and errors."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from atsc_plugin.data import digits100 as module
from atsc_plugin.data.digits100 import CLASS_NAMES, cached_digits100, digits100, load_sources, source_blocks


@pytest.fixture(scope="module")
def small() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return digits100(train=1300, val=200, test=600, seed=3)


def test_the_class_names_are_the_hundred_two_digit_numbers() -> None:
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 100
    assert (CLASS_NAMES[7], CLASS_NAMES[73]) == ("07", "73")


def test_every_split_has_the_asked_size_shape_and_types(small) -> None:
    assert list(small) == ["train", "val", "test"]
    for name, count in {"train": 1300, "val": 200, "test": 600}.items():
        images, labels = small[name]
        assert images.shape == (count, 32, 32, 3) and images.dtype == np.uint8
        assert labels.shape == (count,) and labels.dtype == np.int64


def test_classes_are_balanced_to_within_one_image() -> None:
    labels = digits100(train=250, val=99, test=100, seed=0)
    for name, counts in {"train": {2, 3}, "val": {0, 1}, "test": {1}}.items():
        assert set(np.bincount(labels[name][1], minlength=100)) == counts


def test_the_same_seed_gives_the_same_images_and_another_seed_others(small) -> None:
    again, other = digits100(1300, 200, 600, seed=3), digits100(1300, 200, 600, seed=4)
    for name in small:
        assert np.array_equal(small[name][0], again[name][0])
        assert np.array_equal(small[name][1], again[name][1])
        assert not (small[name][0] == other[name][0]).all(axis=(1, 2, 3)).any()


def test_no_image_comes_twice_and_no_two_splits_share_one(small) -> None:
    images = np.concatenate([small[name][0] for name in small])
    assert len({image.tobytes() for image in images}) == len(images)


def test_a_smaller_split_is_the_beginning_of_a_larger_one_across_the_drawing_chunks(small) -> None:
    fewer = digits100(train=module._CHUNK + 1, val=1, test=37, seed=3)
    for name in small:
        count = len(fewer[name][0])
        assert np.array_equal(fewer[name][0], small[name][0][:count])
        assert np.array_equal(fewer[name][1], small[name][1][:count])


def test_the_source_blocks_cut_the_digits_into_disjoint_parts_with_all_ten_classes_in_each() -> None:
    greys, digit_of = load_sources()
    blocks = source_blocks(len(greys))
    indices = [index for low, high in blocks.values() for index in range(low, high)]
    assert sorted(indices) == list(range(1797))
    for low, high in blocks.values():
        assert set(digit_of[low:high]) == set(range(10))


def test_each_split_draws_from_its_own_block_and_from_the_digits_of_the_label(monkeypatch) -> None:
    greys, digit_of = load_sources()
    drawn: list[np.ndarray] = []
    cover = module._cover

    def spy(atlas, which, *rest):
        drawn.append(np.asarray(which))
        return cover(atlas, which, *rest)

    monkeypatch.setattr(module, "_cover", spy)
    splits = digits100(train=400, val=300, test=200, seed=1)
    calls = len(drawn) // 3  # each split is small enough for one drawing
    for position, name in enumerate(splits):
        low, high = source_blocks(len(greys))[name]
        layers = drawn[position * calls : (position + 1) * calls]
        assert all((low <= which).all() and (which < high).all() for which in layers)
        left, right = layers[-2:]
        assert np.array_equal(10 * digit_of[left] + digit_of[right], splits[name][1])
        assert len(set(left)) > 50


def test_the_left_digit_is_the_ten_and_stands_left_of_the_right_one() -> None:
    unit = np.random.default_rng(0).random((5000, 4))
    left_x, left_y, right_x, right_y = module._pair_places(unit)
    assert (right_x - left_x).min() > 5  # enough for a reader to see which one is the left
    distance = np.hypot(right_x - left_x, right_y - left_y)
    assert distance.min() >= module.PAIR_DISTANCE[0] - 1e-9 and distance.max() <= module.PAIR_DISTANCE[1] + 1e-9
    for place in (left_x, left_y, right_x, right_y):
        assert place.min() >= module.MARGIN - 1e-9 and place.max() <= 31 - module.MARGIN + 1e-9
        assert np.ptp(place) > 5


def test_the_tens_change_the_left_of_an_image_and_the_units_its_right() -> None:
    greys, digit_of = load_sources()
    atlas, pools = module._enlarge(greys), [np.flatnonzero(digit_of == digit) for digit in range(10)]

    def draw(number: int) -> np.ndarray:  # the same random numbers for every class
        streams = (np.random.Generator(np.random.PCG64(stream)) for stream in (1, 2))
        return module._draw(atlas, pools, np.full(200, number), *streams).astype(np.float64)

    def middle_of_change(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        columns = np.abs(one - other).sum(axis=(1, 3))
        return columns @ np.arange(32) / columns.sum(axis=1)

    units, tens = middle_of_change(draw(37), draw(33)), middle_of_change(draw(37), draw(77))
    assert (units > tens + 2).all()
    assert np.abs(draw(37) - draw(73)).max(axis=(1, 2, 3)).min() > 50


def test_a_drawn_digit_is_the_source_digit_enlarged_and_upright() -> None:
    greys, _ = load_sources()
    atlas = module._enlarge(greys)
    low, high = module.DIGIT_SIZE
    upright = np.array([[(16 - low) / (high - low), 0.5, 0.5]])  # drawn at twice the source's 8 pixels, not turned
    for index in (0, 4, 7):
        drawn = module._cover(atlas, np.array([index]), np.array([15.5]), np.array([15.5]), upright)[0]
        shrunk = drawn[8:24, 8:24].reshape(8, 2, 8, 2).mean(axis=(1, 3))
        assert np.corrcoef(shrunk.ravel(), greys[index].ravel())[0, 1] > 0.95


def test_images_use_the_grey_range_and_vary_within_a_class(small) -> None:
    images, labels = small["train"]
    assert 20 < images.mean() < 110
    assert (images.min(), images.max()) == (0, 255)
    same = images[labels == 42].astype(np.float32)
    assert same.std(axis=0).mean() > 15


# ---- The cache ----


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "atsc_plugin"


@pytest.fixture
def composed(monkeypatch) -> list:
    """The sizes of every set that is composed from here on."""
    calls: list[tuple] = []

    def spy(*sizes, _real=digits100):
        calls.append(sizes)
        return _real(*sizes)

    monkeypatch.setattr(module, "digits100", spy)
    return calls


def same(one, other) -> bool:
    pairs = [(one[name], other[name]) for name in ("train", "val", "test")]
    return list(one) == list(other) and all(
        np.array_equal(a[i], b[i]) and a[i].dtype == b[i].dtype for a, b in pairs for i in (0, 1)
    )


def test_a_set_is_composed_once_and_read_back_bit_for_bit(cache, composed) -> None:
    first, second = cached_digits100(120, 5, 7, 2), cached_digits100(120, 5, 7, 2)
    assert composed == [(120, 5, 7, 2)]
    assert same(first, second) and same(second, digits100(120, 5, 7, seed=2))
    assert second["train"][0].flags.writeable
    assert [path.name for path in cache.iterdir()] == ["digits100-120-5-7-2.safetensors"]  # nothing half written


def test_other_sizes_and_seeds_are_other_sets(cache, composed) -> None:
    cached_digits100(3, 2, 1, 0)
    assert len(cached_digits100(4, 2, 1, 0)["train"][0]) == 4
    assert not same(cached_digits100(3, 2, 1, 1), cached_digits100(3, 2, 1, 0))
    assert len(composed) == 3


def test_a_read_set_needs_neither_scikit_learn_nor_scipy(cache, monkeypatch) -> None:
    written = cached_digits100(3, 2, 1, 0)
    for name in ("sklearn", "sklearn.datasets", "scipy", "scipy.ndimage"):
        monkeypatch.setitem(sys.modules, name, None)
    assert same(cached_digits100(3, 2, 1, 0), written)


@pytest.mark.parametrize("damage", ["one pixel", "cut off", "empty", "text", "a folder", "another recipe"])
def test_a_damaged_cache_or_one_of_another_recipe_is_composed_anew(cache, composed, monkeypatch, damage) -> None:
    expected = cached_digits100(3, 2, 1, 0)
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "one pixel":
        content[-1] ^= 1
    elif damage == "cut off":
        content = content[:-5]
    elif damage in ("empty", "text"):
        content = b"" if damage == "empty" else b"hello"
    path.write_bytes(content)
    if damage == "another recipe":
        monkeypatch.setattr(module, "_recipe", lambda: "newer")
    if damage == "a folder":
        path.unlink()
        path.mkdir()
    assert same(cached_digits100(3, 2, 1, 0), expected)
    assert len(composed) == 2
    if damage != "a folder":  # which nobody replaces
        cached_digits100(3, 2, 1, 0)
        assert len(composed) == 2


def test_where_nothing_can_be_written_every_call_composes(tmp_path, monkeypatch, composed) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert same(cached_digits100(3, 2, 1, 0), cached_digits100(3, 2, 1, 0))
    assert len(composed) == 2


def test_a_disk_that_is_full_leaves_no_half_file(cache, composed, monkeypatch) -> None:
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert len(cached_digits100(3, 2, 1, 0)["val"][0]) == 2
    assert list(cache.iterdir()) == []


def test_a_cache_place_that_is_no_absolute_path_is_the_home_folders(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert module.cache_folder() == tmp_path / ".cache" / "atsc_plugin"
