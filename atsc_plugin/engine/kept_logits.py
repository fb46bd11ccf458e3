"""The test logits of a finished run: agreement, calibration or an ensemble can be had later without a GPU.

logits_last.safetensors: `logits` (N x C, fp16) and `labels` (N, int16), in the order of the test images. 2 N C bytes
and 2 N: 2.0 MB for CIFAR-100, 100 MB for ImageNet; LOG.KEEP_LOGITS none leaves it out.
"""

from pathlib import Path

import safetensors.torch
import torch

from atsc_plugin.engine import distributed
from atsc_plugin.files import whole_file

NAME = "logits_last.safetensors"


class KeptLogits:
    """Gathers the batches of one evaluation on the host side; called with (logits, labels)."""

    def __init__(self):
        self.logits, self.labels = [], []

    def __call__(self, logits, labels):
        self.logits.append(logits.detach().half().cpu())
        self.labels.append(labels.to(torch.int16).cpu())

    def save(self, folder):
        """The file, whole; several ranks put their batches together again."""
        logits, labels = distributed.in_turns(self.logits), distributed.in_turns(self.labels)
        if not distributed.first():
            return
        tensors = {"logits": torch.cat(logits), "labels": torch.cat(labels)}
        with whole_file(Path(folder) / NAME) as file:
            file.write(safetensors.torch.save(tensors))
