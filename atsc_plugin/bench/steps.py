"""`bench step`: one training step of several methods on random images, each beside its roofline.

An arm is a method of the registry, or a name of ARMS, with settings of the engine. A new setting is a field of Arm that
`configuration` or `PreparedStep` reads.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace

import torch

from atsc_plugin import build, host
from atsc_plugin.bench.roofline import CountedOperations, measured_peak
from atsc_plugin.bench.timing import interleaved, row
from atsc_plugin.data.device_loader import DeviceLoader
from atsc_plugin.engine.batches import layout_of
from atsc_plugin.engine.graph import WARM_UP, RecordedStep, plain_calls_on, refusal
from atsc_plugin.engine.step import Step
from atsc_plugin.errors import PluginError, out_of_memory

PUBLISHED = ["DISTILLER.TYPE", "ATSC", "ATSC.UPDATE", "published"]
TASK = ["DISTILLER.TYPE", "ATSC", "ATSC.TEACHER.LEARNS", "task", "ATSC.DRIFT.WEIGHT", 0.0]
EMA = [*TASK, "ATSC.TEACHER.EMA", 0.99]
# An arm that is more than a method's name -> (its keys, how many teachers DISTILLER.TEACHERS lists).
ARMS = {
    "released": (PUBLISHED, 0),
    "published": (PUBLISHED, 0),
    "fused": (["DISTILLER.TYPE", "ATSC"], 0),
    "task": (TASK, 0),
    "task_every_2": ([*TASK, "ATSC.TEACHER.EVERY", 2], 0),
    "task_every_4": ([*TASK, "ATSC.TEACHER.EVERY", 4], 0),
    "ema": (EMA, 0),
    "ema_every_2": ([*EMA, "ATSC.TEACHER.EVERY", 2], 0),
    "ema_every_4": ([*EMA, "ATSC.TEACHER.EVERY", 4], 0),
    "ATSC_x2": (["DISTILLER.TYPE", "ATSC_MULTI"], 2),
    "ATSC_x3": (["DISTILLER.TYPE", "ATSC_MULTI"], 3),
}
CIFAR100 = ["DATASET.TYPE", "cifar100", "SOLVER.TRAINER", "plugin", "SOLVER.LR", 0.001, "ATSC.DRIFT.WEIGHT", 1.0]
CLASSES = 100
DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Arm:
    """What is timed; `layout` is the engine's own ("auto"), "contiguous" (NCHW) or "channels_last" (NHWC)."""

    method: str
    teacher: str
    student: str
    batch: int
    amp: str = "none"
    compile: str = "none"
    layout: str = "auto"
    graph: bool = False  # the step recorded whole (SOLVER.GRAPH), the loader's work on the batch included

    @property
    def name(self) -> str:
        settings = [self.amp, f"compiled {self.compile}", self.layout, "graph" if self.graph else "none"]
        return " ".join([self.method, *(text for text in settings if text not in ("none", "compiled none", "auto"))])


def configuration(arm: Arm, *overrides):
    """The configuration of an arm, from defaults and keys alone: no file is read."""
    known = host.models_for("cifar100")
    for name in (arm.teacher, arm.student):
        if name not in known:
            raise PluginError(f"'{name}' is no network of this host; expected one of {', '.join(known)}.")
    keys, teachers = ARMS.get(arm.method, (["DISTILLER.TYPE", arm.method], 0))
    names = ["DISTILLER.TEACHER", arm.teacher, "DISTILLER.STUDENT", arm.student]
    solver = ["SOLVER.BATCH_SIZE", arm.batch, "SOLVER.AMP", arm.amp, "SOLVER.COMPILE", arm.compile]
    solver += ["SOLVER.GRAPH", "auto" if arm.graph else "none"]
    cfg = host.CFG.clone()
    cfg.defrost()
    cfg.merge_from_list([*CIFAR100, *keys, *names, *solver, *overrides])
    cfg.DISTILLER.TEACHERS = [arm.teacher] * teachers
    return cfg


def distiller_of(cfg, device: torch.device) -> torch.nn.Module:
    """The configured distiller on the device, all its networks freshly initialised."""
    return build.skeleton(cfg, SimpleNamespace(classes=CLASSES, image_size=32, train_images=50000)).to(device)


def add_released_cost(method) -> None:
    """Let the second loss go back through the whole teacher, as in the released code, which throws most of it away.

    The numbers stay those of ATSC.UPDATE published, which asks for the bias's gradient alone. Not repeated: drift by
    autograd, and the losses read back every step, so that the released step is dearer still.
    """
    second_loss = method.second_loss
    teacher = [parameter for network in method.networks() for parameter in network.module.parameters()]

    def through_the_teacher(image, target):
        losses = second_loss(image, target)
        torch.autograd.grad(sum(losses.values()), teacher, retain_graph=True)
        return losses

    method.second_loss = through_the_teacher


def begun_step(distiller: torch.nn.Module, cfg, loaders=None) -> Step:
    """The step of a distiller whose method has begun its first epoch, as our trainer begins it."""
    step = Step(distiller.train(), cfg)
    step.method.driven = True
    step.method.begin(loaders)
    step.method.before_epoch(1)
    return step


class PreparedStep:
    """An arm with its networks, optimizer and one batch; calling it makes `cycle` steps, at once for the first time."""

    def __init__(self, arm: Arm, device: torch.device):
        self.arm, self.device = arm, device
        layout = LAYOUTS.get(arm.layout) or layout_of(device)
        draw = torch.Generator().manual_seed(0)
        image = torch.randn(arm.batch, 3, 32, 32, generator=draw).to(device).contiguous(memory_format=layout)
        target = torch.randint(CLASSES, (arm.batch,), generator=draw).to(device)
        self.inputs = {"image": image, "target": target, "index": torch.arange(arm.batch, device=device), "epoch": 1}
        cfg = configuration(arm)
        self.cycle = cfg.ATSC.TEACHER.EVERY  # steps after which the work repeats
        try:
            self.distiller = distiller_of(cfg, device).to(memory_format=layout)
            self.step = begun_step(self.distiller, cfg)
            self.method = self.step.method
            if arm.method == "released":
                add_released_cost(self.method)
            self.recorded = self._recorded(cfg, image, target) if arm.graph else None
            for _ in range(WARM_UP + 2 if arm.graph else 1):
                self()
        except (TypeError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            raise PluginError(
                f"{arm.name} makes no step on random images and labels ({type(error).__name__}: {str(error)[:200]}); "
                f"expected a method that needs nothing else, e.g. {', '.join(ARMS)}."
            ) from error

    def _recorded(self, cfg, image, target):
        """The recorded step, on a loader of as many images as the batch has."""
        images = (image * 64 + 128).clamp(0, 255).byte().contiguous()
        loader = DeviceLoader(images, target, len(target), [0.5] * 3, [0.25] * 3, self.device, 0, padding=4, flip=True)
        self.drawn = next(loader.draws_from(0))
        with plain_calls_on(self.device):
            if reason := refusal(self.step, loader, cfg):
                raise PluginError(f"{self.arm.name}: the step is not recorded, since {reason}.")
            return RecordedStep(self.step, loader)

    def __call__(self):
        for number in range(self.cycle):
            self.one(number)

    def one(self, number: int) -> None:
        """The step of this number in its epoch."""
        self.method.before_step(1, number)
        if self.recorded:
            self.recorded(self.drawn, 1)
        else:
            self.step(self.inputs)

    @contextmanager
    def eager(self):
        """A block in which the step runs as it is written, so that every operation is seen."""
        recorded, self.recorded = self.recorded, None
        with nullcontext() if self.arm.compile == "none" else torch.compiler.set_stance("force_eager"):
            yield
        self.recorded = recorded

    def operations(self) -> CountedOperations:
        """The operations of `cycle` steps."""
        with self.eager(), CountedOperations() as counted:
            self()
        return counted

    def saved_mb(self) -> float:
        """MiB that autograd saves in the first step for the backward pass, weights left out."""
        weights = {p.untyped_storage().data_ptr() for p in self.distiller.parameters()}
        storages = {}  # holds what was saved, so that no address is given out twice

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with self.eager(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self.one(0)
        return sum(storage.nbytes() for place, storage in storages.items() if place not in weights) / 2**20

    def peak_mb(self) -> float | None:
        """MiB of GPU memory that a step takes at most beyond what lay there before it; None on a CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20


def arms_of(
    methods, teacher: str, student: str, batch: int, amps, compiles, layouts=("auto",), graphs=("none",)
) -> list[Arm]:
    """Every combination; the released step in fp32 and torch's own layout, as it ran, and fused beside it in both."""
    arms = []
    for method, amp, mode, layout, graph in product(methods, amps, compiles, layouts, graphs):
        plain = (amp, mode, graph) == ("none", "none", "none")
        if plain or method not in ("released", "published"):
            own = "contiguous" if method == "released" else layout
            arms.append(Arm(method, teacher, student, batch, amp, mode, own, graph != "none"))
        if plain and method == "fused" and "released" in methods:
            arms.append(Arm(method, teacher, student, batch, layout="contiguous"))
    return list(dict.fromkeys(arms))


def bench_step(arms: list[Arm], device: torch.device, rounds: int, calls: int = 1) -> tuple[list[dict], dict]:
    """(rows, ratios): a row an arm, and what the fused step gains over the released one, in its two factors."""
    steps = {arm.name: PreparedStep(arm, device) for arm in arms}
    times = interleaved(steps, device, rounds, calls, warm_up=calls)
    peaks = {amp: measured_peak(device, DTYPES[amp]) for amp in {arm.amp for arm in arms}}
    rows = {name: row_of(step, times[name], peaks[step.arm.amp]) for name, step in steps.items()}
    for key, name in (("times_released", "released contiguous"), ("times_kd", "KD")):
        for own in rows.values() if name in rows else ():
            own[key] = own["ms"] / rows[name]["ms"]
    return list(rows.values()), _gain(*map(rows.get, ("released contiguous", "fused contiguous", "fused")))


def row_of(step, times, peak):
    arm, counted = step.arm, step.operations()
    own = row(arm.name, [time / step.cycle for time in times], arm.batch)
    flops, seconds = counted.flops() / step.cycle, counted.seconds(peak) / step.cycle
    return own | {
        "pair": f"{arm.teacher} -> {arm.student}",
        "batch": arm.batch,
        "gflops": flops / 1e9,
        "share_of_roofline": 1000 * seconds / own["ms"],
        "share_of_matmul": 1000 * flops / peak["flops_per_second"] / own["ms"],
        "saved_mb": step.saved_mb(),
        "peak_mb": step.peak_mb(),
    }


def _gain(released, contiguous, fused):
    if not (released and contiguous and fused):
        return {}
    saved, layout = released["ms"] / contiguous["ms"], contiguous["ms"] / fused["ms"]
    flops = released["gflops"] / fused["gflops"]
    return {"work saved": saved, "layout": layout, "both": saved * layout, "work saved by FLOPs": flops}


def profile(arm: Arm, device: torch.device, steps: int = 3) -> str:
    """torch.profiler's table of the operations in which a step spends its time."""
    step, place = PreparedStep(arm, device), "cpu" if device.type == "cpu" else "device"
    with torch.profiler.profile() as record:
        for _ in range(steps):
            step()
    return record.key_averages().table(f"self_{place}_time_total", row_limit=15, max_name_column_width=50)
