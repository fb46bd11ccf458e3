"""Accuracy and calibration of anything that maps images to logits: the one place where they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atsc_plugin.engine import distributed
from atsc_plugin.engine.batches import place, progress
from atsc_plugin.errors import PluginError
from atsc_plugin.files import whole_file

BINS = 15  # of the expected calibration error, equal in width


def correct(logits: Tensor, target: Tensor, k: int) -> Tensor:
    """How many targets are among the k highest logits (k is cut to the number of classes); a tensor, no sync."""
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == target.unsqueeze(1)).any(dim=1).sum()


def calibration_sums(logits: Tensor, target: Tensor) -> Tensor:
    """3 x BINS: images, summed confidence (the largest probability) and hits by bin of confidence."""
    confidence, predicted = logits.double().softmax(1).max(1)
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    sums = torch.zeros(3, BINS, dtype=torch.float64, device=logits.device)
    for row, values in enumerate((torch.ones_like(confidence), confidence, (predicted == target).double())):
        sums[row].index_add_(0, bins, values)
    return sums


def expected_calibration_error(sums: Tensor) -> Tensor:
    """ECE = sum over bins of (images in the bin / all images) * |accuracy - mean confidence|"""
    images, confidence, hits = sums
    return (hits - confidence).abs().sum() / images.sum()


@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    loader: Any,
    device: torch.device,
    label: str = "eval",
    keep: Callable[[Tensor, Tensor], None] | None = None,
    watched: Callable[[Iterable, int], Iterable] | None = None,
) -> dict[str, float]:
    """{"top1", "top5" (percent), "loss" (mean cross entropy, the NLL), "ece", "images"} of predict over a loader.

    `keep(logits, target)` is called with every batch; `watched(batches, rounds)` is StopSignals'.
    """
    totals = torch.zeros(4 + 3 * BINS, dtype=torch.float64, device=device)
    batches, rounds = distributed.share_of(loader), None
    if watched:
        rounds = -(-len(loader) // distributed.world())  # of the rank that has most batches
        batches = watched(batches, rounds)
    for batch in progress(batches, label, rounds):
        image, target = place(batch[0], device), place(batch[1], device)
        if target.dim() != 1:
            raise PluginError(
                f"Evaluation got labels of shape {tuple(target.shape)}; expected a class number an image. Hand over "
                "images that are not mixed."
            )
        logits = predict(image)
        if keep:
            keep(logits, target)
        hits = [correct(logits, target, 1), correct(logits, target, 5)]
        loss = F.cross_entropy(logits, target, reduction="sum")
        totals[:3] += torch.stack([*hits, loss]).double()
        totals[3] += len(target)
        totals[4:] += calibration_sums(logits, target).flatten()
    distributed.total(totals)
    if not totals[3]:
        raise PluginError("Evaluation got no images; expected batches of (images, labels). Hand over some.")
    ece = expected_calibration_error(totals[4:].view(3, BINS)).item()
    top1, top5, loss, images = totals[:4].tolist()
    return {"top1": 100 * top1 / images, "top5": 100 * top5 / images, "loss": loss / images, "ece": ece,
            "images": int(images)}  # fmt: skip


def in_eval_mode(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """predict(image) of a module set to eval mode, whose forward returns logits or (logits, ...)."""
    module.eval()

    def predict(image):
        output = module(image)
        return output[0] if isinstance(output, tuple) else output

    return predict


class LogitsFile:
    """The test logits of a finished run, for agreement, calibration or ensembles without a GPU.

    logits_last.safetensors: `logits` (N x C, fp16) and `labels` (N, int16), in the order of the test images. 2 N C
    bytes and 2 N: 2.0 MB for CIFAR-100, 100 MB for ImageNet; LOG.KEEP_LOGITS none leaves it out.
    """

    NAME = "logits_last.safetensors"

    def __init__(self) -> None:
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    def __call__(self, logits: Tensor, labels: Tensor) -> None:
        self.logits.append(logits.detach().half().cpu())
        self.labels.append(labels.to(torch.int16).cpu())

    def save(self, folder: Path) -> None:
        """The file, whole; several ranks put their batches together again."""
        logits, labels = distributed.in_turns(self.logits), distributed.in_turns(self.labels)
        if not distributed.first():
            return
        tensors = {"logits": torch.cat(logits), "labels": torch.cat(labels)}
        with whole_file(Path(folder) / self.NAME) as file:
            file.write(safetensors.torch.save(tensors))
