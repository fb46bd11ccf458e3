"""A deployed student in other formats, each file reloaded and compared with the student before it gets its name.

`torch` is a torch.export program (.pt2), `onnx` an ONNX file, `safetensors` the deploy pair itself. The batch size is
free in all of them, the image size is fixed. A format is a pair of functions: write(module, card, path, preprocess,
opset), and read(path) -> predict(array) -> logits as an array, on the input that the written file takes.
"""

import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from atsc_plugin import students
from atsc_plugin.data import pictures
from atsc_plugin.engine.checkpoint import save_tensors
from atsc_plugin.errors import PluginError
from atsc_plugin.export import onnx_files

TOLERANCE = 1e-3  # of the largest logit; other kernels round otherwise, measured at 1e-6 to 1e-5 of it


# ---- formats ----


class WithPreprocessing(nn.Module):
    """uint8 N x H x W x 3 (RGB, 0..255) -> logits: scaled to 0..1, normalised as in training, then the student."""

    def __init__(self, student, card):
        super().__init__()
        self.student = student
        for name, values in zip(("mean", "std"), pictures.normalisation_of(card), strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, image):
        scaled = image.permute(0, 3, 1, 2).float() / 255
        return self.student((scaled - self.mean) / self.std)


def program_of(module: nn.Module, card: dict, preprocess: bool = False):
    """The module as a torch.export program with a free batch size."""
    side = card["image_size"]
    if preprocess:
        module, example = WithPreprocessing(module, card).eval(), torch.zeros(2, side, side, 3, dtype=torch.uint8)
    else:
        example = torch.zeros(2, 3, side, side)
    return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def write_torch(module, card, path, preprocess, opset):
    torch.export.save(program_of(module, card, preprocess), path, extra_files={"card.json": json.dumps(card)})


def read_torch(path):
    return _on_arrays(torch.export.load(path).module())


def write_onnx(module, card, path, preprocess, opset):
    onnx_files.write(program_of(module, card, preprocess), card, path, opset)


def write_safetensors(module, card, path, preprocess, opset):
    save_tensors(module.state_dict(), path.with_suffix(""), card)


def read_safetensors(path):
    return _on_arrays(students.load(path)[0])


def _on_arrays(network):
    def predict(images):
        with torch.no_grad():
            return network(torch.from_numpy(images)).numpy()

    return predict


@dataclass(frozen=True)
class Format:
    ending: str
    write: Callable
    read: Callable


FORMATS = {
    "onnx": Format(".onnx", write_onnx, onnx_files.read),
    "torch": Format(".pt2", write_torch, read_torch),
    "safetensors": Format(".safetensors", write_safetensors, read_safetensors),
}


@contextmanager
def quiet():
    """Exporters print their own deprecations and version steps at length; what matters is compared here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def check_request(name: str, output: Path, preprocess: bool, opset: int | None) -> None:
    """Refuse what a format does not have, or a folder that is not there, before anything is loaded."""
    if preprocess and name == "safetensors":
        raise PluginError(
            "--preprocess has nothing to go into with --format safetensors: the file holds weights, and the card says "
            "how images are normalised. Leave it out, or use --format onnx or torch."
        )
    if opset and name != "onnx":
        raise PluginError(f"--opset belongs to ONNX; --format {name} has none. Leave it out.")
    if name == "onnx":
        onnx_files.check_opset(opset)
    if not output.absolute().parent.is_dir():
        folder = output.absolute().parent
        raise PluginError(f"There is no folder {folder} to write {output.name} into. Make it, or name another.")


# ---- comparing and writing ----


@dataclass(frozen=True)
class Comparison:
    """How the logits of a reloaded file compare with the student's on the same images."""

    images: int
    max_difference: float
    same_top1: int
    largest_logit: float

    def text(self) -> str:
        return f"{self.same_top1} of {self.images} top-1 equal, largest difference of a logit {self.max_difference:.2g}"

    def equal(self) -> bool:
        """Every top-1 the same, and no logit further off than TOLERANCE of the largest."""
        return self.same_top1 == self.images and self.max_difference <= TOLERANCE * max(1.0, self.largest_logit)


@torch.no_grad()
def compare(module: nn.Module, predict: Callable, pixels: np.ndarray, card: dict, preprocess: bool) -> Comparison:
    """predict(array) against the student, in batches of one image, of pictures.batch_of, and of what is left."""
    step, wanted, got = pictures.batch_of(card), [], []
    for batch in np.split(pixels, [1, *range(1 + step, len(pixels), step)]):
        if len(batch):
            images = pictures.normalised(batch, card)
            wanted.append(module(torch.from_numpy(images)).numpy())
            got.append(predict(np.ascontiguousarray(batch) if preprocess else images))
            if got[-1].shape != wanted[-1].shape:
                raise PluginError(f"The reloaded file gives logits {got[-1].shape}; expected {wanted[-1].shape}.")
    wanted, got = np.concatenate(wanted), np.concatenate(got)
    if not np.isfinite(wanted).all():
        raise PluginError("The student gives logits that are not finite; expected numbers. Its training diverged.")
    if not np.isfinite(got).all():
        raise PluginError("The reloaded file gives logits that are not finite; expected the student's, which are.")
    same = int((got.argmax(1) == wanted.argmax(1)).sum())
    return Comparison(len(pixels), float(np.abs(got - wanted).max()), same, float(np.abs(wanted).max()))


def verified_export(
    module: nn.Module,
    card: dict,
    output: Path,
    name: str,
    pixels: np.ndarray,
    *,
    preprocess: bool = False,
    opset: int | None = None,
) -> tuple[list[Path], Comparison]:
    """Write `output` (safetensors: with its card), compared on `pixels`, uint8 N x H x W x 3; (files, Comparison)."""
    output, kind, side = Path(output), FORMATS[name], card["image_size"]
    if output.suffix != kind.ending:
        output = output.with_name(output.name + kind.ending)
    takes = f"float32 N x 3 x {side} x {side}, RGB, (pixel / 255 - mean) / std"
    if preprocess:
        takes = f"uint8 N x {side} x {side} x 3, RGB 0..255; normalised inside"
    card = {**card, "exported": {"format": name, "input": f"image: {takes}"}}
    scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=output.absolute().parent))
    try:
        with quiet():
            kind.write(module, card, scratch / output.name, preprocess, opset)
            predict = kind.read(scratch / output.name)
        result = compare(module, predict, pixels, card, preprocess)
        if not result.equal():
            raise PluginError(
                f"The reloaded {name} file does not agree with the student: {result.text()}. Nothing was written; "
                "try another --opset or format."
            )
        # The card of a pair goes last: whoever finds it finds the tensors, too.
        files = sorted(scratch.iterdir(), key=lambda file: file.suffix == ".json")
        for file in files:
            with open(file, "rb") as content:
                os.fsync(content.fileno())
            os.chmod(file, 0o644)
            os.replace(file, output.parent / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [output.parent / file.name for file in files], result


def pixels_of_data(data, count: int) -> np.ndarray:
    """The first `count` test images of a data set as uint8 N x H x W x 3."""
    batches = []
    for image, *_ in data.test:
        batches.append(pictures.pixels_of(image.cpu().numpy(), data.facts()))
        if sum(map(len, batches)) >= count:
            break
    return np.concatenate(batches)[:count]


def pixels_of_files(path, card: dict, count: int) -> np.ndarray:
    """The first `count` images of a file or folder as uint8 N x H x W x 3; none may be unreadable."""
    try:
        return np.stack([pictures.read(file, card) for file in pictures.find([path])[:count]])
    except pictures.Unreadable as error:
        raise PluginError(f"--images {path}: an image cannot be read ({error}). Repair or remove it.") from error
