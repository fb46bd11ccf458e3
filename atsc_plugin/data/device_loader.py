"""A loader for labelled images that fit into the device's memory whole: no workers, no decoding, no copies a step.

Images stay uint8 on the device, padded once and channels last; a batch is one gather of windows, then mirrored, scaled
and normalised there. Training batches are mdistiller's tuples (image, target, index), evaluation batches (image,
target).
"""

from collections.abc import Iterator, Sequence

import torch

from atsc_plugin.seeds import stream


def steps_of(count: int, batch_size: int, world: int = 1) -> int:
    """Batches of an epoch of `count` images."""
    whole, rest = divmod(count, batch_size)
    return whole + (rest >= world)


def share(number: int, count: int, batch_size: int, rank: int = 0, world: int = 1) -> slice:
    """The slice of the epoch's order that one rank takes of batch `number`."""
    start = number * batch_size
    each = (min(start + batch_size, count) - start) // world
    return slice(start + rank * each, start + (rank + 1) * each)


def padded_pixels(images: torch.Tensor, padding: int) -> torch.Tensor:
    """uint8 N x 3 x H x W -> N x (H + 2 padding) x (W + 2 padding) x 3, zeros around, as RandomCrop pads."""
    count, channels, height, width = images.shape
    pixels = images.new_zeros(count, height + 2 * padding, width + 2 * padding, channels)
    pixels[:, padding : padding + height, padding : padding + width] = images.permute(0, 2, 3, 1)  # one copy, in place
    return pixels


def crop(
    pixels: torch.Tensor, index: torch.Tensor, tops: torch.Tensor, lefts: torch.Tensor, size: Sequence[int]
) -> torch.Tensor:
    """The windows of `size` at (top, left) of the padded images `index`: n x 3 x H x W, in one gather."""
    windows = pixels.unfold(1, size[0], 1).unfold(2, size[1], 1)  # a view: N x tops x lefts x 3 x H x W
    return windows.permute(0, 1, 2, 4, 5, 3)[index, tops, lefts].permute(0, 3, 1, 2)


def mirror(images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """n x 3 x H x W with the chosen images flipped left to right."""
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


class DeviceLoader:
    """Batches of (images uint8 N x 3 x H x W, labels); with a `seed` shuffled, cropped and flipped, else in order.

    The order, crops and flips of epoch e follow from (seed, e) alone, so a resumed run sees what the whole one saw.
    The last, smaller batch is kept, as mdistiller keeps it. Of `world` ranks each takes its part of every batch.
    """

    def __init__(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        seed: int | None = None,
        padding: int = 0,
        flip: bool = False,
        rank: int = 0,
        world: int = 1,
    ):
        self.size = images.shape[2:]
        self.pixels = padded_pixels(images, padding).to(device)
        self.labels = labels.to(device)
        self.batch_size, self.seed, self.padding, self.flip = batch_size, seed, padding, flip
        self.rank, self.world = rank, world
        # A row as long as an image: broadcasting over images alone, not over the three channels, is what vectorises.
        pixels = self.size[0] * self.size[1]
        self.rows = [torch.tensor(values, device=device).repeat(pixels) for values in (mean, std)]
        self.epoch = 0

    @property
    def images(self):
        """The images as they came: uint8 N x 3 x H x W, a view."""
        height, width = self.size
        inner = self.pixels[:, self.padding : self.padding + height, self.padding : self.padding + width]
        return inner.permute(0, 3, 1, 2)

    def __len__(self):
        return steps_of(len(self.labels), self.batch_size, self.world)

    def set_epoch(self, epoch: int) -> None:
        """The next pass is epoch `epoch`; without this call passes count up from zero."""
        self.epoch = epoch

    def __iter__(self):
        return self.batches_from(0)

    def batches_from(self, first: int) -> Iterator:
        """The pass without its first `first` batches, which are neither gathered nor cropped; the rest is the same."""
        if self.seed is None:
            yield from self.in_order(torch.arange(len(self.labels))[first * self.batch_size :])
            return
        for drawn in self.draws_from(first):
            yield self.batch(*drawn)

    def draws_from(self, first: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """What was drawn for each batch behind the first `first`: image numbers, tops, lefts, flips."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        order, (tops, lefts), flips = self._drawn(epoch)
        for number in range(first, len(self)):
            mine = share(number, len(order), self.batch_size, self.rank, self.world)
            yield order[mine], tops[mine], lefts[mine], flips[mine]

    def batch(
        self, index: torch.Tensor, tops: torch.Tensor, lefts: torch.Tensor, flips: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(images, labels, index) of a training batch, made on the device from what was drawn for it."""
        images = crop(self.pixels, index, tops, lefts, self.size)
        if self.flip:
            images = mirror(images, flips)
        return self._normalised(images), self.labels[index], index

    def in_order(self, index: torch.Tensor) -> Iterator:
        """Evaluation batches of the images `index`, as they are."""
        for part in index.to(self.pixels.device).split(self.batch_size):
            yield self._normalised(self.images[part]), self.labels[part]

    def _drawn(self, epoch):
        """Order, windows and flips of an epoch, drawn on the CPU so that a seed means the same on every device."""
        count = len(self.labels)
        order = torch.randperm(count, generator=self._generator("order", epoch))
        windows = torch.randint(2 * self.padding + 1, (2, count), generator=self._generator("crop", epoch))
        flips = torch.rand(count, generator=self._generator("flip", epoch)) < 0.5
        return (drawn.to(self.pixels.device) for drawn in (order, windows, flips))

    def _generator(self, name, epoch):
        return torch.Generator().manual_seed(stream(self.seed, name, epoch))

    def _normalised(self, images):
        """(x / 255 - mean) / std of n x 3 x H x W bytes, as ToTensor and Normalize compute it; channels last."""
        rows = images.permute(0, 2, 3, 1).reshape(len(images), -1).float()
        rows.div_(255).sub_(self.rows[0]).div_(self.rows[1])
        return rows.view(len(images), *self.size, 3).permute(0, 3, 1, 2)
