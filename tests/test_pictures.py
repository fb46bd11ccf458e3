"""Image files as they are decoded: of named formats only, upright, in 8 bits; none blocks or starts a program."""

import io
import os
from contextlib import suppress

import numpy as np
import pytest
from deploy_files import write_student
from hostile import EPS, fake_ghostscript, output_of, png, shows_no_control_characters, time_limit
from PIL import Image, ImageOps

from atsc_plugin.data import arrays, pictures
from atsc_plugin.errors import PluginError


def unreadable(path, message):
    with time_limit(), pytest.raises(pictures.Unreadable, match=message):
        pictures.decoded(path)


def folder_tree(root, odd):
    """Two classes of 32 x 32 pixels, and one more file, `odd` = (name, bytes)."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(root / split / name / "a.png")
    (root / "train" / "cat" / odd[0]).write_bytes(odd[1])
    return root


def test_an_eps_named_png_starts_no_program_wherever_images_are_opened(tmp_path):
    write_student(tmp_path / "small")
    root = folder_tree(tmp_path / "tree", ("x.png", EPS))
    with fake_ghostscript(tmp_path) as trace:
        status, printed = output_of(["predict", str(root / "train"), "--model", str(tmp_path / "small")])
        assert (status, printed.count("skipped")) == (1, 2)
        with pytest.raises(PluginError, match="1 unreadable images: train/cat/x.png: it is no image of the kinds PNG"):
            arrays.read_folder(root, 32)
        with pytest.raises(PluginError, match="x.png cannot be read as an image"):
            pictures.as_torchvision(root / "train" / "cat" / "x.png")
        assert not trace.exists()


def test_the_fake_program_would_have_been_seen(tmp_path):
    """Without named formats Pillow starts it: what the test above rests on."""
    (tmp_path / "x.png").write_bytes(EPS)
    with fake_ghostscript(tmp_path) as trace:
        with suppress(Exception), Image.open(tmp_path / "x.png") as image:
            image.load()
        assert trace.exists()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "ICO", "TGA", "PCX"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, kind):
    Image.new("RGB", (8, 8)).save(tmp_path / "x", kind)
    (tmp_path / "x").rename(tmp_path / "x.png")
    unreadable(tmp_path / "x.png", "it is no image of the kinds PNG, JPEG, BMP, WEBP, PPM")


@pytest.mark.parametrize("ending", ["png", "ppm"])  # Pillow's modes I;16 and I
def test_a_16_bit_ramp_stays_a_ramp(tmp_path, ending):
    """v = 257 k is the grey k exactly: 0, 257, ..., 65535 becomes 0, 1, ..., 255."""
    ramp = (np.arange(256) * 257).reshape(16, 16)
    path = tmp_path / f"ramp.{ending}"
    Image.fromarray(ramp.astype(np.uint16)).save(path)
    if ending == "ppm":
        path.write_bytes(b"P5 16 16 65535\n" + ramp.astype(">u2").tobytes())
    got = np.asarray(pictures.decoded(path))
    assert got[:, :, 0].ravel().tolist() == list(range(256))
    assert (got[:, :, 0] == got[:, :, 2]).all()


def test_a_16_bit_ppm_is_scaled_by_its_own_maximum(tmp_path):
    """0, 1000 and 2000 of at most 2000 are black, half and white: 32768 / 257 = 127.5."""
    (tmp_path / "x.ppm").write_bytes(b"P5 3 1 2000\n" + np.array([0, 1000, 2000], ">u2").tobytes())
    assert np.asarray(pictures.decoded(tmp_path / "x.ppm"))[0, :, 0].tolist() in ([0, 127, 255], [0, 128, 255])


def test_floating_point_pixels_are_refused_by_name(tmp_path):
    (tmp_path / "x.ppm").write_bytes(b"Pf 2 2 -1.0\n" + np.ones(4, "<f4").tobytes())
    unreadable(tmp_path / "x.ppm", r"floating-point numbers \(mode F\); expected 8 or 16 bits. Convert it")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright_as_its_camera_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(tmp_path / "x.png"))
    assert np.array_equal(np.asarray(pictures.decoded(tmp_path / "x.png")), np.asarray(wanted))
    assert pictures.size_of(tmp_path / "x.png") == wanted.size
    assert (wanted.size == (20, 30)) == (orientation >= 5)


def test_a_folder_is_read_upright_too(tmp_path):
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 3  # upside down
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    splits, _ = arrays.read_folder(folder_tree(tmp_path / "tree", ("b.png", buffer.getvalue())), 0)
    assert np.array_equal(splits["train"][0][1], pixels[::-1])


def test_exif_that_cannot_be_read_does_not_cost_the_image(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    assert pictures.decoded(tmp_path / "x.jpg").size == (8, 8)


@pytest.mark.parametrize("size", [(2**31 - 1, 2**31 - 1), (100_000, 100_000), (1, 2**28)])
def test_an_image_that_claims_more_pixels_than_there_is_memory_for_is_refused_unread(tmp_path, size):
    (tmp_path / "x.png").write_bytes(png(*size))
    unreadable(tmp_path / "x.png", "pixels; expected at most 110,000,000|exceeds limit")


def test_a_strip_is_not_blown_up_to_the_cut_of_imagenet(tmp_path):
    """1 x 60000 pixels brought to 256 in width would be 256 x 15,360,000: 4 billion."""
    Image.new("RGB", (1, 60_000)).save(tmp_path / "x.png")
    with pytest.raises(pictures.Unreadable, match="it is 1 x 60000 pixels, too narrow to be brought to 256"):
        pictures.read(tmp_path / "x.png", {"dataset": "imagenet", "image_size": 224})


def test_pipes_and_names_that_are_not_utf_8_cost_nobody_else_a_prediction(tmp_path):
    photos = os.fsencode(tmp_path / "photos")
    os.mkdir(photos)
    Image.new("RGB", (32, 32)).save(tmp_path / "good.png")
    for name in (b"a\xff.png", b"b.png", b"c\x1b[31m.png"):
        with open(os.path.join(photos, name), "wb") as file:
            file.write((tmp_path / "good.png").read_bytes())
    os.mkfifo(os.path.join(photos, b"d.png"))
    write_student(tmp_path / "small", class_names=["\x1b]0;title\x07", "caf\udce9", *"abcdefgh"])
    with time_limit():
        status, printed = output_of(
            ["predict", str(tmp_path / "photos"), "--model", str(tmp_path / "small"), "--top", "10"]
        )
    assert status == 1
    assert shows_no_control_characters(printed)
    for part in (
        "a\\udcff.png: ",
        "b.png: ",
        "c\\x1b[31m.png: ",
        "d.png: ",
        "\\x1b]0;title\\x07 ",
        "1 of 4 images skipped",
    ):
        assert part in printed, part
    assert "d.png is a pipe or a device" in printed


def test_class_folders_that_are_not_utf_8_are_read_and_named_in_a_form_that_prints(tmp_path):
    root = folder_tree(tmp_path / "tree", ("b.png", (b"")))
    (root / "train" / "cat" / "b.png").unlink()
    for split in ("train", "test"):
        os.rename(root / split / "dog", os.path.join(os.fsencode(root / split), b"dog\xff\x1b"))
    splits, names = arrays.read_folder(root, 0)
    assert names == ["cat", "dog\\udcff\\x1b"]
    assert splits["train"][1].tolist() == [0, 1]


def test_large_images_go_through_the_network_a_few_at_a_time():
    """2^22 pixels at once: 64 images of 256 pixels, 4 of 1024, one of 2048."""
    assert [pictures.batch_of({"image_size": side}) for side in (32, 256, 1024, 2048)] == [64, 64, 4, 1]
