"""Folders of images of any size through workers: seeds, ranks, pixels, odd files, which loader is taken and why."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import png
from PIL import Image
from runs import Before, DroppingNet, assert_the_same_run, dying
from torch.utils.data import DataLoader
from torchvision import transforms

import atsc_plugin
from atsc_plugin import build, host
from atsc_plugin.__main__ import main
from atsc_plugin.config import load_cfg
from atsc_plugin.data import datasets, pictures
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.data.worker_loader import WorkerLoader
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import ConfigError, PluginError

ROOT = Path(__file__).resolve().parents[1] / "configs"
CPU = torch.device("cpu")
AUGMENTED = ["DATASET.CROP", "resized", "DATASET.AUGMENT", "rand-2-9", "DATASET.ERASING", "0.5"]


@pytest.fixture(autouse=True)
def _registered(tmp_path, monkeypatch):
    atsc_plugin.register()
    monkeypatch.chdir(tmp_path)


def photo(draw, width, height):
    coarse = Image.fromarray(draw.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def squeezed(image, side=32):
    """An RGB image in a square, 0 to 1."""
    return transforms.functional.to_tensor(image.resize((side, side), Image.Resampling.BILINEAR))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of 6 training and 3 test JPEGs of other sizes each."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                size = draw.integers(40, 90, 2).tolist()
                photo(draw, *size).save(root / split / name / f"{number}.jpg", quality=90)
    return root


def words(root, *more, workers=0):
    keys = ["DATASET.TYPE", "folder", "DATASET.ROOT", str(root), "DATASET.IMAGE_SIZE", "32", "SOLVER.BATCH_SIZE", "5"]
    return [*keys, "DATASET.NUM_WORKERS", str(workers), "DATASET.TEST.BATCH_SIZE", "4", "SOLVER.EPOCHS", "2", *more]


def cfg_of(root, *more, **rest):
    return load_cfg(ROOT / "quickstart" / "vanilla.yaml", words(root, *more, **rest))


def data_of(root, *more, **rest):
    return build.data_of(cfg_of(root, *more, **rest), CPU)


def epoch_of(loader, epoch):
    loader.set_epoch(epoch)
    return list(loader)


def by_number(batches):
    return {int(i): image for images, _, index in batches for image, i in zip(images, index, strict=True)}


# ---- what the draws follow from ----


@pytest.mark.parametrize("policy", ["rand-2-9", "trivial", "auto"])
def test_an_image_has_one_augmentation_an_epoch_whatever_batch_and_worker_it_is_in(photos, policy):
    keys = [*AUGMENTED, "DATASET.AUGMENT", policy]
    fives, eights = data_of(photos, *keys), data_of(photos, *keys, "SOLVER.BATCH_SIZE", "8", workers=1)
    one, two = by_number(epoch_of(fives.train, 1)), by_number(epoch_of(eights.train, 1))
    assert sorted(one) == sorted(two) == list(range(12))
    assert all(torch.equal(one[number], two[number]) for number in one)
    later = by_number(epoch_of(fives.train, 2))
    assert not any(torch.equal(one[number], later[number]) for number in one)


def test_without_set_epoch_the_passes_count_up_as_the_device_loaders_do(photos):
    loader = data_of(photos, *AUGMENTED).train
    passes = [by_number(loader), by_number(loader)]
    assert torch.equal(passes[1][3], by_number(epoch_of(loader, 1))[3])
    assert not torch.equal(passes[0][3], passes[1][3])


def test_two_ranks_see_the_images_and_labels_of_one(photos):
    cfg = cfg_of(photos, *AUGMENTED, "SOLVER.BATCH_SIZE", "4")

    def batches(rank, world):
        options = datasets.LoaderOptions(4, 4, CPU, 1, rank, world)
        return epoch_of(datasets.own_data(cfg.DATASET, options, 32).train, 1)

    whole, ranks = batches(0, 1), [batches(rank, 2) for rank in (0, 1)]
    assert len(whole) == 3
    for batch, *parts in zip(whole, *ranks, strict=True):
        for entry, shares in zip(batch, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(shares), entry)


class Dropping(DroppingNet):
    """Of two classes."""

    def __init__(self):
        super().__init__(num_classes=2)


def trainer_of(photos, folder, *more, **rest):
    cfg = cfg_of(photos, *AUGMENTED, "SOLVER.MIXUP", "0.8", "SOLVER.CUTMIX", "1", *more, **rest)
    data = build.data_of(cfg, CPU)
    torch.manual_seed(1)
    distiller = host.distiller_dict["NONE"](Dropping())
    return PluginTrainer("run", distiller, data.train, data.test, cfg, facts=data.facts(), folder=folder)


def test_no_and_two_workers_end_with_equal_weights_and_a_run_that_died_too(photos, tmp_path):
    """The network draws from torch's global generator in every step, as dropout does."""
    whole = trainer_of(photos, tmp_path / "whole")
    whole.train()
    workers = trainer_of(photos, tmp_path / "workers", workers=2)
    workers.train()
    assert_the_same_run(whole, workers)
    dies = trainer_of(photos, tmp_path / "dies", "LOG.CHECKPOINT_STEPS", "2")
    dies.step = Before(dies.step, dying(6))  # the third of epoch 2
    with pytest.raises(KeyboardInterrupt):
        dies.train()
    resumed = trainer_of(photos, tmp_path / "dies", "LOG.CHECKPOINT_STEPS", "2", workers=2)
    resumed.train(resume=True)
    assert_the_same_run(whole, resumed)


# ---- pixels ----


def test_evaluation_is_torchvisions_resize_and_centre_crop_and_what_predict_sees(photos):
    data = data_of(photos, "DATASET.LOADER", "host", "DATASET.EVAL_CROP", "0.8", workers=1)
    theirs = [transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor()]
    theirs = transforms.Compose([*theirs, transforms.Normalize(data.mean, data.std)])
    files = [photos / "test" / name / f"{number}.jpg" for name in ("cat", "dog") for number in range(3)]
    images, labels = (torch.cat(entries) for entries in zip(*data.test, strict=True))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    card = {**data.facts(), "class_names": data.class_names}
    for file, image in zip(files, images, strict=True):
        assert torch.equal(image, theirs(Image.open(file)))
        assert np.allclose(pictures.normalised(pictures.read(file, card)[None], card)[0], image, atol=1e-6)
    small = data_of(photos, "DATASET.EVAL_CROP", "0.8")  # decoded into memory
    assert isinstance(small.train, DeviceLoader) and small.loading == "on the device"
    pixels = [
        pictures.pixels_of(torch.cat([image for image, _ in each.test]).numpy(), each.facts()) for each in (small, data)
    ]
    assert np.array_equal(*pixels)


def test_a_training_image_without_draws_is_the_evaluated_one_and_statistics_are_the_images_own(photos):
    plain = ["DATASET.LOADER", "host", "DATASET.PADDING", "0", "DATASET.FLIP", "none"]
    data = data_of(photos, *plain)
    images = by_number(data.train)
    pixels = squeezed(Image.open(photos / "train" / "dog" / "2.jpg"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.mean, data.std))
    assert torch.allclose(images[8] * std + mean, pixels, atol=1e-6)
    memory = data_of(photos, *plain, "DATASET.LOADER", "device")
    assert data.mean == pytest.approx(memory.mean, abs=1e-4) and data.std == pytest.approx(memory.std, abs=1e-4)
    given = data_of(photos, *plain, "DATASET.MEAN", "[0.5, 0.5, 0.5]", "DATASET.STD", "[0.25, 0.25, 0.25]")
    assert (given.mean, given.std) == ([0.5] * 3, [0.25] * 3)


def test_erasing_sets_a_rectangle_of_the_normalised_image_to_zero(photos):
    keys = ["DATASET.PADDING", "0", "DATASET.FLIP", "none", "DATASET.ERASING", "1"]
    erased = by_number(data_of(photos, *keys).train)
    plain = by_number(data_of(photos, *keys, "DATASET.ERASING", "0", "DATASET.LOADER", "host").train)
    for number, image in erased.items():
        gone = (image == 0).all(0)
        assert 0.01 < gone.float().mean() < 0.4
        assert torch.equal(image[:, ~gone], plain[number][:, ~gone])


# ---- odd pictures ----


def test_grey_cmyk_16_bit_and_turned_pictures_are_read_right(tmp_path):
    draw = np.random.default_rng(3)
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
    base = photo(draw, 60, 40)
    folder = tmp_path / "train" / "a"
    base.convert("L").save(folder / "grey.png")
    base.convert("CMYK").save(folder / "cmyk.jpg", quality=100, subsampling=0)
    ramp = np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27
    Image.fromarray(ramp).save(folder / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    base.save(folder / "turned.png", exif=exif)
    base.save(tmp_path / "val" / "a" / "plain.png")
    plain = ["DATASET.PADDING", "0", "DATASET.FLIP", "none"]
    plain += ["DATASET.MEAN", "[0.0, 0.0, 0.0]", "DATASET.STD", "[1.0, 1.0, 1.0]"]
    data = data_of(tmp_path, "DATASET.LOADER", "host", "DATASET.IMAGE_SIZE", "40", *plain)
    cmyk, grey, sixteen, turned = (image for _, image in sorted(by_number(data.train).items()))
    eight = Image.fromarray(((ramp.astype(int) + 128) // 257).astype(np.uint8))
    assert torch.equal(grey, squeezed(base.convert("L").convert("RGB"), 40))
    assert torch.equal(turned, squeezed(base.transpose(Image.Transpose.ROTATE_270), 40))
    assert torch.equal(sixteen, squeezed(eight.convert("RGB"), 40))
    assert (cmyk - squeezed(base, 40)).abs().mean() < 0.03


def copied(photos, root):
    for file in photos.rglob("*.jpg"):
        place = root / file.relative_to(photos)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    return root


def test_what_cannot_be_read_is_refused_before_training_with_number_and_names(photos, tmp_path):
    root = copied(photos, tmp_path / "odd")
    whole = (root / "train" / "cat" / "0.jpg").read_bytes()
    (root / "train" / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    buffer = io.BytesIO()
    photo(np.random.default_rng(0), 50, 50).save(buffer, "PNG")
    (root / "train" / "dog" / "cut.png").write_bytes(buffer.getvalue()[:-40])
    (root / "test" / "dog" / "bomb.png").write_bytes(png(100_000, 100_000))
    with pytest.raises(PluginError) as error:
        data_of(root, *AUGMENTED)
    message = str(error.value)
    assert "3 unreadable images: train/cat/cut.jpg: " in message and message.endswith("Repair or remove them.")
    assert "test/dog/bomb.png: Image size (10000000000 pixels) exceeds" in message and "train/dog/cut.png" in message


def test_damage_inside_a_file_is_named_when_it_is_read_without_a_workers_traceback(photos, tmp_path, capsys):
    root = copied(photos, tmp_path / "odd")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[9000:9400] = bytes(400)
    (root / "train" / "dog" / "broken.png").write_bytes(content)
    keys = words(root, *AUGMENTED, "DATASET.MEAN", "[0.5,0.5,0.5]", "DATASET.STD", "[0.5,0.5,0.5]", workers=1)
    assert main(["train", "--cfg", str(ROOT / "quickstart" / "vanilla.yaml"), *keys]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {root}/train/dog/broken.png cannot be read as an image: ")
    assert "Traceback" not in said


def test_files_are_checked_once_and_anew_when_one_has_changed(photos, tmp_path, capsys):
    root = copied(photos, tmp_path / "some")
    identities = []
    for _ in range(2):
        identities.append(data_of(root, *AUGMENTED).identity)
    assert capsys.readouterr().out.count(f"checking the files of {root}: 18 images") == 1
    assert identities[0] == identities[1] == data_of(copied(photos, tmp_path / "twin"), *AUGMENTED).identity
    photo(np.random.default_rng(9), 50, 50).save(root / "train" / "cat" / "0.jpg")
    other = data_of(root, *AUGMENTED)
    assert other.identity != identities[0]
    assert other.test_identity == data_of(photos, *AUGMENTED).test_identity
    assert other.test_identity != data_of(root, *AUGMENTED, "DATASET.EVAL_CROP", "1").test_identity


# ---- which loader, and which keys ----


def test_small_folders_lie_on_the_device_and_all_else_streams_with_the_reason(photos, monkeypatch, capsys):
    assert data_of(photos).loading == "on the device"
    for keys, reason in (
        (["DATASET.AUGMENT", "trivial"], "DATASET.AUGMENT trivial"),
        (["DATASET.ERASING", "0.25", "DATASET.CROP", "resized"], "DATASET.ERASING 0.25, DATASET.CROP resized"),
        (["DATASET.LOADER", "host"], "DATASET.LOADER host"),
    ):
        loaded = data_of(photos, *keys, workers=2)
        assert (type(loaded.train), type(loaded.test)) == (WorkerLoader, DataLoader)
        assert loaded.loading == f"2 workers: {reason}"
    monkeypatch.setattr(datasets, "_LARGEST_DECODED", 18 * 3 * 32 * 32 - 1)
    assert data_of(photos).loading == "0 workers: decoded, its images have 0 MiB"
    assert data_of(photos, "DATASET.LOADER", "device").loading == "on the device"
    with pytest.raises(PluginError, match="IMAGE_SIZE is 0, but the images of .* stream"):
        data_of(photos, "DATASET.IMAGE_SIZE", "0")
    keys = words(photos, *AUGMENTED, "SOLVER.MIXUP", "0.8", "--dry-run")
    assert main(["train", "--cfg", str(ROOT / "quickstart" / "vanilla.yaml"), *keys]) == 0
    plan = capsys.readouterr().out
    assert "  loader  0 workers: DATASET.AUGMENT rand-2-9, DATASET.ERASING 0.5, DATASET.CROP resized" in plan
    assert "  labels  soft, by SOLVER.MIXUP 0.8" in plan


def test_a_run_whose_folder_no_longer_fits_is_continued_once_its_loader_is_named(
    photos, tmp_path, tiny_networks, monkeypatch, capsys
):
    file = tmp_path / "run.yaml"
    file.write_text((ROOT / "quickstart" / "vanilla.yaml").read_text())
    command = ["train", "--cfg", str(file), *words(photos, "DISTILLER.STUDENT", "tiny", "SOLVER.EPOCHS", "1")]
    assert main(command) == 0
    next(tmp_path.rglob("result.json")).unlink()
    monkeypatch.setattr(datasets, "_LARGEST_DECODED", 0)
    assert main([*command, "--resume"]) == 2
    assert "Name the same data" in capsys.readouterr().err
    file.write_text(file.read_text().replace("DATASET:", 'DATASET:\n  LOADER: "device"'))
    assert main([*command, "--resume"]) == 0
    assert "resuming with DATASET.LOADER: was auto, asked device; the new value holds" in capsys.readouterr().out


def test_a_validation_split_of_a_streamed_folder_is_the_one_of_a_decoded_one(photos):
    streamed = data_of(photos, "DATASET.VAL_SPLIT", "0.25", "DATASET.LOADER", "host")
    decoded = data_of(photos, "DATASET.VAL_SPLIT", "0.25")
    assert (streamed.train_images, len(streamed.val.dataset)) == (9, 3)
    assert streamed.val.dataset.labels.tolist() == decoded.val.labels.tolist()


def test_images_in_memory_are_augmented_by_workers_too(tmp_path):
    draw = np.random.default_rng(0)
    arrays = {f"{split}_images": draw.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8) for split in ("train", "test")}
    np.savez("set.npz", **arrays, train_labels=np.arange(8) % 2, test_labels=np.arange(8) % 2)
    keys = ["DATASET.TYPE", "npz", "DATASET.PADDING", "0", "DATASET.AUGMENT", "trivial"]
    data = data_of("set.npz", *keys, workers=1)
    assert isinstance(data.train, WorkerLoader) and isinstance(data.test, DeviceLoader)
    augmented = by_number(epoch_of(data.train, 1))
    plain = by_number(data_of("set.npz", *keys, "DATASET.AUGMENT", "none").train)
    assert sorted(augmented) == list(range(8))
    assert not all(torch.allclose(augmented[number], plain[number]) for number in plain)
    same = by_number(data_of("set.npz", *keys, "DATASET.AUGMENT", "none", "DATASET.LOADER", "host").train)
    assert all(torch.allclose(same[number], plain[number], atol=1e-6) for number in plain)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["DATASET.TYPE", "npz", "DATASET.CROP", "resized"], "DATASET.CROP is resized, which npz does not follow"),
        (["DATASET.TYPE", "cifar100", "DATASET.EVAL_CROP", "0.9"], "DATASET.EVAL_CROP is 0.9, which cifar100 does not"),
        (["DATASET.TYPE", "imagenet", "DATASET.AUGMENT", "auto"], "DATASET.AUGMENT is auto, which imagenet does not"),
        (["DATASET.TYPE", "cifar100", "DATASET.FLIP", "none"], "DATASET.FLIP is none, which cifar100 does not follow"),
        (["DATASET.ERASING", "0.1", "DATASET.LOADER", "device"], "which DATASET.LOADER device does not know. Use auto"),
        (["DATASET.TYPE", "cifar100", "DATASET.ERASING", "0.1", "DATASET.LOADER", "host"], "DATASET.LOADER host does"),
        (["DATASET.CROP", "resized", "DATASET.PADDING", "2"], "DATASET.PADDING is 2, but DATASET.CROP resized pads"),
        (["DATASET.AUGMENT", "rand-3-9"], "DATASET.AUGMENT: got 'rand-3-9', expected one of none, rand-2-9"),
        (["DATASET.EVAL_CROP", "0.9", "DATASET.IMAGE_SIZE", "0"], "but DATASET.IMAGE_SIZE is 0; expected a side"),
        (["DATASET.EVAL_CROP", "1.5"], "DATASET.EVAL_CROP: got 1.5, expected at most 1"),
    ],
)
def test_a_key_that_would_be_ignored_is_an_error_by_name(keys, message):
    with pytest.raises(ConfigError) as error:
        cfg_of("nowhere", *keys)
    assert message in str(error.value)


# ---- from the folder to the card, and the recipes ----


def test_a_streamed_run_ends_in_a_card_with_the_folders_classes_and_crop(photos, tmp_path, tiny_networks):
    keys = words(photos, *AUGMENTED, "DATASET.EVAL_CROP", "0.8", "DISTILLER.STUDENT", "tiny", "SOLVER.EPOCHS", "1")
    assert main(["train", "--cfg", str(ROOT / "quickstart" / "vanilla.yaml"), *keys]) == 0
    run = next(tmp_path.rglob("result.json")).parent
    card = json.loads((run / "deploy_last.json").read_text())
    assert (card["class_names"], card["eval_crop"], card["image_size"]) == (["cat", "dog"], 0.8, 32)
    assert json.loads((run / "about.json").read_text())["loader"] == "WorkerLoader"
    assert main(["predict", str(photos / "test" / "dog"), "--model", str(run), "--top", "1"]) == 0


RECIPES = sorted((ROOT / "folder").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_of_a_folder_loads_and_plans_on_any_pictures(photos, path, capsys):
    if "timm/" in path.read_text():
        pytest.importorskip("timm")
    assert (
        main(["train", "--cfg", str(path), "DATASET.ROOT", str(photos), "DATASET.IMAGE_SIZE", "64", "--dry-run"]) == 0
    )
    plan = capsys.readouterr().out
    assert "2 classes, 64 px" in plan and "  loader  4 workers: DATASET.AUGMENT" in plan
