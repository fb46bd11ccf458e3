"""What every trainer needs: meters, validation, the step schedule, checkpoints. The path is mdistiller's.

Device-neutral: batches go to the device and the floating type of the distiller's own parameters.
"""

import torch
import torch.nn.functional as F
from tqdm import tqdm

from atsc_plugin.files import NUMPY_NUMBERS, whole_file

_COLOURS = {"INFO": 36, "TRAIN": 32, "EVAL": 31}


class AverageMeter:
    """Last value and running mean of a figure that comes in batches."""

    def __init__(self):
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val, n=1):
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


def log_msg(msg, mode="INFO"):
    return f"\033[{_COLOURS[mode]}m[{mode}] {msg}\033[0m"


def placement(module):
    """Device and floating type of a module's parameters; CPU and float32 for one that has none."""
    first = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0, dtype=torch.float32))
    return {"device": first.device, "dtype": first.dtype}


def _hits(output, target, topk):
    """For each k, how many targets are among the k highest outputs, as tensors on the device."""
    ranked = output.topk(min(max(topk), output.shape[1]), dim=1).indices
    correct = ranked == target.reshape(-1, 1)
    return [correct[:, :k].sum() for k in topk]


def accuracy(output, target, topk=(1,)):
    """Top-k accuracies in percent, one tensor of one element for each k."""
    return [100.0 * hits.reshape(1) / target.shape[0] for hits in _hits(output, target, topk)]


@torch.no_grad()
def validate(val_loader, distiller):
    """Put the distiller in eval mode and return its (top-1, top-5, cross-entropy) over the loader as floats."""
    distiller.eval()
    place = placement(distiller)
    # Added up on the device and read once at the end: reading in every batch would make the device wait.
    top1 = top5 = loss = seen = 0
    for image, target, *_ in tqdm(val_loader, desc=log_msg("validate", "EVAL")):
        image = image.to(**place, non_blocking=True)
        target = target.to(place["device"], non_blocking=True)
        output = distiller(image=image)
        hits1, hits5 = _hits(output, target, (1, 5))
        top1, top5 = top1 + hits1, top5 + hits5
        loss = loss + F.cross_entropy(output, target, reduction="sum")
        seen += target.shape[0]
    return 100.0 * top1.item() / seen, 100.0 * top5.item() / seen, loss.item() / seen


def adjust_learning_rate(epoch, cfg, optimizer):
    """LR * LR_DECAY_RATE^(stages passed), a stage being passed in the epoch after it. Returns that rate.

    Once a stage has passed, EVERY parameter group gets it, even one with a rate of its own; before that, none does.
    """
    passed = sum(epoch > stage for stage in cfg.SOLVER.LR_DECAY_STAGES)
    rate = cfg.SOLVER.LR * cfg.SOLVER.LR_DECAY_RATE**passed
    if passed:
        for group in optimizer.param_groups:
            group["lr"] = rate
    return rate


def save_checkpoint(obj, path):
    """torch.save that either leaves the whole new file or the old one untouched."""
    with whole_file(path) as file:
        torch.save(obj, file)


def load_checkpoint(path):
    """The saved object on the CPU. Reads tensors, plain containers and numbers only, so a file cannot run code."""
    with torch.serialization.safe_globals(NUMPY_NUMBERS):
        return torch.load(path, map_location="cpu", weights_only=True)
