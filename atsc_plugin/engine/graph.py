"""SOLVER.GRAPH: the whole training step recorded as one CUDA graph, so that a step is one launch.

A step of a CIFAR network is hundreds of short kernels, and starting them one by one takes longer than running them. A
CUDA graph is recorded once and started whole. It holds addresses and plain numbers as they were: what differs from
step to step (which images, windows, flips, the rate) lies in tensors that stay in place, and what differs from epoch
to epoch is the method's `phase`, for each of which the step is recorded anew. The file reads from top to bottom: when
a step is recorded, how it runs, and what records it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from atsc_plugin.contract import EAGER_STEP, SECOND_STEP
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.engine import distributed, optim, precision
from atsc_plugin.engine.batches import inputs_of
from atsc_plugin.engine.mixing import Mixing
from atsc_plugin.engine.step import Step, all_finite, gradients
from atsc_plugin.untrusted import first_line

LARGEST = 512 * 32 * 32  # pixels of a batch: above it kernels are long, and launching them costs nothing beside
DRAWN = 4  # tensors that the loader draws for a batch; what mixing drew stands behind them
WARM_UP = 3  # steps of a phase before it is recorded: libraries choose algorithms and take their memory in them

Outputs = tuple[Tensor, dict[str, Tensor], Tensor, Tensor]  # logits, losses, labels, whether gradients are finite


# ---- when ----


def refusal(step: Step, loader: Any, cfg: Any) -> str:
    """Why the step is not recorded, the first reason that holds; empty where it is.

    Recorded with it: bf16, SOLVER.ACCUMULATE, CLIP_NORM, COMPILE default, averages of weights.
    """
    solver, needs, device = cfg.SOLVER, step.method.needs(cfg), step.device
    if solver.GRAPH == "none":
        return "SOLVER.GRAPH is none"
    if device.type not in RECORDERS:
        return f"a {device.type} launches no kernels"
    if distributed.world() > 1:
        return "several ranks add their gradients up within a step"
    for need in (SECOND_STEP, EAGER_STEP):
        if need in needs:
            return needs[need]
    if solver.NONFINITE == "skip":
        return "SOLVER.NONFINITE skip reads every step's losses"
    if step.precision.scaler is not None:
        return "fp16's loss scaler leaves steps out"
    if solver.COMPILE in precision.RECORDS_GRAPHS:
        return f"SOLVER.COMPILE {solver.COMPILE} records graphs of its own"
    if not isinstance(loader, DeviceLoader) or loader.seed is None:
        return "the training images do not lie on the device (DATASET.LOADER)"
    height, width = loader.size
    if loader.batch_size * height * width > LARGEST:
        return f"{loader.batch_size} images of {height} x {width} pixels keep a GPU busy without it"
    return ""


# ---- how ----


class RecordedStep:
    """Calls like a step, on what the loader and mixing drew for a batch: gather, augmentation, mixing, losses, ...

    The first WARM_UP steps of a phase run as they are written, and so does the last, smaller batch of an epoch.
    """

    def __init__(self, step: Step, loader: DeviceLoader, mixing: Mixing | None = None) -> None:
        self.step, self.loader, self.mixing = step, loader, mixing
        self.recorder = RECORDERS[step.device.type](step.device)
        optim.rates_on_device(step.optimizer, step.device)
        self.phase: Any = None
        self.warmed, self.failure = 0, ""
        self.inputs: tuple[Tensor, ...] = ()  # what was drawn for the batch, where the graph reads it
        self.replay: Callable[[], Outputs] | None = None

    def __call__(self, drawn: tuple[Tensor, ...], epoch: int) -> Outputs:
        """The outcome of one step, valid until the next one; nothing waits for the device."""
        phase = self.step.method.phase(epoch)
        if phase != self.phase:
            self.phase, self.warmed, self.replay = phase, 0, None
        if self.failure or len(drawn[0]) < self.loader.batch_size:
            return self.eager(drawn, epoch)
        if self.warmed < WARM_UP:
            self.warmed += 1
            return self.recorder.warm_up(lambda: self.eager(drawn, epoch))
        if self.replay is None:
            self.inputs = tuple(each.clone() for each in drawn)
            try:
                self.replay = self.recorder.record(lambda: self.eager(self.inputs, epoch))
            except RuntimeError as error:
                self.failure = first_line(error)
                print(f"note: no CUDA graph, recording failed ({self.failure}); steps run one by one", flush=True)
                return self.eager(drawn, epoch)
        torch._foreach_copy_(self.inputs, drawn)
        return self.replay()

    def eager(self, drawn: tuple[Tensor, ...], epoch: int) -> Outputs:
        """The step as it is written, and what is recorded."""
        batch = inputs_of(self.loader.batch(*drawn[:DRAWN]), self.step.device)
        if self.mixing:
            batch = self.mixing(batch, drawn[DRAWN:])
        logits, losses = self.step({**batch, "epoch": epoch})
        # Outputs outlive the step: detached, so that the autograd graph and what it saved do not.
        finite = all_finite(gradients(self.step.parameters()))
        return logits.detach(), {name: term.detach() for name, term in losses.items()}, batch["target"], finite


# ---- what records ----


class CudaGraph:
    """torch.cuda.CUDAGraph, warmed up and recorded on a stream of its own, as torch's documentation asks."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], Outputs]) -> Outputs:
        """Run it as it is written, where it will be recorded."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = function()
        current.wait_stream(self.stream)
        return outputs

    def record(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """A function that does the same each time it is called; recording it changes no tensor."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self.stream):
            outputs = function()

        def replay() -> Outputs:
            with torch.cuda.device(self.device):
                graph.replay()
            return outputs

        return replay


class PlainCalls:
    """Records nothing: the same path without a GPU, for checks of all but the recording."""

    def __init__(self, device: torch.device) -> None:
        pass

    def warm_up(self, function: Callable[[], Outputs]) -> Outputs:
        return function()

    def record(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        return function


RECORDERS: dict[str, type[CudaGraph | PlainCalls]] = {"cuda": CudaGraph}  # by type of device


@contextmanager
def plain_calls_on(device: torch.device) -> Iterator[None]:
    """In this block a device that records nothing runs recorded steps too, all but the recording itself."""
    added = {} if device.type in RECORDERS else {device.type: PlainCalls}
    RECORDERS.update(added)
    try:
        yield
    finally:
        for kind in added:
            del RECORDERS[kind]
