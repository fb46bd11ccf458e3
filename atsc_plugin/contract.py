"""The contract between a method and everything that runs it: all that an engine, a builder or a command may ask.

A method of ours is a `Contract` itself (methods/base.py). A distiller of the host gets the same answers from a
`HostMethod` around it, which is no nn.Module, so that no name in a checkpoint changes. `of(distiller, cfg)` gives the
one or the other; nobody asks a distiller for anything else. Every question but mdistiller's own has a default.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from atsc_plugin.keys import Key

NONE, ONE, SEVERAL = "none", "one", "several"  # how many teachers a method learns from

# What a method may need of the engine; `needs` gives a reason for each, which a refusal quotes.
SECOND_STEP = "second_step"  # a second optimizer step a batch: fp32, one rank, no accumulation, no compilation
OUR_TRAINER = "our_trainer"  # hooks or parameter groups that a host's trainer does not know
IDLE_PARAMETERS = "idle_parameters"  # some parameters get no gradient in later epochs: DDP has to look for them
EAGER_STEP = "eager_step"  # a step reads the device, or changes what is no tensor: it is not recorded as a CUDA graph

WEAK, STRONG = "image_weak", "image_strong"  # names under which some forks hand over two views of each image


class Network(NamedTuple):
    """A network beside the student, measured before and after the run."""

    name: str  # where it stands in the state_dict: "teacher", "teacher.1", "scratch"
    title: str  # its architecture, e.g. "resnet32x4"
    module: nn.Module  # image -> logits or (logits, ...)
    moves: bool  # whether the run changes it; then the command `adapted` gives it out


class EpochReport(NamedTuple):
    """What a method has to say of an epoch."""

    figures: dict[str, float] = {}  # for the log
    warning: str | None = None
    stop: bool = False  # whether the run ends here


class Contract:
    """The questions and their defaults. `student` is the network that is taught."""

    NAME = ""  # key in the registry
    TITLE = ""  # how a person reads it, e.g. "SimKD"
    KEYS: tuple[Key, ...] = ()
    OLD_KEYS: dict[str, str] = {}  # keys of earlier editions: what to write now
    TEACHERS = ONE
    MULTI = ""  # the registry key of this method for several teachers
    HYPER: dict[tuple[str, str], dict[str, Any]] = {}  # published hyper-parameters by (teacher, student): {key: value}
    PER_IMAGE = True  # losses are means over images; False refuses ACCUMULATE, and two ranks need not equal one
    HARD_LABELS = False  # True refuses mixed and smoothed labels
    TEACHER_CLASSES = True  # False: a teacher that tells other classes apart serves too, since its logits are not used
    ANY_LAYOUT = True  # False: networks hand their maps over in torch's default layout, whatever they compute in
    HOST_READS = 0  # numbers that a training step reads back from the device; each waits for all that it was asked
    LEAVES_NETWORKS = False  # True: a run changes networks beside the student, which `adapted` gives out
    GIVES_WAY = True  # where a host has this name already, the host's stays

    student: nn.Module
    driven = False  # our trainer says so: it calls the hooks below, and forward does not

    # ---- before any work ----

    @classmethod
    def nodes(cls) -> tuple[str, ...]:
        """The nodes of the configuration that hold its options; () for the one that is called like the method."""
        return tuple(dict.fromkeys(key.name.partition(".")[0] for key in cls.KEYS))

    @classmethod
    def problems(cls, cfg: Any) -> list[str]:
        """Mistakes in the configuration, all at once."""
        return []

    @classmethod
    def needs(cls, cfg: Any) -> dict[str, str]:
        """{what it needs of the engine: why}, of the names above."""
        return {}

    @classmethod
    def teacher_weights(cls, cfg: Any) -> str:
        """ "trained", or "scratch": then a teacher is neither looked for nor trained."""
        return "trained"

    @classmethod
    def more_arguments(cls, train_images: int) -> list[Any]:
        """What the constructor takes behind (student, teacher, cfg)."""
        return []

    def misfits(self, image_size: int) -> list[str]:
        """What is wrong between the configuration and these networks, beside what the constructor refuses."""
        return []

    @classmethod
    def derives(cls, cfg: Any) -> tuple[str, ...]:
        """The keys that follow from the networks, whatever the configuration says."""
        return ()

    @classmethod
    def derived(cls, cfg: Any, student: nn.Module, teachers: list[nn.Module], image_size: int) -> dict[str, Any]:
        """{key: value} of these keys."""
        return {}

    # ---- the networks ----

    def networks(self) -> list[Network]:
        """The networks beside the student."""
        return []

    def compile_networks(self, **options: Any) -> list[str]:
        """Compile in place what computes on images; the names of what was compiled."""
        return []

    def deployed(self) -> Any:
        """The module that leaves the run (networks.deployed.DeployedStudent); None: the student as it is.

        It shares its weights with the method and consists of the same ones in every epoch: SOLVER.EMA averages them.
        """
        return None

    def inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What forward is called with: of a fork's (weak, strong) pair of images the weak one."""
        if WEAK in inputs:
            return {**_without(inputs, WEAK, STRONG), "image": inputs[WEAK]}
        if isinstance(inputs.get("image"), (list, tuple)):
            return {**inputs, "image": inputs["image"][0]}
        return inputs

    # ---- the optimizer ----

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """mdistiller's own."""
        raise NotImplementedError

    def param_groups(self, cfg: Any) -> list[nn.Parameter] | list[dict[str, Any]]:
        """Parameters, or groups with an `lr_scale` or `weight_decay` of their own."""
        return list(self.get_learnable_parameters())

    def second_parameters(self) -> list[nn.Parameter]:
        """What a second step moves after the first; [] for the one step that all but one method makes."""
        return []

    def second_loss(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The losses of that second step."""
        raise NotImplementedError

    # ---- the run, in this order ----

    def begin(self, loaders: Callable[[int, int], Any] | None = None) -> None:
        """Call `start` unless it has been called."""
        if not self.begun:
            self.begun = True
            self.start(loaders)

    begun = False

    def start(self, loaders: Callable[[int, int], Any] | None = None) -> None:
        """Once, when the teachers are filled. loaders(batch size, seed) gives data; None in a foreign script."""

    def before_epoch(self, epoch: int) -> None:
        """Modes and schedules."""

    def phase(self, epoch: int) -> Any:
        """What a step depends on beside tensors: epochs with equal phases make the same step, recorded once."""
        return None

    def before_step(self, epoch: int, step: int) -> None:
        """Random draws, which follow (seed, name, epoch, step), so that resuming and several ranks need no more.

        A recorded step sees what is written into tensors that it has seen before; other draws need an EAGER_STEP.
        """

    def after_step(self) -> None:
        """Averages of weights. Not called for a step that was left out."""

    def after_epoch(self, epoch: int, loader: Iterable[Any]) -> EpochReport:
        """Figures for the log, a warning, a stop; `loader` gives the images that every epoch is evaluated on."""
        return EpochReport()

    def forward_test(self, image: Tensor) -> Tensor:
        """The prediction."""
        raise NotImplementedError

    # ---- what a continuation needs beside the weights ----

    def constants(self) -> dict[str, Tensor]:
        """Tensors that do not change in a run and are in no state_dict; written once."""
        return {}

    def load_constants(self, tensors: dict[str, Tensor]) -> None:
        """Take them up again."""
        for name, tensor in self.constants().items():
            tensor.copy_(tensors[name])

    def run_state(self) -> dict[str, Any]:
        """Numbers and tensors; every rank calls it, and it may add up what the ranks counted."""
        return {}

    def load_run_state(self, state: dict[str, Any]) -> None:
        """Take them up again; every rank calls it."""

    def plan(self) -> list[tuple[str, str]]:
        """(label, text) lines for the plan of a run."""
        return []


class HostMethod(Contract):
    """The contract's defaults around a distiller of the host. methods/host_methods.py says more of some of them."""

    HARD_LABELS = True  # what a method that is not known does with its labels is not known either
    ANY_LAYOUT = False  # nor whether it calls .view on maps

    def __init__(self, distiller: Any, cfg: Any) -> None:
        self.distiller, self.cfg = distiller, cfg
        self.student = distiller.student

    @classmethod
    def needs(cls, cfg: Any) -> dict[str, str]:
        return {EAGER_STEP: f"what {cfg.DISTILLER.TYPE} does in a step is not known"}

    def phase(self, epoch: int) -> Any:
        """What an unknown method does with the epoch is not known either."""
        return epoch

    def networks(self) -> list[Network]:
        teacher = dict(self.distiller.named_children()).get("teacher")
        if teacher is None:
            return []
        learning = {id(parameter) for parameter in self.get_learnable_parameters()}
        moves = any(id(parameter) in learning for parameter in teacher.parameters())
        return [Network("teacher", self.cfg.DISTILLER.TEACHER, teacher, moves)]

    def compile_networks(self, **options: Any) -> list[str]:
        return compile_children(self.distiller, **options)

    def inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A fork's own method gets both views, under the names that its forward_train asks for."""
        if not isinstance(inputs.get("image"), (list, tuple)):
            return inputs
        if WEAK not in inspect.signature(self.distiller.forward_train).parameters:
            return inputs
        weak, strong = inputs["image"]
        return {**_without(inputs, "image"), WEAK: weak, STRONG: strong}

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return list(self.distiller.get_learnable_parameters())

    def forward_test(self, image: Tensor) -> Tensor:
        return self.distiller.forward_test(image)


def _without(inputs: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in names}


def compile_children(distiller: nn.Module, **options: Any) -> list[str]:
    """Compile each network of a distiller in place, so that names in checkpoints stay; not the losses around them."""
    compiled = []
    for name, child in distiller.named_children():
        many = isinstance(child, (nn.ModuleList, nn.ModuleDict))
        entries = child.named_children() if many else [("", child)]
        for number, network in entries:
            if type(network).forward is not nn.Module.forward and any(True for _ in network.parameters()):
                network.compile(**options)
                compiled.append(f"{name}.{number}".rstrip("."))
    return compiled


HOST_METHODS: dict[str, type[HostMethod]] = {}  # by registry key; filled by methods/host_methods.py


def of(distiller: nn.Module, cfg: Any) -> Contract:
    """The contract of a distiller: a method of ours itself, else a HostMethod around it."""
    if isinstance(distiller, Contract):
        return distiller
    return HOST_METHODS.get(cfg.DISTILLER.TYPE, HostMethod)(distiller, cfg)
