"""ImageNet's training files decoded and cropped as tensors: the host's draws, its pixels to rounding, odd files too."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision import io, transforms
from torchvision.datasets import ImageFolder

from atsc_plugin.data.datasets import LoaderFacts
from atsc_plugin.data.worker_loader import WorkerLoader, cropped_as_tensors
from atsc_plugin.minidistiller.dataset.imagenet import get_imagenet_test_transform, get_imagenet_train_transform


@pytest.fixture
def folder(tmp_path):
    """Two classes; a JPEG of each kind, and a PNG that calls itself JPEG."""
    ramp = np.linspace(0, 255, 300)
    smooth = np.stack([np.add.outer(ramp[:200], ramp) / 2, np.tile(ramp, (200, 1)), np.tile(ramp[:200, None], 300)], 2)
    picture = Image.fromarray(smooth.astype(np.uint8))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    picture.save(tmp_path / "a/colour.JPEG", quality=95)
    picture.convert("L").save(tmp_path / "a/grey.JPEG", quality=95)
    picture.convert("CMYK").save(tmp_path / "b/cmyk.JPEG", format="JPEG", quality=95)
    picture.save(tmp_path / "b/disguised.JPEG", format="PNG")
    return tmp_path


def test_the_same_seed_gives_the_hosts_crop_and_mirror_with_pixels_equal_to_rounding(folder):
    theirs = ImageFolder(folder, get_imagenet_train_transform())
    ours = cropped_as_tensors(theirs)
    assert ours.transform is not theirs.transform
    levels_of_one = torch.tensor(theirs.transform.transforms[-1].std).view(3, 1, 1) * 255
    mirrored = set()
    for index in range(4):
        for seed in range(6):
            torch.manual_seed(seed)
            expected, label = theirs[index]
            torch.manual_seed(seed)
            image, own_label = ours[index]
            assert (image.shape, own_label) == ((3, 224, 224), label)
            levels = (image - expected).abs() * levels_of_one  # of 256
            assert levels.max() < 3.5, (index, seed)
            assert levels.mean() < 0.7, (index, seed)
            mirrored.add(bool(image[1, :, 0].mean() > image[1, :, -1].mean()))  # green rises to the right
    assert mirrored == {True, False}


def test_where_torchvision_cannot_decode_the_hosts_way_is_kept(folder, monkeypatch):
    dataset = ImageFolder(folder, get_imagenet_train_transform())
    monkeypatch.delattr(io, "decode_jpeg")
    assert cropped_as_tensors(dataset) is dataset


def test_any_other_pipeline_or_reader_is_left_as_it_is(folder):
    plain = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    rotated = transforms.Compose([transforms.RandomRotation(20), transforms.RandomHorizontalFlip(), *plain])
    for transform in (get_imagenet_test_transform(), rotated, None):
        dataset = ImageFolder(folder, transform)
        assert cropped_as_tensors(dataset) is dataset
    own_reader = ImageFolder(folder, get_imagenet_train_transform(), loader=lambda path: Image.open(path))
    assert cropped_as_tensors(own_reader) is own_reader


def test_the_worker_loader_takes_it_also_behind_a_validation_split(folder):
    whole = ImageFolder(folder, get_imagenet_train_transform())
    loader = SimpleNamespace(dataset=Subset(whole, [0, 2]), num_workers=0, collate_fn=None)
    train = WorkerLoader(loader, LoaderFacts(2, 2, torch.device("cpu"), 1))
    assert train.dataset.dataset.dataset.transform is not whole.transform
    train.set_epoch(1)
    (batch,) = list(train)
    assert batch[0].shape == (2, 3, 224, 224)
    assert sorted(batch[1].tolist()) == [0, 1]
