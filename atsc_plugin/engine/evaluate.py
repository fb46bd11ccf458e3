"""Accuracy of anything that maps images to logits: the one place where it is computed."""

import torch
import torch.nn.functional as F

from atsc_plugin.engine import distributed
from atsc_plugin.engine.placement import place
from atsc_plugin.engine.progress import progress


def correct(logits, target, k):
    """How many targets are among the k highest logits (k is cut to the number of classes); a tensor, no sync."""
    top = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return (top == target.unsqueeze(1)).any(dim=1).sum()


@torch.no_grad()
def evaluate(predict, loader, device, label="eval", keep=None):
    """{"top1", "top5" (percent), "loss" (mean cross entropy), "images"} of predict(image) -> logits over a loader.

    `keep(logits, target)` is called with every batch.
    """
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    images = 0
    for batch in progress(distributed.part_of(loader), label):
        image, target = place(batch[0], device), place(batch[1], device)
        logits = predict(image)
        if keep:
            keep(logits, target)
        totals += torch.stack(
            [correct(logits, target, 1), correct(logits, target, 5), F.cross_entropy(logits, target, reduction="sum")]
        ).double()
        images += len(target)
    top1, top5, loss, images = distributed.total(torch.cat([totals, totals.new_tensor([images])])).tolist()
    return {"top1": 100 * top1 / images, "top5": 100 * top5 / images, "loss": loss / images, "images": int(images)}


def in_eval_mode(module):
    """predict(image) of a module set to eval mode, whose forward returns logits or (logits, ...)."""
    module.eval()

    def predict(image):
        output = module(image)
        return output[0] if isinstance(output, tuple) else output

    return predict
