"""The loader on the device: its crops are torchvision's, its order a permutation, its streams follow from the seed."""

import torch
from torchvision.transforms import functional as tv

from atsc_plugin.data.datasets import content_identity
from atsc_plugin.data.device_loader import DeviceLoader, crop, padded_pixels


def images_of(count, side=8):
    draw = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=draw)


def test_a_crop_equals_torchvisions_pad_and_crop_for_the_same_draw():
    images = images_of(81)
    tops, lefts = torch.arange(81) // 9, torch.arange(81) % 9  # every window of a padding of 4
    which = torch.arange(81).flip(0)
    ours = crop(padded_pixels(images, 4), which, tops, lefts, (8, 8))
    for image, top, left, cut in zip(images[which], tops, lefts, ours, strict=True):
        assert torch.equal(cut, tv.crop(tv.pad(image, [4]), int(top), int(left), 8, 8))


def test_a_batch_is_torchvisions_transforms_for_the_same_draws_pixel_for_pixel():
    images, mean, std = images_of(40), [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]
    loader = DeviceLoader(images, torch.arange(40), 40, mean, std, seed=3, padding=4, flip=True)
    order, (tops, lefts), flips = loader._drawn(0)
    batch, _, index = next(iter(loader))
    assert torch.equal(index, order)
    assert 5 < int(flips.sum()) < 35
    for number, image in enumerate(batch):
        picture = tv.pad(tv.to_pil_image(images[order[number]]), [4])
        picture = tv.crop(picture, int(tops[number]), int(lefts[number]), 8, 8)
        picture = tv.hflip(picture) if flips[number] else picture
        assert torch.equal(image, tv.normalize(tv.to_tensor(picture), mean, std))


def test_flips_of_a_batch_are_independent_of_each_other_and_of_the_crops():
    loader = DeviceLoader(images_of(4000, 1), torch.zeros(4000), 4000, [0.0] * 3, [1.0] * 3, seed=8, padding=4)
    _, (tops, lefts), flips = loader._drawn(5)
    count = int(flips.sum())
    assert abs(count - 2000) < 160  # five standard deviations of a fair coin
    pairs = (flips[:-1] == flips[1:]).float().mean().item()
    assert abs(pairs - 0.5) < 0.04
    for drawn in (tops, lefts):
        sides = torch.stack([drawn.float(), flips.float()])
        assert abs(torch.corrcoef(sides)[0, 1].item()) < 5 / 4000**0.5
    assert abs(torch.corrcoef(torch.stack([tops.float(), lefts.float()]))[0, 1].item()) < 5 / 4000**0.5


def test_the_ranks_parts_of_a_batch_are_together_what_one_rank_sees():
    images, labels = images_of(22), torch.arange(22)

    def loader(rank=0, world=1):
        return DeviceLoader(
            images, labels, 8, [0.0] * 3, [1.0] * 3, seed=1, padding=2, flip=True, rank=rank, world=world
        )

    whole, parts = list(loader()), [list(loader(rank, 4)) for rank in range(4)]
    assert [len(part) for part in parts] == [3] * 4
    assert len(loader(0, 4)) == 3
    for number in range(2):
        for column in range(3):
            joined = torch.cat([part[number][column] for part in parts])
            assert torch.equal(joined, whole[number][column])
    # 22 = 8 + 8 + 6: of the last six images four ranks take one each, two images wait for another epoch
    assert torch.equal(torch.cat([part[2][2] for part in parts]), whole[2][2][:4])
    few = DeviceLoader(images[:9], labels[:9], 8, [0.0] * 3, [1.0] * 3, seed=1, rank=0, world=2)
    assert len(few) == len(list(few)) == 1


def test_every_image_comes_once_an_epoch_with_its_label_and_index_and_the_last_batch_is_kept():
    images, labels = images_of(10), torch.arange(10) * 3
    loader = DeviceLoader(images, labels, 4, [0.0] * 3, [1.0] * 3, seed=1)
    batches = list(loader)
    assert [len(batch[1]) for batch in batches] == [4, 4, 2]
    assert len(loader) == 3
    index = torch.cat([batch[2] for batch in batches])
    assert sorted(index.tolist()) == list(range(10))
    for image, target, where in batches:
        assert torch.equal(target, labels[where])
        assert torch.allclose(image * 255, images[where].float(), atol=1e-3)


def test_evaluation_batches_come_in_order_and_normalised():
    images = images_of(3)
    loader = DeviceLoader(images, torch.arange(3), 2, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    (first, labels), (second, _) = list(loader)
    assert labels.tolist() == [0, 1]
    by_hand = (images[2, 1, 4, 5].item() / 255 - 0.4) / 0.3
    assert abs(second[0, 1, 4, 5].item() - by_hand) < 1e-5


def test_an_epoch_follows_from_seed_and_number_alone():
    def order(seed, epoch):
        loader = DeviceLoader(images_of(50), torch.arange(50), 50, [0.0] * 3, [1.0] * 3, seed=seed, padding=2)
        loader.set_epoch(epoch)
        return next(iter(loader))

    assert torch.equal(order(1, 5)[0], order(1, 5)[0])
    assert not torch.equal(order(1, 5)[2], order(1, 6)[2])
    assert not torch.equal(order(1, 5)[2], order(2, 5)[2])


def test_passes_count_up_by_themselves_where_nobody_sets_the_epoch():
    loader = DeviceLoader(images_of(30), torch.arange(30), 30, [0.0] * 3, [1.0] * 3, seed=1)
    first, second = next(iter(loader))[2], next(iter(loader))[2]
    assert not torch.equal(first, second)
    loader.set_epoch(0)
    assert torch.equal(first, next(iter(loader))[2])


def test_windows_are_uniform_over_all_offsets():
    white = torch.full((4000, 3, 8, 8), 255, dtype=torch.uint8)
    loader = DeviceLoader(white, torch.zeros(4000), 4000, [0.0] * 3, [1.0] * 3, seed=3, padding=4)
    image = next(iter(loader))[0][:, 0]
    rows = (image.amax(dim=2) > 0).sum(dim=1)  # 8 - |top - 4| rows are left of the image
    counts = torch.bincount(rows, minlength=9)[4:]
    # offsets -4..4 are equally likely: two ninths each for 4..7 rows, one ninth for all 8
    expected = torch.tensor([2, 2, 2, 2, 1]) * 4000 / 9
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_the_identity_of_images_changes_with_one_pixel_or_label():
    images, labels = images_of(4), torch.arange(4)
    known = content_identity("x", images, labels)
    changed = images.clone()
    changed[0, 0, 0, 0] ^= 1
    assert content_identity("x", changed, labels) != known
    assert content_identity("x", images, labels.flip(0)) != known
    assert content_identity("x", images.clone(), labels.clone()) == known
