"""A loader for labelled images that fit into the device's memory whole: no workers, no decoding, no copies a step.

Images stay uint8 on the device; a batch is gathered, cropped, scaled and normalised there. Training batches are
mdistiller's tuples (image, target, index), evaluation batches (image, target).
"""

import torch
import torch.nn.functional as F

from atsc_plugin.seeds import stream


def crop(images, tops, lefts, padding):
    """Pad each image with zeros on every side and cut its window of the old size at (top, left), as RandomCrop does."""
    count, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    rows = tops[:, None] + torch.arange(height, device=images.device)
    columns = lefts[:, None] + torch.arange(width, device=images.device)
    which = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[which, channel, rows[:, None, :, None], columns[:, None, None, :]]


class DeviceLoader:
    """Batches of (images uint8 N x 3 x H x W, labels); with a `seed` shuffled, cropped and flipped, else in order.

    The order, crops and flips of epoch e follow from (seed, e) alone, so a resumed run sees what the whole one saw.
    The last, smaller batch is kept, as mdistiller keeps it.
    """

    def __init__(self, images, labels, batch_size, mean, std, device="cpu", seed=None, padding=0, flip=False):
        self.images, self.labels = images.to(device), labels.to(device)
        self.batch_size, self.seed, self.padding, self.flip = batch_size, seed, padding, flip
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        self.epoch = 0

    def __len__(self):
        return -(-len(self.labels) // self.batch_size)

    def set_epoch(self, epoch):
        """The next pass is epoch `epoch`; without this call passes count up from zero."""
        self.epoch = epoch

    def __iter__(self):
        return self.batches_from(0)

    def batches_from(self, first):
        """The pass without its first `first` batches, which are neither gathered nor cropped; the rest is the same."""
        if self.seed is None:
            for index in torch.arange(len(self.labels), device=self.images.device).split(self.batch_size)[first:]:
                yield self._normalised(self.images[index]), self.labels[index]
            return
        epoch, self.epoch = self.epoch, self.epoch + 1
        # Drawn on the CPU so that a seed means the same images on every device.
        order = torch.randperm(len(self.labels), generator=self._generator("order", epoch))
        windows = torch.randint(2 * self.padding + 1, (2, len(order)), generator=self._generator("crop", epoch))
        flips = torch.rand(len(order), generator=self._generator("flip", epoch)) < 0.5
        order, windows, flips = (drawn.to(self.images.device) for drawn in (order, windows, flips))
        for start in range(first * self.batch_size, len(order), self.batch_size):
            index = order[start : start + self.batch_size]
            tops, lefts = windows[:, start : start + self.batch_size]
            images = crop(self.images[index], tops, lefts, self.padding) if self.padding else self.images[index]
            if self.flip:
                chosen = flips[start : start + self.batch_size, None, None, None]
                images = torch.where(chosen, images.flip(3), images)
            yield self._normalised(images), self.labels[index], index

    def _generator(self, name, epoch):
        return torch.Generator().manual_seed(stream(self.seed, name, epoch))

    def _normalised(self, images):
        return (images.float() / 255 - self.mean) / self.std
