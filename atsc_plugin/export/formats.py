"""The formats: how each is written, and how it is read back for the comparison.

`torch` is a torch.export program (.pt2), `onnx` an ONNX file, `safetensors` the deploy pair itself. The batch size is
free in all of them, the image size is fixed. A format is a pair of functions: write(module, card, path, opset) and
read(path) -> predict(array) -> logits as an array, on the input that the written file takes.
"""

import json
import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from atsc_plugin import deploy
from atsc_plugin.data.pictures import normalisation_of
from atsc_plugin.engine.checkpoint import save_tensors
from atsc_plugin.errors import PluginError
from atsc_plugin.export import onnx_files


class WithPreprocessing(nn.Module):
    """uint8 N x H x W x 3 (RGB, 0..255) -> logits: scaled to 0..1, normalised as in training, then the student."""

    def __init__(self, student, card):
        super().__init__()
        self.student = student
        for name, values in zip(("mean", "std"), normalisation_of(card), strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, image):
        scaled = image.permute(0, 3, 1, 2).float() / 255
        return self.student((scaled - self.mean) / self.std)


def program_of(module, card, preprocess):
    """The student as a torch.export program with a free batch size."""
    side = card["image_size"]
    if preprocess:
        module, example = WithPreprocessing(module, card).eval(), torch.zeros(2, side, side, 3, dtype=torch.uint8)
    else:
        example = torch.zeros(2, 3, side, side)
    with quiet():
        return torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def input_text(card, preprocess):
    """What the file takes, in words, for its card."""
    side = card["image_size"]
    if preprocess:
        return f"image: uint8 N x {side} x {side} x 3, RGB 0..255; normalised inside"
    return f"image: float32 N x 3 x {side} x {side}, RGB, (pixel / 255 - mean) / std"


def write_torch(module, card, path, preprocess, opset):
    program = program_of(module, card, preprocess)
    with quiet():
        torch.export.save(program, path, extra_files={"card.json": json.dumps(card)})


def read_torch(path):
    with quiet():
        network = torch.export.load(path).module()
    return _predictor(network)


def _predictor(network):
    def predict(images):
        with torch.no_grad():
            return network(torch.from_numpy(images)).numpy()

    return predict


def write_onnx(module, card, path, preprocess, opset):
    program = program_of(module, card, preprocess)
    with quiet():
        onnx_files.write(program, card, path, opset)


def write_safetensors(module, card, path, preprocess, opset):
    save_tensors(module.state_dict(), str(path.with_suffix("")), card)


def read_safetensors(path):
    return _predictor(deploy.load(path)[0])


@dataclass(frozen=True)
class Format:
    ending: str
    write: object
    read: object


FORMATS = {
    "onnx": Format(".onnx", write_onnx, onnx_files.read),
    "torch": Format(".pt2", write_torch, read_torch),
    "safetensors": Format(".safetensors", write_safetensors, read_safetensors),
}


def check_request(name, preprocess, opset):
    """Refuse what a format does not have, before anything is loaded."""
    if preprocess and name == "safetensors":
        raise PluginError(
            "--preprocess has nothing to go into with --format safetensors: the file holds weights, and the card says "
            "how images are normalised. Leave it out, or use --format onnx or torch."
        )
    if opset and name != "onnx":
        raise PluginError(f"--opset belongs to ONNX; --format {name} has none. Leave it out.")
    if name == "onnx":
        onnx_files.check_opset(opset)


@contextmanager
def quiet():
    """Exporters speak of their own deprecations and version steps at length; what matters is checked here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def folder_of(path):
    """The folder a file is to appear in; one that is not there is refused before any work."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise PluginError(f"There is no folder {folder} to write {Path(path).name} into. Make it, or name another.")
    return folder
