"""Tiny-ImageNet and ImageNet on the embedded host: parameter names, pretrained weights, folders of images.

The networks' numbers are held in test_contracts.py.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms
from torchvision.models import ResNet18_Weights

from atsc_plugin.errors import PluginError
from atsc_plugin.minidistiller.dataset import cifar100, get_dataset, imagenet, tiny_imagenet
from atsc_plugin.minidistiller.engine.cfg import CFG
from atsc_plugin.minidistiller.models import imagenet_model_dict, tiny_imagenet_model_dict

# Parameter names


def norm_keys(prefix):
    return [f"{prefix}.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


def test_imagenets_mobilenet_has_mdistillers_parameter_names():
    keys = ["model.0.0.weight", *norm_keys("model.0.1")]
    for block in range(1, 14):
        for place in (0, 3):
            keys += [f"model.{block}.{place}.weight", *norm_keys(f"model.{block}.{place + 1}")]
    assert list(imagenet_model_dict["MobileNetV1"]().state_dict()) == [*keys, "fc.weight", "fc.bias"]


def test_tiny_imagenets_mobilenet_has_mdistillers_parameter_names():
    blocks = ["stage1"]
    for stage, count in enumerate((2, 3, 4, 3, 3), 2):
        blocks += [f"stage{stage}.{block}" for block in range(count)]
    places = [("pre", 0), *((f"{block}.residual", place) for block in [*blocks, "stage7"] for place in (0, 3, 6))]
    keys = []
    for prefix, place in [*places, ("conv1", 0)]:
        keys += [f"{prefix}.{place}.weight", f"{prefix}.{place}.bias", *norm_keys(f"{prefix}.{place + 1}")]
    found = list(tiny_imagenet_model_dict["MobileNetV2"][0](num_classes=200).state_dict())
    assert found == [*keys, "conv2.weight", "conv2.bias"]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_an_imagenet_resnet_is_torchvisions_under_the_same_parameter_names(name):
    compared = name in ("resnet18", "resnet50")  # one with each kind of block: the forward passes agree on any size
    with torch.device("cpu" if compared else "meta"):
        ours, theirs = imagenet_model_dict[name.replace("resnet", "ResNet")](), getattr(torchvision.models, name)()
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (ours, theirs)]
    assert list(shapes[0].items()) == list(shapes[1].items())
    if compared:
        theirs.load_state_dict(ours.state_dict())
        pixels = torch.randn(2, 3, 64, 64)
        assert torch.allclose(ours.eval()(pixels)[0], theirs.eval()(pixels), rtol=1e-5, atol=1e-5)


# Pretrained weights, from torch.hub's folder and from nowhere else


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The empty folder in which weights are looked for. Whatever would fetch them fails."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)  # what a torch.hub.set_dir elsewhere has left
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("something was downloaded"))
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize("name", ["ResNet18", "ResNet34", "ResNet50", "ResNet101"])
def test_absent_pretrained_weights_are_an_error_with_their_url_their_place_and_the_way_out(name, cache):
    url = getattr(torchvision.models, f"{name}_Weights").IMAGENET1K_V1.url
    with pytest.raises(PluginError) as caught:
        imagenet_model_dict[name](pretrained=True)
    said = str(caught.value)
    for part in (
        f"no file {cache / Path(url).name}",
        f"{name}_Weights.IMAGENET1K_V1",
        f"Download {url} into {cache} (",
    ):
        assert part in said
    assert "DISTILLER.TEACHER_CKPT" in said
    assert not cache.exists()


def test_pretrained_weights_are_read_from_the_cache(cache):
    torch.manual_seed(0)
    torchvisions = torchvision.models.resnet18()
    cache.mkdir(parents=True)
    torch.save(torchvisions.state_dict(), cache / Path(ResNet18_Weights.IMAGENET1K_V1.url).name)
    state, expected = imagenet_model_dict["ResNet18"](pretrained=True).state_dict(), torchvisions.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    untrained = imagenet_model_dict["ResNet18"](pretrained=False).state_dict()
    assert not torch.equal(untrained["fc.weight"], expected["fc.weight"])


class Opens:
    """Pickles as a call that writes the file named."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_cached_file_that_runs_code_or_holds_another_network_is_refused(cache):
    cache.mkdir(parents=True)
    file = cache / Path(ResNet18_Weights.IMAGENET1K_V1.url).name
    torch.save({"fc.weight": Opens(str(cache / "ran"))}, file)
    with pytest.raises(PluginError, match=r"was not loaded \(UnpicklingError.*Download https.* again"):
        imagenet_model_dict["ResNet18"](pretrained=True)
    assert not (cache / "ran").exists()
    torch.save({"fc.weight": torch.zeros(1000, 512)}, file)
    with pytest.raises(PluginError, match=r"was not loaded \(RuntimeError: .*Missing key.*conv1.weight"):
        imagenet_model_dict["ResNet18"](pretrained=True)


def test_imagenets_mobilenet_has_no_pretrained_weights_and_says_so(cache):
    with pytest.raises(PluginError, match="no published weights for MobileNetV1.*student.*TEACHER_CKPT"):
        imagenet_model_dict["MobileNetV1"](pretrained=True)


# Folders of images

DATASETS = {"tiny_imagenet": (tiny_imagenet, "tiny-imagenet-200", 200), "imagenet": (imagenet, "imagenet", 1000)}
TINY_NORMALISATION = [
    transforms.ToTensor(),
    transforms.Normalize((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
]
NORMALISATION = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]


def write_images(folder, classes, images, side=64):
    """`images` PNGs of random pixels for each class, below folder/CLASS/images as Tiny-ImageNet has them."""
    rng = np.random.RandomState(0)
    for name in classes:
        (folder / name / "images").mkdir(parents=True)
        for number in range(images):
            pixels = rng.randint(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / "images" / f"{name}_{number}.png")


def loaders(dataset, root, monkeypatch):
    cfg = CFG.clone()
    cfg.defrost()
    cfg.DATASET.TYPE, cfg.DATASET.NUM_WORKERS, cfg.SOLVER.BATCH_SIZE, cfg.DATASET.TEST.BATCH_SIZE = dataset, 0, 4, 3
    monkeypatch.setattr(DATASETS[dataset][0], "get_data_folder", lambda: str(root))
    return get_dataset(cfg)


@pytest.mark.parametrize(("dataset", "side"), [("tiny_imagenet", 64), ("imagenet", 224)])
def test_a_folder_tree_gives_indexed_training_tuples_and_plain_val_tuples(dataset, side, tmp_path, monkeypatch, capsys):
    folder, classes = DATASETS[dataset][1:]
    write_images(tmp_path / folder / "train", ["n02", "n01", "n10"], images=3)
    write_images(tmp_path / folder / "val", ["n02", "n01", "n10"], images=2)
    train, val, num_data, num_classes = loaders(dataset, tmp_path, monkeypatch)
    assert (num_data, num_classes, len(train), len(val)) == (9, classes, 3, 2)
    batches = list(train)
    assert [image.shape for image, _, _ in batches] == [(4, 3, side, side), (4, 3, side, side), (1, 3, side, side)]
    assert sorted(torch.cat([index for _, _, index in batches]).tolist()) == list(range(9))
    assert all(torch.equal(target, index // 3) for _, target, index in batches)
    assert [target.tolist() for _, target in val] == [[0, 0, 1], [1, 2, 2]]
    assert next(iter(val))[0].shape == (3, 3, side, side)
    assert capsys.readouterr().out.count("\n") == 1


def test_a_part_of_the_classes_is_told_in_one_line_and_all_of_them_in_none(tmp_path, monkeypatch, capsys):
    for split in ("train", "val"):
        write_images(tmp_path / "tiny-imagenet-200" / split, [f"n{i:03}" for i in range(199)], images=1, side=1)
    loaders("tiny_imagenet", tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert "199 of the 200 classes of Tiny-ImageNet: labels are 0 to 198, the networks keep 200 outputs" in said
    for split in ("train", "val"):
        write_images(tmp_path / "tiny-imagenet-200" / split, ["n199"], images=1, side=1)
    loaders("tiny_imagenet", tmp_path, monkeypatch)
    assert capsys.readouterr().out == ""
    (tmp_path / "tiny-imagenet-200" / "train" / "stray").mkdir()
    with pytest.raises(PluginError, match="train has 201 class folders; expected the 200 of Tiny-ImageNet"):
        loaders("tiny_imagenet", tmp_path, monkeypatch)


def test_val_images_are_those_on_disk_normalised(tmp_path, monkeypatch):
    for split in ("train", "val"):
        write_images(tmp_path / "tiny-imagenet-200" / split, ["a"], images=1)
    image = next(iter(loaders("tiny_imagenet", tmp_path, monkeypatch)[1]))[0][0]
    pixels = np.asarray(Image.open(tmp_path / "tiny-imagenet-200/val/a/images/a_0.png")).transpose(2, 0, 1) / 255
    mean, std = (np.reshape(v, (3, 1, 1)) for v in ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)))
    assert np.allclose(image.numpy(), (pixels - mean) / std, atol=1e-6)


def test_the_transforms_are_mdistillers():
    flip = transforms.RandomHorizontalFlip()
    published = {
        tiny_imagenet.get_tinyimagenet_train_transform: [transforms.RandomRotation(20), flip, *TINY_NORMALISATION],
        tiny_imagenet.get_tinyimagenet_test_transform: TINY_NORMALISATION,
        imagenet.get_imagenet_train_transform: [transforms.RandomResizedCrop(224), flip, *NORMALISATION],
        imagenet.get_imagenet_test_transform: [transforms.Resize(256), transforms.CenterCrop(224), *NORMALISATION],
    }
    for ours, steps in published.items():
        assert repr(ours()) == repr(transforms.Compose(steps))


@pytest.mark.parametrize("dataset", DATASETS)
def test_training_images_are_augmented_and_val_images_are_not(dataset, tmp_path, monkeypatch):
    for split in ("train", "val"):
        write_images(tmp_path / DATASETS[dataset][1] / split, ["a"], images=1)
    train, val, _, _ = loaders(dataset, tmp_path, monkeypatch)
    assert repr(train.dataset.transform).startswith("Compose(\n    Random")
    assert "Random" not in repr(val.dataset.transform)


@pytest.mark.parametrize("dataset", DATASETS)
def test_absent_folders_are_an_error_that_says_where_and_what_to_do(dataset, tmp_path, monkeypatch):
    folder = tmp_path / DATASETS[dataset][1]
    (folder / "train").mkdir(parents=True)  # val is not there
    with pytest.raises(PluginError) as caught:
        loaders(dataset, tmp_path, monkeypatch)
    said = str(caught.value)
    for part in (str(folder), "expected the folders train and val", "DATASET.ROOT"):
        assert part in said


def test_a_val_that_is_not_sorted_into_classes_is_refused_with_what_to_do(tmp_path, monkeypatch):
    write_images(tmp_path / "tiny-imagenet-200" / "train", ["n01", "n02"], images=1)
    (tmp_path / "tiny-imagenet-200" / "val" / "images").mkdir(parents=True)
    with pytest.raises(PluginError, match=r"val has 1 class folders, expected the 2 of .*images, n01, n02. Sort"):
        loaders("tiny_imagenet", tmp_path, monkeypatch)


def test_all_data_sets_share_the_data_folder_beside_the_package():
    assert {module.get_data_folder() for module, _, _ in DATASETS.values()} == {cifar100.get_data_folder()}
