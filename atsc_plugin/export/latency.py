"""Size and speed of a student beside its teacher: torch, torch compiled, ONNX Runtime; one image and 64.

Student and teacher take turns, and the ratio is taken within each turn, so that a machine that slows down does so for
both. The figures are medians; the ratio's range tells how quiet the machine was.
"""

import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import safetensors.torch
import torch
from torch import nn

from atsc_plugin.bench.timing import interleaved, milliseconds, text_table
from atsc_plugin.export import onnx_files
from atsc_plugin.export.verified import program_of, quiet

BATCHES = (1, 64)
TURNS, SECONDS = 9, 0.25  # how long the slower network is timed in a turn
CPU = torch.device("cpu")


class LogitsOnly(nn.Module):
    """A host's network returns its maps as well; what is timed is its logits."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        output = self.network(image)
        return output[0] if isinstance(output, tuple) else output


def report(student: nn.Module, teacher: nn.Module | None, side: int, with_compiled: bool = False) -> str:
    """Both tables as text; the teacher may be None, and its weights do not matter."""
    networks = {"student": LogitsOnly(student).eval()}
    if teacher is not None:
        networks["teacher"] = LogitsOnly(teacher).eval()
    engines = {"torch": eager, "torch compiled": compiled, "ONNX Runtime": onnx_runtime}
    rows, skipped = [], []
    for engine, maker in engines.items():
        if maker is compiled and not with_compiled:
            skipped.append(f"{engine} skipped (--compile measures it; it takes a minute and a C++ compiler)")
            continue
        try:
            calls = {name: maker(network, side) for name, network in networks.items()}
            rows += [{"engine": engine, "batch": batch, **measure(calls, batch, side)} for batch in BATCHES]
        except Exception as error:  # no compiler, no runtime: the other engines are still measured
            skipped.append(f"{engine} skipped ({' '.join(str(error).split())[:120]})")
    title = f"latency on cpu, {torch.get_num_threads()} threads, medians of {TURNS} turns, ms a batch:"
    return "\n".join([text_table(sizes(networks)), title, text_table(rows), *skipped])


def sizes(networks: dict[str, nn.Module]) -> list[dict]:
    """Parameters and bytes of the weights of each network, and what the teacher has times the student's."""
    rows = []
    for name, network in networks.items():
        count = sum(p.numel() for p in network.parameters())
        tensors = {key: tensor.contiguous().clone() for key, tensor in network.network.state_dict().items()}
        rows.append({"network": name, "parameters": count, "bytes": len(safetensors.torch.save(tensors))})
    if len(rows) == 2:
        ratios = {key: rows[1][key] / rows[0][key] for key in ("parameters", "bytes")}
        rows.append({"network": "teacher / student", **ratios})
    return rows


def measure(calls: dict, batch: int, side: int) -> dict:
    """Medians by network, with a teacher the median and range of teacher / student over the turns."""
    images = np.random.default_rng(0).standard_normal((batch, 3, side, side), dtype=np.float32)
    runs = {name: lambda call=call: call(images) for name, call in calls.items()}
    slowest = max(min(milliseconds(run, CPU) for _ in range(2)) for run in runs.values())
    times = interleaved(runs, CPU, TURNS, calls=max(1, round(1000 * SECONDS / slowest)))
    row = {name: median(values) for name, values in times.items()}
    if "teacher" in times:
        ratios = [teacher / student for teacher, student in zip(times["teacher"], times["student"], strict=True)]
        row |= {"teacher / student": median(ratios), "range": f"{min(ratios):.2f} to {max(ratios):.2f}"}
    return row


def eager(network, side):
    @torch.inference_mode()
    def call(images):
        return network(torch.from_numpy(images))

    return call


def compiled(network, side):
    return eager(torch.compile(network, dynamic=False), side)


def onnx_runtime(network, side):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        with quiet():
            onnx_files.write(program_of(network, {"image_size": side}), {}, path, None)
        return onnx_files.predictor(onnx_files.session(path, torch.get_num_threads()))
