"""`bench launches`: the operations that one training step hands to the device, by the part of the step that asks.

On a GPU each is a kernel launch or a few, and small networks wait for their number, not for arithmetic. They are
counted on any device, in our trainer's own loop; SGD is the fused one of GPUs. Views and memory without content launch
nothing. The FLOPs of the same step, forward and backward, are a method's cost where kernels are long.
"""

import sys
import tempfile
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from atsc_plugin import host
from atsc_plugin.bench.loading import NoiseLoaders, device_loader
from atsc_plugin.bench.roofline import flops_of
from atsc_plugin.bench.steps import Arm, configuration, distiller_of
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.engine.trainer import TrainingPass

PARTS = ("loader", "forward", "drift", "backward", "optimizer", "meters")
# Who asks, innermost first: a module or one function of it. What none of these asks for is forward or backward.
ASKERS = {
    "atsc_plugin.data.device_loader": "loader",
    "atsc_plugin.networks.drift": "drift",
    "atsc_plugin.networks.ema": "optimizer",
    "torch.optim.sgd": "optimizer",
    "torch.optim.adam": "optimizer",
    "torch.nn.utils.clip_grad": "optimizer",
    "atsc_plugin.engine.meters": "meters",
    "atsc_plugin.engine.step:all_finite": "meters",
    "atsc_plugin.methods.monitor": "meters",
}
NO_KERNEL = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
METHODS = (
    "NONE", "KD", "DKD", "REVIEWKD", "SIMKD", "DIH", "AVERKD", "PROJECTED_KD", "ATSC", "SHAKE", "ADAPTKD", "DML",
    "SWITOKD", "BDKD", "PEERS", "COTEACH", "DCM", "published", "ATSC_x2",
)  # fmt: skip
BATCHES, IMAGES = 3, 2  # the second of three steps is counted: it makes no state, and the meters are not read
FLOPS_OF = 64  # images that FLOPs are given for: they grow with the images, launches do not


class Launches(TorchDispatchMode):
    """Counts operations by part, and their FLOPs, backward passes included; `mark` begins a step."""

    def __init__(self):
        super().__init__()
        self.steps, self.flops = [Counter()], [0]

    def mark(self) -> None:
        self.steps.append(Counter())
        self.flops.append(0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.flops[-1] += flops_of(func, args, kwargs, out)
        if func.namespace == "aten" and not func.is_view and func._overloadpacket.__name__ not in NO_KERNEL:
            self.steps[-1][self.part()] += 1
        return out

    def part(self) -> str:
        frame = sys._getframe(2)
        while frame is not None:
            name = frame.f_globals.get("__name__")
            if part := ASKERS.get(name) or ASKERS.get(f"{name}:{frame.f_code.co_name}"):
                return part
            frame = frame.f_back
        return "forward" if torch._C._current_autograd_node() is None else "backward"


class Marking:
    """A loader that marks in `launches` where each batch begins to be used; its next batch belongs to the same step."""

    def __init__(self, loader: DeviceLoader, launches: Launches) -> None:
        self.loader, self.launches = loader, launches

    def __len__(self):
        return len(self.loader)

    def batches_from(self, first: int):
        for batch in self.loader.batches_from(first):
            self.launches.mark()
            yield batch


def step_of(arm: Arm, device: torch.device) -> tuple[Counter, float]:
    """({part: operations}, GFLOP for FLOPS_OF images) of an arm's second step."""
    with tempfile.TemporaryDirectory() as folder:
        own = ["SOLVER.EPOCHS", 1, "LOG.PREFIX", folder, "TEACHER.CACHE", folder, "DIH.HEADS.EPOCHS", 1]
        cfg, launches = configuration(arm, *own), Launches()
        train, val = (device_loader(BATCHES * arm.batch, arm.batch, device, seed) for seed in (1, None))
        trainer = host.trainer_dict["plugin"](
            "bench", distiller_of(cfg, device), Marking(train, launches), val, cfg, folder=folder
        )
        trainer.method.begin(NoiseLoaders(val))
        for optimizer in filter(None, (trainer.step.optimizer, trainer.step.second_optimizer)):
            for group in optimizer.param_groups:
                group["fused"] = True
        trainer.method.before_epoch(1)
        with launches:
            TrainingPass(trainer, 1).run()
    return launches.steps[2], launches.flops[2] * FLOPS_OF / arm.batch / 1e9


def bench_launches(arms: list[Arm], device: torch.device) -> list[dict]:
    """A row an arm: operations by part and all of them, GFLOP, and GFLOP to KD's where KD is among the arms."""
    rows = []
    for arm in arms:
        counts, gflops = step_of(arm, device)
        rows.append(
            {"arm": arm.name, **{part: counts[part] for part in PARTS}, "all": counts.total(), "gflops": gflops}
        )
    for kd in [row["gflops"] for row in rows if row["arm"] == "KD"]:
        rows = [row | {"gflops_to_kd": row["gflops"] / kd} for row in rows]
    return rows
