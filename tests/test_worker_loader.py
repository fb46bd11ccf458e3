"""The worker loader: ImageNet's files as tensors, the host's draws, its pixels to rounding; seeds, ranks, workers."""

import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from host_pictures import loaders, options
from PIL import Image
from torch.utils.data import Subset
from torchvision import io, transforms
from torchvision.datasets import ImageFolder

import atsc_plugin
from atsc_plugin import build
from atsc_plugin.config import load_cfg
from atsc_plugin.data.datasets import LoaderOptions
from atsc_plugin.data.worker_loader import RankBatches, SeededImages, WorkerLoader, cropped_as_tensors, read_image
from atsc_plugin.errors import PluginError
from atsc_plugin.minidistiller.dataset.imagenet import get_imagenet_test_transform, get_imagenet_train_transform
from atsc_plugin.seeds import stream


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
    train = WorkerLoader(loader, LoaderOptions(2, 2, torch.device("cpu"), 1))
    assert train.dataset.dataset.dataset.transform is not whole.transform
    train.set_epoch(1)
    (batch,) = list(train)
    assert batch[0].shape == (2, 3, 224, 224)
    assert sorted(batch[1].tolist()) == [0, 1]


def test_a_hosts_folders_are_cropped_as_tensors_and_read_in_named_formats_only(folder, tmp_path):
    atsc_plugin.register()
    for split in ("train", "val"):
        shutil.copytree(
            folder, tmp_path / "data" / "imagenet" / split, ignore=lambda path, names: {"data"} & set(names)
        )
    config = Path(__file__).resolve().parents[1] / "configs" / "imagenet" / "vanilla.yaml"
    keys = ["DATASET.ROOT", str(tmp_path / "data"), "SOLVER.BATCH_SIZE", "2", "DATASET.NUM_WORKERS", "0"]
    files = build.data_of(load_cfg(config, keys), torch.device("cpu")).train.dataset.dataset
    assert files.loader is read_image
    script = tmp_path / "data" / "imagenet" / "train" / "a" / "colour.JPEG"
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # Pillow would start Ghostscript
    with pytest.raises(PluginError, match="cannot be read as an image"):
        read_image(script)


# ---- draws and ranks ----


def epoch_of(loader, epoch, first=0):
    loader.set_epoch(epoch)
    return list(loader.batches_from(first))


def test_what_a_worker_draws_from_numpy_and_from_python_follows_from_the_seed_too():
    class Drawing:
        def __getitem__(self, index):
            return float(torch.rand(())), np.random.rand(), random.random()

    images = SeededImages(Drawing(), seed=3)
    first, other = images[(1, 5)], images[(1, 6)]
    assert images[(1, 5)] == first
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_an_image_seeds_the_cpus_generator_alone_and_draws_as_before(monkeypatch):
    class Drawing:
        def __getitem__(self, index):
            return torch.rand(3)

    torch.manual_seed(stream(3, "augment", 1, 5))
    expected = torch.rand(3)
    monkeypatch.setattr(torch, "manual_seed", None)  # it would seed every device: a hundred times the cost
    assert torch.equal(SeededImages(Drawing(), seed=3)[(1, 5)], expected)


def test_a_worker_loader_draws_the_same_whoever_draws_it_and_can_start_inside_an_epoch():
    alone = WorkerLoader(loaders()[0], options())
    source = loaders()[0]
    source.num_workers = 0
    with_workers = WorkerLoader(
        SimpleNamespace(dataset=source.dataset, num_workers=2, collate_fn=source.collate_fn), options()
    )
    first, again = epoch_of(alone, 3), epoch_of(with_workers, 3)
    assert [len(batch[1]) for batch in first] == [8, 8, 8, 6]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[2], b[2]) for a, b in zip(first, again, strict=True))
    late = epoch_of(alone, 3, first=2)
    assert len(late) == 2
    assert torch.equal(late[0][0], first[2][0])
    assert not torch.equal(epoch_of(alone, 4)[0][2], first[0][2])
    assert len(epoch_of(with_workers, 4)) == 4  # the workers that stayed know the new epoch


def test_the_ranks_of_a_worker_loader_share_every_batch_and_its_draws():
    whole = epoch_of(WorkerLoader(loaders()[0], options()), 1)
    parts = [epoch_of(WorkerLoader(loaders()[0], options(rank=rank, world=2)), 1) for rank in (0, 1)]
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[number][0] for part in parts]), batch[0])
    seen = [index for batch in RankBatches(30, 8, 1) for _, index in batch]
    assert sorted(seen) == list(range(30))
