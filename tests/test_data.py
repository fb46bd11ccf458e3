"""Anybody's data: npz files, class folders, CIFAR-10's files; what is wrong with them is told before any network."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import SMALL
from tiny import HeadlessNet
from torch.utils.data import DataLoader, Dataset

import atsc_plugin
from atsc_plugin import build, host
from atsc_plugin.__main__ import main
from atsc_plugin.config import load_cfg
from atsc_plugin.data import datasets as datasets_module
from atsc_plugin.data.datasets import validation_indices, with_validation_loader
from atsc_plugin.data.sample import statistics
from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.host import data_place


@pytest.fixture(autouse=True)
def _registered(tmp_path, monkeypatch, tiny_networks):
    atsc_plugin.register()
    monkeypatch.chdir(tmp_path)


def arrays(train=20, test=8, side=32, classes=4, **changes):
    draw = np.random.default_rng(0)
    made = {}
    for split, count in (("train", train), ("test", test)):
        made[f"{split}_images"] = draw.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
        made[f"{split}_labels"] = np.arange(count) % classes
    return {**made, **changes}


def npz(path="set.npz", **changes):
    content = arrays(**changes)
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


def folder_tree(root, sizes=(32,), splits=("train", "val"), classes=("cat", "dog"), count=4):
    draw = np.random.default_rng(1)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                side = sizes[i % len(sizes)]
                pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def words(kind, root, *more):
    return ["DATASET.TYPE", kind, "DATASET.ROOT", str(root), "SOLVER.BATCH_SIZE", "8", "SOLVER.EPOCHS", "1",
            "DISTILLER.TEACHER", "tiny_teacher", "DISTILLER.STUDENT", "tiny", "TEACHER.EPOCHS", "1",
            "TEACHER.LR_DECAY_STAGES", "[]", *more]  # fmt: skip


QUICK = build.Path(__file__).resolve().parents[1] / "configs" / "quickstart"


def data(kind, root, *more):
    cfg = load_cfg(QUICK / "vanilla.yaml", words(kind, root, *more))
    return build.data_of(cfg, torch.device("cpu"))


def run(kind, root, *more, method="simkd"):
    return main(["train", "--cfg", str(QUICK / f"{method}.yaml"), *words(kind, root, *more)])


# ---- npz ----


def test_an_npz_file_trains_and_its_card_carries_names_and_normalisation(tmp_path):
    assert run("npz", npz(class_names=np.array(["a", "b", "c", "d"]))) == 0
    card = json.loads(next(tmp_path.rglob("deploy_last.json")).read_text())
    assert card["class_names"] == ["a", "b", "c", "d"]
    assert card["classes"] == 4
    pixels = arrays()["train_images"][..., 1] / 255
    assert card["mean"][1] == pytest.approx(pixels.mean(), abs=1e-4)
    assert card["std"][1] == pytest.approx(pixels.std(), abs=1e-4)
    assert main(["eval", str(next(tmp_path.rglob("result.json")).parent)]) == 0


def test_the_normalisation_of_the_config_wins():
    loaded = data("npz", npz(), "DATASET.MEAN", "[0.5, 0.25, 0.125]", "DATASET.STD", "[1.0, 1.0, 1.0]")
    image, _ = next(iter(loaded.test))
    by_hand = arrays()["test_images"][0, 3, 4] / 255 - [0.5, 0.25, 0.125]
    assert image[0, :, 3, 4].tolist() == pytest.approx(by_hand.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("MEAN", "[123.7, 116.3, 103.5]", "three decimals in 0..1, as of pixels / 255"),
        ("STD", "[58.4, 57.1, 57.4]", "three decimals above 0 and up to 1"),
        ("STD", "[0.0, 0.5, 0.5]", "three decimals above 0 and up to 1"),
        ("MEAN", "[0.5]", "three decimals in 0..1"),
    ],
)
def test_a_normalisation_of_another_scale_is_told(key, value, told):
    with pytest.raises(ConfigError, match=rf"DATASET.{key}: got \[.*, expected {told}"):
        data("npz", "any.npz", f"DATASET.{key}", value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train_images": None}, "lacks train_images; it has"),
        ({"train_images": np.zeros((20, 32, 32, 3))}, "float64 (20, 32, 32, 3); expected uint8"),
        ({"train_images": np.zeros((20, 3, 32, 32), np.uint8)}, "expected uint8 N x H x W x 3"),
        ({"train_labels": np.zeros(20)}, "expected integers"),
        ({"val_images": np.zeros((4, 32, 32, 3), np.uint8)}, "lacks val_labels; it has"),
        ({"test_images": np.zeros((0, 32, 32, 3), np.uint8), "test_labels": np.zeros(0, int)}, "N > 0"),
        ({"train_labels": np.zeros(19, int)}, "one for each of the 20 images"),
        ({"test_labels": np.array([0, 1, -3, 2, 9, 0, 0, 0]), "class_names": np.array(list("abcd"))},
         "2 test labels lie outside 0..3 (first: -3 at 2, 9 at 4)"),
    ],
)  # fmt: skip
def test_a_wrong_npz_is_told(changes, told):
    with pytest.raises(PluginError) as error:
        data("npz", npz(**changes))
    assert told in str(error.value)


def test_an_npz_that_would_run_code_or_is_none_is_refused(tmp_path):
    np.savez("objects.npz", **{**arrays(), "train_images": np.array([{"a": 1}], dtype=object)})
    (tmp_path / "text.npz").write_text("hello")
    np.save("bare.npy", np.zeros(3))
    for path in ("objects.npz", "text.npz", "absent.npz", "bare.npy"):
        with pytest.raises(PluginError, match="cannot be read as .npz"):
            data("npz", path)


def test_a_class_without_images_is_said_aloud(capsys):
    data("npz", npz(class_names=np.array(["a", "b", "c", "d", "e", "f"])))
    assert "2 of 6 classes have no training image: e, f" in capsys.readouterr().out


def test_other_sizes_are_refused_with_the_way_out_or_resized():
    with pytest.raises(PluginError, match="48x48 pixels; mdistiller's CIFAR networks take 32"):
        data("npz", npz(side=48))
    resized = data("npz", npz(side=48), "DATASET.IMAGE_SIZE", "32")
    assert next(iter(resized.train))[0].shape == (8, 3, 32, 32)
    grey = np.full((8, 48, 48, 3), 77, np.uint8)
    even = data("npz", npz(side=48, test_images=grey), "DATASET.IMAGE_SIZE", "32")
    assert (even.test.images == 77).all()


@pytest.mark.parametrize(("key", "value"), [("DATASET.IMAGE_SIZE", "2048"), ("DATASET.PADDING", "1024")])
def test_a_size_that_no_memory_holds_is_refused_before_memory_is_asked_for(monkeypatch, key, value):
    monkeypatch.setattr(datasets_module, "_free_bytes", lambda device: 200 << 20)  # 20 images of 2048 pixels: 240 MiB
    with pytest.raises(PluginError, match="MiB that are free. Set DATASET.IMAGE_SIZE or DATASET.PADDING lower"):
        data("npz", npz(), key, value)


def test_more_digits_than_memory_holds_are_refused():
    with pytest.raises(PluginError, match="TRAIN_IMAGES: got 1000000000000, expected at most"):
        data("digits100", "", "DATASET.DIGITS100.TRAIN_IMAGES", "1000000000000")


def test_64_pixel_images_train_networks_that_can(tmp_path, narrow_vgg):
    assert (
        run("npz", npz(side=64), "DATASET.IMAGE_SIZE", "64", "DISTILLER.STUDENT", "vgg8", "DISTILLER.TEACHER", "vgg11")
        == 0
    )
    assert json.loads(next(tmp_path.rglob("deploy_last.json")).read_text())["image_size"] == 64


def test_a_network_that_cannot_take_the_size_is_refused_by_name():
    cfg = load_cfg(
        QUICK / "vanilla.yaml", words("npz", npz(side=4), "DATASET.IMAGE_SIZE", "4", "DISTILLER.STUDENT", "vgg8")
    )
    with pytest.raises(PluginError, match="vgg8 cannot take 4-pixel images.*Choose another DISTILLER.STUDENT"):
        build.prepare(cfg)


def test_augmentation_is_the_configs():
    assert not data("npz", npz()).train.flip
    assert data("npz", npz(), "DATASET.FLIP", "horizontal").train.flip
    plain = data("npz", npz(), "DATASET.PADDING", "0")
    image, _, index = next(iter(plain.train))
    raw = torch.from_numpy(arrays()["train_images"]).permute(0, 3, 1, 2)[index].float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (plain.mean, plain.std))
    back = image * std + mean
    assert torch.allclose(back, raw, atol=1e-5)


def test_flips_mirror_about_half_of_the_images():
    loader = data(
        "npz", npz(train=600), "DATASET.FLIP", "horizontal", "DATASET.PADDING", "0", "SOLVER.BATCH_SIZE", "600"
    ).train
    image, _, index = next(iter(loader))
    raw = loader._normalised(loader.images[index])
    same, mirrored = ((image == other).flatten(1).all(1) for other in (raw, raw.flip(3)))
    assert (same ^ mirrored).all()
    assert 220 < int(mirrored.sum()) < 380  # 300 expected, standard deviation 12


# ---- validation ----


def test_a_validation_split_is_cut_off_once_for_all_and_disjoint():
    kept, cut = validation_indices(1000, 0.1)
    assert (len(kept), len(cut)) == (900, 100)
    assert sorted([*kept, *cut]) == list(range(1000))
    assert np.array_equal(cut, validation_indices(1000, 0.1)[1])
    loaded = data("npz", npz(), "DATASET.VAL_SPLIT", "0.25")
    assert (loaded.train_images, len(loaded.val.labels), len(loaded.test.labels)) == (15, 5, 8)


def test_a_split_of_data_that_have_one_is_refused():
    with pytest.raises(PluginError, match="has a validation split of its own"):
        data("digits100", "", "DATASET.VAL_SPLIT", "0.1", *SMALL)


class Numbers(Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return self.transform(index), index % 2, index


def test_a_hosts_loader_is_split_with_the_test_transform_on_the_cut_off_images():
    train = DataLoader(Numbers(lambda i: torch.tensor(1000 + i)), batch_size=4, shuffle=True)
    test = DataLoader(Numbers(lambda i: torch.tensor(i)), batch_size=4)
    kept, cut = with_validation_loader(train, test, 0.3)
    trained = sorted(int(v) for image, *_ in kept for v in image)
    watched = sorted(int(v) for image, *_ in cut for v in image)
    assert len(trained) == 7
    assert len(watched) == 3
    assert all(v >= 1000 for v in trained)
    assert sorted([v - 1000 for v in trained] + watched) == list(range(10))


def test_choosing_on_a_validation_split_that_is_not_there_costs_nothing(tmp_path):
    path = npz()
    assert run("npz", path, "SOLVER.EPOCHS", "1", method="vanilla") == 0
    result = next(tmp_path.rglob("result.json"))
    before = sorted(tmp_path.rglob("*"))
    words_again = ["--overwrite", "EXPERIMENT.SELECT_ON", "val"]
    assert run("npz", path, *words_again, "SOLVER.EPOCHS", "1", method="vanilla") == 2
    assert run("npz", path, *words_again, method="kd") == 2  # nor is a teacher trained first
    assert result.is_file()
    assert sorted(tmp_path.rglob("*")) == before


# ---- folders ----


def test_a_folder_of_pngs_trains_and_a_lone_val_is_the_test_split(tmp_path):
    root = folder_tree(tmp_path / "tree")
    loaded = data("folder", root)
    assert (loaded.class_names, loaded.train_images, loaded.val) == (["cat", "dog"], 8, None)
    assert loaded.train.flip
    pixels = np.array(Image.open(root / "val" / "dog" / "0.png"))
    assert torch.equal(loaded.test.images[4], torch.from_numpy(pixels).permute(2, 0, 1))
    assert run("folder", root, method="kd") == 0


def test_a_folder_with_val_and_test_has_both(tmp_path):
    loaded = data("folder", folder_tree(tmp_path / "tree", splits=("train", "val", "test")))
    assert loaded.val is not None
    assert len(loaded.test.labels) == 8


def test_mixed_sizes_are_told_with_counts_and_resized_on_request(tmp_path):
    root = folder_tree(tmp_path / "tree", sizes=(32, 40))
    with pytest.raises(PluginError, match=r"mixed image sizes \(4 of 32x32, 4 of 40x40\); set DATASET.IMAGE_SIZE"):
        data("folder", root)
    assert data("folder", root, "DATASET.IMAGE_SIZE", "32").train.images.shape[2:] == (32, 32)


def test_unreadable_images_are_counted_and_named(tmp_path):
    root = folder_tree(tmp_path / "tree")
    for name in ("x.png", "y.jpg"):
        (root / "train" / "dog" / name).write_bytes(b"no image")
    with pytest.raises(
        PluginError, match="2 unreadable images: train/dog/x.png: it is no image of.*, train/dog/y.jpg: .* Repair"
    ):
        data("folder", root)


def test_a_network_that_cannot_teach_is_refused_before_a_picture_of_a_folder_is_read(tmp_path, monkeypatch, capsys):
    root = folder_tree(tmp_path / "tree")
    (root / "train" / "dog" / "x.png").write_bytes(b"no image")
    monkeypatch.setitem(host.cifar_model_dict, "tiny_teacher", (HeadlessNet, None))
    monkeypatch.setattr(build, "MANY", 7)  # there are eight
    assert run("folder", root) == 2
    said = capsys.readouterr().err
    assert "teacher tiny_teacher has no layers" in said
    assert "x.png" not in said


@pytest.mark.parametrize("loader", ["auto", "host"])
def test_what_systems_leave_in_a_folder_is_no_class_and_no_image_and_deeper_folders_are_read(tmp_path, loader):
    keys = "DATASET.IMAGE_SIZE", "32", "DATASET.LOADER", loader, "DATASET.NUM_WORKERS", "0"
    root = folder_tree(tmp_path / "tree", splits=("train", "test"), count=3)
    plain = data("folder", root, *keys)
    for place in ("train/.ipynb_checkpoints", "test/.ipynb_checkpoints", "train/cat/.thumbs"):
        (root / place).mkdir()
        Image.new("RGB", (32, 32)).save(root / place / "0.png")
    (root / "train" / "cat" / "._0.png").write_bytes(b"\0\5\26\7")  # as macOS leaves beside 0.png
    (root / "train" / "cat" / "notes.txt").write_text("no picture")
    with_litter = data("folder", root, *keys)
    assert (with_litter.class_names, with_litter.identity) == (plain.class_names, plain.identity)
    (root / "train" / "dog" / "2024").mkdir()
    Image.new("RGB", (32, 32)).save(root / "train" / "dog" / "2024" / "0.png")
    assert data("folder", root, *keys).train_images == 7
    (root / "train" / "dog" / "2024" / "back").symlink_to(root / "train" / "dog")  # a loop
    (tmp_path / "more").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "more" / "0.png")
    (root / "train" / "dog" / "linked").symlink_to(tmp_path / "more")
    assert data("folder", root, *keys).train_images == 8


@pytest.mark.parametrize("loader", ["auto", "host"])
def test_pictures_of_kinds_that_are_not_read_are_refused_by_name_and_none_is_left_out_in_silence(tmp_path, loader):
    root = folder_tree(tmp_path / "tree")
    Image.new("RGB", (32, 32)).save(root / "train" / "cat" / "a.tif")
    Image.new("RGB", (32, 32)).save(root / "train" / "dog" / "b.GIF")
    with pytest.raises(PluginError, match=r"2 unreadable images: train/cat/a.tif: it is no image of the kinds PNG, .*"):
        data("folder", root, "DATASET.IMAGE_SIZE", "32", "DATASET.LOADER", loader)


def test_a_validation_split_that_leaves_nothing_to_train_on_is_told(tmp_path):
    root = folder_tree(tmp_path / "tree", count=1)
    with pytest.raises(PluginError, match="DATASET.VAL_SPLIT 0.9 of 2 training images leaves none. Lower it"):
        data("folder", root, "DATASET.VAL_SPLIT", "0.9")


def test_folders_that_do_not_fit_are_told(tmp_path):
    with pytest.raises(PluginError, match="has none of train/, val/, test/"):
        data("folder", tmp_path)
    (tmp_path / "a" / "train").mkdir(parents=True)
    (tmp_path / "a" / "val").mkdir()
    with pytest.raises(PluginError, match="no class folders"):
        data("folder", tmp_path / "a")
    root = folder_tree(tmp_path / "tree")
    (root / "train" / "aardvark").mkdir()
    with pytest.raises(PluginError, match="1 class folders without images: aardvark. Remove them"):
        data("folder", root)
    (root / "train" / "aardvark").rmdir()
    (root / "val" / "zebra").mkdir()
    with pytest.raises(PluginError, match="1 class folders that train/ has not: zebra"):
        data("folder", root)
    with pytest.raises(PluginError, match="needs DATASET.ROOT"):
        data("folder", "")


# ---- CIFAR-10, and the host's own sets ----


def test_cifar10_is_read_from_its_own_files(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    draw = np.random.default_rng(0)
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        content = {"data": draw.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
        (base / name).write_bytes(pickle.dumps(content))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"name{i}" for i in range(10)]}))
    loaded = data("cifar10", tmp_path)
    assert (loaded.train_images, loaded.classes, len(loaded.test.labels)) == (50, 10, 10)
    assert loaded.class_names[3] == "name3"
    assert loaded.train.flip


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "tiny_imagenet", "imagenet"])
def test_absent_data_are_told_with_place_and_remedy(tmp_path, kind):
    student = {"imagenet": "ResNet18", "tiny_imagenet": "MobileNetV2"}.get(kind, "resnet8")
    with pytest.raises(PluginError, match="not (here|in)") as error:
        data(kind, tmp_path / "nowhere", "DISTILLER.STUDENT", student)
    assert str(tmp_path / "nowhere") in str(error.value)
    assert "DATASET.ROOT" in str(error.value)


def test_the_root_is_honoured_and_the_hosts_own_place_is_beside_its_package(tmp_path):
    assert data_place("tiny_imagenet", str(tmp_path)) == tmp_path / "tiny-imagenet-200"
    assert data_place("cifar100").parts[-2:] == ("data", "cifar-100-python")


def test_statistics_by_pieces_are_the_whole_sets(monkeypatch):
    images = torch.from_numpy(arrays(train=50)["train_images"]).permute(0, 3, 1, 2)
    mean, std = statistics(images.split(7))
    whole = images.double() / 255
    assert mean == pytest.approx(whole.mean(dim=(0, 2, 3)).tolist(), abs=1e-4)
    assert std == pytest.approx(whole.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-4)
