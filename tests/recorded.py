"""The recorded figures of mdistiller and ATSC, and the closed-form weights and inputs they were recorded with.

tests/contracts/mdistiller.json says what the real code computes; `fill`, `image` and `labels` rebuild what it was
given, from NumPy's frozen legacy stream. Everything is float64. Import it as `from recorded import fill, image, ...`.
"""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch


@cache
def load_contract():
    return json.loads((Path(__file__).parent / "contracts" / "mdistiller.json").read_text(encoding="utf-8"))


def noise(count, seed):
    return np.random.RandomState(seed).standard_normal(count)


def _noise_like(tensor, seed):
    return torch.from_numpy(noise(tensor.numel(), seed)).reshape(tensor.shape)


@torch.no_grad()
def fill(module, salt=0):
    """Turn a module to float64 and give it the closed-form weights and running statistics. Returns it."""
    module.double()
    for number, (name, parameter) in enumerate(module.named_parameters()):
        values = _noise_like(parameter, 1000 * salt + number)
        if parameter.ndim > 1:
            values *= math.sqrt(2 / parameter[0].numel())
        else:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        parameter.copy_(values)
    for number, (name, buffer) in enumerate(module.named_buffers()):
        values = _noise_like(buffer, 1000 * salt + 500 + number)
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * values)
        elif name.endswith("running_var"):
            buffer.copy_(1 + 0.5 * values**2)
    return module


def image(batch, size=32, seed=7):
    return torch.from_numpy(noise(batch * 3 * size * size, seed)).reshape(batch, 3, size, size)


def labels(batch, classes=100, shift=0):
    return (7 * torch.arange(batch) + 3 + shift) % classes


def traced_tensors(distiller):
    """The tensors of a resnet pair that the step traces recorded, by the recorded name."""
    student, teacher = distiller.student, distiller.teacher
    return {
        "student.conv1.weight": student.conv1.weight,
        "student.layer3[-1].conv2.weight": student.layer3[-1].conv2.weight,
        "student.fc.weight": student.fc.weight,
        "projector.last_conv": distiller.projector[6].weight,
        "teacher.conv1.weight": teacher.conv1.weight,
        "teacher.layer3[-1].conv2.weight": teacher.layer3[-1].conv2.weight,
        "teacher.fc.weight": teacher.fc.weight,
        "teacher.fc.bias": teacher.fc.bias,
        "teacher.bn1.running_mean": teacher.bn1.running_mean,
    }


def summary(tensor):
    """Mean, standard deviation (of the whole population) and the first four values, as recorded."""
    flat = tensor.detach().double().reshape(-1)
    return {"mean": flat.mean().item(), "std": flat.std(correction=0).item(), "first": flat[:4].tolist()}


def assert_close(tensor, figures, rel=1e-9):
    """Compare with recorded figures. Values that cancel to almost nothing are measured against the spread."""
    if "shape" in figures:
        assert list(tensor.shape) == figures["shape"]
    tolerance = {"rel": rel, "abs": 0.01 * rel * figures["std"]}
    for name, found in summary(tensor).items():
        assert found == pytest.approx(figures[name], **tolerance), f"{name}: {found}, recorded {figures[name]}"
