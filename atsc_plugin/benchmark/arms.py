"""The steps that are compared: a method on random images with fresh networks, ready to be called."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from atsc_plugin import build, host
from atsc_plugin.engine.placement import layout_of
from atsc_plugin.engine.step import Step
from atsc_plugin.errors import PluginError
from atsc_plugin.methods.teacher_list import configs_by_teacher

PUBLISHED = ["DISTILLER.TYPE", "ATSC", "ATSC.UPDATE", "published", "ATSC.CLASSIFIER.PARAMS", "bias"]
# Name of an arm -> keys that make it. "released" makes the steps of "published" at the cost of the released code.
METHODS = {
    "released": PUBLISHED,
    "published": PUBLISHED,
    "fused": ["DISTILLER.TYPE", "ATSC"],
    "SIMKD": ["DISTILLER.TYPE", "SIMKD"],
    "KD": ["DISTILLER.TYPE", "KD"],
    "ATSC_x2": ["DISTILLER.TYPE", "ATSC_MULTI"],
    "ATSC_x3": ["DISTILLER.TYPE", "ATSC_MULTI"],
}
TEACHERS = {"ATSC_x2": 2, "ATSC_x3": 3}  # of the same network, where there are several
RATE = ["SOLVER.TRAINER", "plugin", "SOLVER.LR", 0.001, "ATSC.DRIFT.WEIGHT", 1.0, "DATASET.TYPE", "cifar100"]


@dataclass(frozen=True)
class Arm:
    """One step to be timed, by the values that name it."""

    method: str
    teacher: str
    student: str
    batch: int
    amp: str = "none"
    compile: str = "none"
    layout: str = "own"  # "own": what the engine uses on the device; "contiguous": torch's default

    @property
    def name(self):
        extras = [self.amp] * (self.amp != "none") + [f"compiled {self.compile}"] * (self.compile != "none")
        return " ".join([self.method, *extras, *([self.layout] if self.layout != "own" else [])])


def configuration(arm, *extra):
    """The configuration of an arm; no file is read."""
    cfg = host.CFG.clone()
    cfg.defrost()
    cfg.merge_from_list([*RATE, *METHODS[arm.method], "SOLVER.AMP", arm.amp, "SOLVER.COMPILE", arm.compile])
    cfg.merge_from_list(["DISTILLER.TEACHER", arm.teacher, "DISTILLER.STUDENT", arm.student])
    cfg.merge_from_list(["DISTILLER.TEACHERS", [arm.teacher] * TEACHERS.get(arm.method, 0)])
    cfg.merge_from_list(["SOLVER.BATCH_SIZE", arm.batch, *extra])
    known = host.models_for("cifar100")
    for name in (arm.teacher, arm.student):
        if name not in known:
            raise PluginError(f"'{name}' is no network of this host; expected one of {', '.join(known)}.")
    return cfg


def distiller_of(cfg, device):
    """Student, teachers and method of a configuration, freshly initialised on the device."""
    student = build.network(cfg, "STUDENT", 100, 1).to(device)
    networks = [build.network(own, "TEACHER", 100, 1).to(device) for own in configs_by_teacher(cfg)]
    return build.distiller_of(cfg, student, build.as_the_method_takes_it(cfg, networks), None).to(device)


class ReleasedStep(Step):
    """The published update as the released code pays for it: the second loss goes back through the whole teacher.

    All but the bias's gradient is thrown away there; ours asks for that one alone. The numbers are the same. Not
    repeated: drift by autograd, and the losses read back every step, so the real one is dearer still.
    """

    def _second(self, inputs):
        (bias,), losses = self.distiller.second_loss(inputs["image"], inputs["target"])
        self.second_optimizer = self.second_optimizer or self._sgd([bias])
        bias.grad = None
        sum(losses.values()).backward()
        self.second_optimizer.step()
        return losses


class Prepared:
    """An arm with its networks, optimizer and one batch; calling it makes a step."""

    def __init__(self, arm, device):
        self.arm, self.device = arm, device
        cfg = configuration(arm)
        layout = layout_of(device) if arm.layout == "own" else torch.contiguous_format
        distiller = distiller_of(cfg, device).to(memory_format=layout)
        self.step = (ReleasedStep if arm.method == "released" else Step)(distiller.train(), cfg)
        draw = torch.Generator().manual_seed(0)
        image = torch.randn(arm.batch, 3, 32, 32, generator=draw).to(device).contiguous(memory_format=layout)
        target = torch.randint(100, (arm.batch,), generator=draw).to(device)
        self.inputs = {"image": image, "target": target, "epoch": 1}
        self.inputs["index"] = torch.arange(arm.batch, device=device)

    def __call__(self):
        self.step(self.inputs)

    def uncompiled(self):
        """The block in which operations can be counted."""
        return self.step.uncompiled()

    def kept_mb(self):
        """MiB that the graph of one step keeps for its backward pass, weights left out."""
        weights = {p.untyped_storage().data_ptr() for p in self.step.distiller.parameters()}
        with self.uncompiled(), _saved() as storages:
            self()
        return sum(size for place, size in storages.items() if place not in weights) / 2**20

    def peak_mb(self):
        """MiB on the GPU at the fullest moment of a step, beyond what lay there before it; None on a CPU."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20


@contextmanager
def _saved():
    """{storage: bytes} of what autograd saves inside the block."""
    storages, kept = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # or its memory would be given out again, and counted once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages
