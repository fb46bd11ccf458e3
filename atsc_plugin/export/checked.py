"""Writing an export so that no file has its name before it was reloaded and agreed with the student."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from atsc_plugin.data.pictures import batch_of, normalised
from atsc_plugin.errors import PluginError
from atsc_plugin.export.formats import FORMATS, folder_of, input_text

TOLERANCE = 1e-3  # of the largest logit; other kernels round otherwise, measured at 1e-6 to 1e-5 of it


@dataclass(frozen=True)
class Agreement:
    """How a reloaded file compares with the student on the same images."""

    images: int
    max_difference: float
    same_top1: int
    largest_logit: float

    def text(self):
        return f"{self.same_top1} of {self.images} top-1 equal, largest difference of a logit {self.max_difference:.2g}"

    def good(self):
        return self.same_top1 == self.images and self.max_difference <= TOLERANCE * max(1.0, self.largest_logit)


def export(module, card, output, name, pixels, *, preprocess=False, opset=None):
    """Write `output` (for safetensors with its card); the Agreement on `pixels`, uint8 N x H x W x 3."""
    output = Path(output)
    kind = FORMATS[name]
    if output.suffix != kind.ending:
        output = output.with_name(output.name + kind.ending)
    card = {**card, "exported": {"format": name, "input": input_text(card, preprocess)}}
    scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=folder_of(output)))
    try:
        kind.write(module, card, scratch / output.name, preprocess, opset)
        agreement = compare(module, kind.read(scratch / output.name), pixels, card, preprocess)
        if not agreement.good():
            raise PluginError(
                f"The reloaded {name} file does not agree with the student: {agreement.text()}. Nothing was written; "
                "try another --opset or format."
            )
        # The card of a pair goes last: whoever finds it finds the tensors, too.
        files = sorted(scratch.iterdir(), key=lambda file: file.suffix == ".json")
        for file in files:
            _flush(file)
            os.chmod(file, 0o644)
            os.replace(file, output.parent / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [output.parent / file.name for file in files], agreement


def _flush(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@torch.no_grad()
def compare(module, predict, pixels, card, preprocess):
    """Agreement of predict(array) with the student, in batches of one image, of `batch_of` and of what is left."""
    step = batch_of(card)
    cuts = [0, 1, *range(1 + step, len(pixels), step), len(pixels)]
    difference, same, largest = 0.0, 0, 0.0
    for start, end in zip(cuts, cuts[1:], strict=False):
        part = pixels[start:end]
        if not len(part):
            continue
        images = normalised(part, card)
        wanted = module(torch.from_numpy(images)).numpy()
        got = predict(np.ascontiguousarray(part) if preprocess else images)
        if got.shape != wanted.shape:
            raise PluginError(f"The reloaded file gives logits of shape {got.shape}; expected {wanted.shape}.")
        if not np.isfinite(wanted).all():
            raise PluginError("The student gives logits that are not finite; expected numbers. Its training diverged.")
        if not np.isfinite(got).all():
            raise PluginError("The reloaded file gives logits that are not finite; expected the student's, which are.")
        difference = max(difference, float(np.abs(got - wanted).max(initial=0)))
        largest = max(largest, float(np.abs(wanted).max(initial=0)))
        same += int((got.argmax(1) == wanted.argmax(1)).sum())
    return Agreement(len(pixels), difference, same, largest)
