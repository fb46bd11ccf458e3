"""Size and speed of a student beside its teacher: torch, torch compiled, ONNX Runtime; one image and 64.

Student and teacher take turns, several times, and the ratio is taken within each turn, so that a machine that slows
down does so for both. The figures are medians; the spread tells how quiet the machine was.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from atsc_plugin.engine.evaluate import in_eval_mode
from atsc_plugin.export import onnx_files
from atsc_plugin.export.formats import program_of, quiet

BATCHES = (1, 64)
REPEATS, SECONDS = 9, 0.25  # turns, and how long one network is timed in a turn


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds a batch."""

    engine: str
    batch: int
    student: float
    teacher: float | None
    ratio: tuple | None  # median, lowest, highest of teacher / student over the turns

    def text(self):
        if self.ratio is None:
            return f"{self.engine:<14} {self.batch:>5}  {self.student:>10.2f}"
        median, low, high = self.ratio
        spread = f"{median:.2f} ({low:.2f} to {high:.2f})"
        return f"{self.engine:<14} {self.batch:>5}  {self.student:>10.2f}  {self.teacher:>10.2f}  {spread:>22}"


def table(student, teacher, card, with_compiled=False):
    """Lines of the whole table; `teacher` may be None, its weights do not matter."""
    lines = _sizes(student, teacher)
    lines.append(f"latency on cpu, {torch.get_num_threads()} threads, medians of {REPEATS} turns, ms a batch:")
    lines.append(
        f"{'':<14} {'batch':>5}  {'student':>10}" + (f"  {'teacher':>10}  {'teacher / student':>22}" * bool(teacher))
    )
    makers = {"torch": _eager, "torch compiled": _compiled, "ONNX Runtime": _onnx}
    for engine, maker in makers.items():
        if maker is _compiled and not with_compiled:
            lines.append(f"{engine:<14} skipped (--compile measures it; it takes a minute and a C++ compiler)")
            continue
        try:
            calls = [maker(network, card) for network in (student, teacher) if network is not None]
            rows = [measure(engine, calls, batch, card["image_size"]) for batch in BATCHES]
            lines += [row.text() for row in rows]
        except Exception as error:  # no compiler, no runtime: the other engines are still told
            lines.append(f"{engine:<14} skipped ({' '.join(str(error).split())[:120]})")
    return lines


def _sizes(student, teacher):
    lines = [f"{'':<20}  {'parameters':>12}  {'weights, bytes':>14}"]
    sizes = {}
    for name, network in (("student, deployed", student), ("teacher", teacher)):
        if network is not None:
            count = sum(p.numel() for p in network.parameters())
            tensors = {key: tensor.contiguous().clone() for key, tensor in network.state_dict().items()}
            sizes[name] = (count, len(safetensors.torch.save(tensors)))
            lines.append(f"{name:<20}  {count:>12,}  {sizes[name][1]:>14,}")
    if teacher is not None:
        parameters, size = (b / a for a, b in zip(*sizes.values(), strict=True))
        lines.append(f"{'teacher / student':<20}  {parameters:>12.2f}  {size:>14.2f}")
    return lines


def measure(engine, calls, batch, side):
    """A Row of one engine at one batch size; `calls` are student and, perhaps, teacher."""
    images = np.random.default_rng(0).standard_normal((batch, 3, side, side), dtype=np.float32)
    counts = [_calibrated(call, images) for call in calls]
    turns = []
    for _ in range(REPEATS):
        turns.append([_timed(call, images, count) for call, count in zip(calls, counts, strict=True)])
    medians = [statistics.median(times) for times in zip(*turns, strict=True)]
    if len(calls) == 1:
        return Row(engine, batch, medians[0], None, None)
    ratios = [teacher / student for student, teacher in turns]
    return Row(engine, batch, *medians, (statistics.median(ratios), min(ratios), max(ratios)))


def _timed(call, images, count):
    started = time.perf_counter()
    for _ in range(count):
        call(images)
    return 1000 * (time.perf_counter() - started) / count


def _calibrated(call, images):
    """How many calls fill the time of a turn, after two that warm up."""
    for _ in range(2):
        milliseconds = _timed(call, images, 1)
    return max(1, round(1000 * SECONDS / milliseconds))


def _eager(network, card):
    predict = in_eval_mode(network)

    def call(images):
        with torch.inference_mode():
            return predict(torch.from_numpy(images))

    return call


def _compiled(network, card):
    network = torch.compile(_LogitsOnly(network).eval(), dynamic=False)
    return _eager(network, card)


class _LogitsOnly(torch.nn.Module):
    """A teacher answers with its maps as well; what is timed is its logits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        output = self.network(image)
        return output[0] if isinstance(output, tuple) else output


def _onnx(network, card):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        with quiet():
            onnx_files.write(program_of(_LogitsOnly(network).eval(), card, False), {}, path, None)
        return onnx_files.predictor(onnx_files.session(path, torch.get_num_threads()))
