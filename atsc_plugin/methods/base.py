"""What every method of ours is made of: `Key`, `Method`, and the decorator `@method("NAME")` that registers it.

A method is one file in this folder: the formula as a function, then the class with its keys, checks and citation.
Files here are found by listing the folder; packages of others bring methods by the entry-point group
`atsc_plugin.methods`. CONTRIBUTING.md has a worked example.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from atsc_plugin.contract import (
    HOST_METHODS,
    NONE,
    ONE,
    OUR_TRAINER,
    SECOND_STEP,
    SEVERAL,
    Contract,
    EpochReport,
    HostMethod,
    Network,
    compile_children,
)
from atsc_plugin.engine import mixing
from atsc_plugin.errors import ConfigError, HostError, ModelRefused, PluginError
from atsc_plugin.host import distiller_dict
from atsc_plugin.keys import Key
from atsc_plugin.networks.adapter import unwrapped

if TYPE_CHECKING:
    Distiller = nn.Module  # the host's base class is one
else:
    from atsc_plugin.host import Distiller

__all__ = [
    "NONE", "ONE", "SEVERAL", "EpochReport", "Key", "Method", "Network", "host_method", "method", "networks_of",
]  # fmt: skip

METHODS: dict[str, type[Method]] = {}  # by registry key


def method(name: str, title: str = "") -> Callable[[type[Method]], type[Method]]:
    """Register a class under DISTILLER.TYPE `name`; `title` is how a person reads it."""

    def register(kind: type[Method]) -> type[Method]:
        if METHODS.get(name, kind).__qualname__ != kind.__qualname__:
            raise HostError(f"Two methods are called {name}: {METHODS[name]} and {kind}. Rename one.")
        kind.NAME, kind.TITLE = name, title or name
        METHODS[name] = kind
        return kind

    return register


def host_method(name: str, title: str) -> Callable[[type[HostMethod]], type[HostMethod]]:
    """The same for what is said of a method of the host."""

    def register(kind: type[HostMethod]) -> type[HostMethod]:
        kind.NAME, kind.TITLE = name, title
        HOST_METHODS[name] = kind
        return kind

    return register


def load_methods() -> dict[str, type[Method]]:
    """Import every file of this folder and every entry point; the methods of ours by name."""
    _import_methods()
    return METHODS


@cache
def _import_methods() -> None:
    """Once a process: the look through all installed packages is most of what loading a configuration costs."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
    for entry in entry_points(group="atsc_plugin.methods"):
        entry.load()


def class_of(name: str) -> type[Contract]:
    """The contract's class for a DISTILLER.TYPE: one of ours, or what is known of the host's.

    A name of ours that the host has kept for a method of its own is the host's.
    """
    ours = METHODS.get(name)
    if ours is None or distiller_dict.get(name, ours) is not ours:
        return HOST_METHODS.get(name, HostMethod)
    return ours


def teacher_names(cfg: Any) -> list[str]:
    """The networks of all teachers, in order; a method for several takes DISTILLER.TEACHER too, as a list of one."""
    takes = class_of(cfg.DISTILLER.TYPE).TEACHERS
    if takes == NONE:
        return []
    return list(cfg.DISTILLER.TEACHERS) if takes == SEVERAL and cfg.DISTILLER.TEACHERS else [cfg.DISTILLER.TEACHER]


def networks_of(teacher: nn.Module) -> list[nn.Module]:
    """The teachers of a distiller as a list, whether it has one network or a ModuleList."""
    return list(teacher) if isinstance(teacher, nn.ModuleList) else [teacher]


def constructor_problems(kind: type[Contract], cfg: Any) -> list[str]:
    """The method's own mistakes, soft labels that it cannot take, and a trainer that cannot run it."""
    problems = kind.problems(cfg) + mixing.problems(kind, cfg)
    if cfg.SOLVER.TRAINER != "plugin":
        reasons = {need: why for need, why in kind.needs(cfg).items() if need in (SECOND_STEP, OUR_TRAINER)}
        problems += [
            f"{why}, which SOLVER.TRAINER {cfg.SOLVER.TRAINER} does not do. Use SOLVER.TRAINER plugin."
            for why in dict.fromkeys(reasons.values())
        ]
    return problems


class Method(Contract, Distiller):
    """A method of ours: the contract, on the host's own Distiller.

    `teacher` is a network, or for TEACHERS = SEVERAL a ModuleList. A subclass adds `forward_train(image, target) ->
    (logits, losses by name)` and whatever of the contract differs from the defaults. Under a host's own trainer, which
    knows no hooks, `forward` calls `begin`, `before_epoch` and `before_step` itself.
    """

    teacher: nn.Module
    forward_train: Callable[..., tuple[Tensor, dict[str, Tensor]]]  # mdistiller's own; a subclass has it

    def __init__(self, student: nn.Module, teacher: Any, cfg: Any) -> None:
        if problems := constructor_problems(type(self), cfg):
            raise ConfigError(problems)
        super().__init__(student, teacher_module(type(self), teacher, cfg), cfg)
        names = teacher_names(cfg)
        networks = networks_of(self.teacher)
        # A host's script may hand over other networks than the configuration names.
        self.teacher_titles = names if len(names) == len(networks) else [type(net).__name__ for net in networks]
        self._epoch, self._step = 0, 0

    def forward(self, **inputs: Any) -> Any:
        inputs = self.inputs(inputs)
        if not self.training:
            return self.forward_test(inputs["image"])
        if not self.driven:
            self._drive(inputs.get("epoch", 1))
        return self.forward_train(**inputs)

    def _drive(self, epoch: int) -> None:
        """Call the hooks that a host's own trainer does not know."""
        self.begin()
        if epoch != self._epoch:
            self._epoch, self._step = epoch, 0
            self.before_epoch(epoch)
        self.before_step(epoch, self._step)
        self._step += 1

    def networks(self) -> list[Network]:
        networks = networks_of(self.teacher)
        names = [f"teacher.{number}" for number in range(len(networks))] if self.TEACHERS == SEVERAL else ["teacher"]
        return [Network(*entry, False) for entry in zip(names, self.teacher_titles, networks, strict=True)]

    def compile_networks(self, **options: Any) -> list[str]:
        return compile_children(self, **options)

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return list(self.student.parameters())

    def get_extra_parameters(self) -> int:
        """mdistiller's own: how many parameters the method adds to what learns."""
        student = {id(parameter) for parameter in self.student.parameters()}
        return sum(p.numel() for p in self.get_learnable_parameters() if id(p) not in student)

    def forward_test(self, image: Tensor) -> Tensor:
        return self.student(image)[0]

    def refuse_replicas(self, why: str) -> None:
        """DataParallel over several GPUs calls copies of the method; `why` says what they lack."""
        if getattr(self, "_is_replica", False):  # set by torch.nn.DataParallel on its copies
            raise PluginError(
                f"{self.NAME} is run by torch.nn.DataParallel over several GPUs, whose copies {why}; expected one. Set "
                "CUDA_VISIBLE_DEVICES to one GPU, or use SOLVER.TRAINER plugin under torchrun."
            )


def teacher_module(kind: type[Contract], teacher: Any, cfg: Any) -> nn.Module:
    """What becomes `distiller.teacher`: a network, or for a method that takes several a ModuleList of them.

    Both kinds take a network, a list or a ModuleList (forks hand lists over); the number has to fit.
    """
    name, wanted = kind.NAME, len(cfg.DISTILLER.TEACHERS)
    listed = list(teacher) if isinstance(teacher, (list, tuple, nn.ModuleList)) else [teacher]
    if not listed or not all(isinstance(network, nn.Module) for network in listed):
        kinds = ", ".join(type(network).__name__ for network in listed) or "an empty list"
        raise ModelRefused(f"{name} got {kinds} for teachers; expected at least one network. Hand over some.")
    if len({id(unwrapped(network)) for network in listed}) < len(listed):
        raise ModelRefused(
            f"{name} got the same network object twice among {len(listed)} teachers; expected different ones. Copy it."
        )
    if kind.TEACHERS == SEVERAL:
        if wanted not in (0, len(listed)):
            raise ModelRefused(
                f"DISTILLER.TEACHERS has {wanted} entries, but {name} was handed {len(listed)} networks; expected as "
                "many. A host's own script builds one teacher: run `python -m atsc_plugin train`, or hand over a list."
            )
        return nn.ModuleList(listed)
    if len(listed) > 1:
        instead = f" or DISTILLER.TYPE {kind.MULTI}" if kind.MULTI else ""
        raise ModelRefused(f"{name} learns from one teacher and got {len(listed)}. Hand over one{instead}.")
    return listed[0]
