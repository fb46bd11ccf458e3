"""The base of SimKD and ATSC: a student that predicts through a teacher's classifier, behind a projector.

One teacher or several: each has a projector, and together they make an ensemble. The modules of a single teacher are
called teacher and projector; those of several stand in lists under the same names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import image_size
from atsc_plugin.losses import align
from atsc_plugin.methods.base import SEVERAL, Key, Method, networks_of
from atsc_plugin.networks import maps
from atsc_plugin.networks.adapter import Adapted
from atsc_plugin.networks.deployed import DeployedStudent, Head, modules_of
from atsc_plugin.networks.projector import KINDS, TYPES, check_factor, kind_of
from atsc_plugin.networks.tail import Tail

SHARED = ", since the student predicts through the teacher's classifier"


def projector_keys(node: str) -> tuple[Key, Key]:
    """The projector's keys, of the node of every method that has one."""
    return (
        Key(f"{node}.PROJECTOR.FACTOR", 2, "f: the projector's inner width is C_t / f", minimum=1, symbol="-f"),
        Key(
            f"{node}.PROJECTOR.TYPE",
            "auto",
            "bottleneck: SimKD's, on maps; mlp: on pooled vectors; auto: mlp where the teacher's classifier is fed by "
            "a vector that is no map's mean (CLS token, attention pooling)",
            choices=TYPES,
        ),
    )


@contextmanager
def _collected(refusals: list[str]) -> Iterator[None]:
    """A refusal goes into the list, so that the checks behind it run too."""
    try:
        yield
    except ModelRefused as refusal:
        refusals.append(str(refusal))


@dataclass(frozen=True)
class Branch:
    """One projector, with the teacher that it leads to. Teachers are numbered from 0."""

    number: int
    read: maps.MapReader  # image -> (the teacher's logits, F_t)
    map_size: int
    projector: nn.Module
    classifier: nn.Module  # the teacher's tail

    def project(self, feature_map):
        """P(F_s), the student's map pooled to the common size first."""
        return self.projector(align(feature_map, self.map_size))

    def target(self, teacher_map):
        """F_t pooled to the common size."""
        return align(teacher_map, self.map_size)


class SharedClassifier(Method):
    """Maps, projectors, and the prediction C_t(pool(P(F_s))) or its ensemble. A subclass adds the loss.

    C_t is the teacher's tail: all that it has between the vector that feeds it and the logits. Where that vector is no
    map's mean (CLS token, attention pooling), F_t is the vector, a map of one pixel, and P an MLP. `NODE` is the
    configuration node with ENSEMBLE and PROJECTOR. With `own_classifier` the student has a linear classifier of its own
    behind the projector.
    """

    NODE = "SIMKD"

    @classmethod
    def nodes(cls):
        return (cls.NODE,)

    def __init__(self, student, teacher, cfg, projectors: int = 1, own_classifier: bool = False):
        super().__init__(student, teacher, cfg)
        node = cfg[self.NODE]
        self.image_size, self.ensemble = image_size(cfg.DATASET), node.ENSEMBLE
        self.student_facts = maps.student_map(student, self.image_size, f"student {cfg.DISTILLER.STUDENT}")
        factor = node.PROJECTOR.FACTOR
        self.kinds: list[str] = []
        self.maps = self._teacher_maps(cfg, factor, f"{self.NODE}.PROJECTOR.FACTOR", "" if own_classifier else SHARED)
        if set(self.kinds) == {"mlp"}:
            self.student_facts = maps.student_map(student, self.image_size, cfg.DISTILLER.STUDENT, vector=True)
        numbers = [number for number in range(len(self.maps)) for _ in range(projectors)]
        channels = [facts.channels for facts in self.maps]
        made = [
            KINDS[self.kinds[number]](self.student_facts.channels, channels[number] // factor, channels[number])
            for number in numbers
        ]
        self.projector = nn.ModuleList(made) if self.TEACHERS == SEVERAL else made[0]
        self.head = nn.Linear(self.maps[0].channels, self.student_facts.classes) if own_classifier else None
        self.unused = maps.unused_parameters(student, self.student_facts.source, self.image_size)
        self.read_student = maps.MapReader(student, self.student_facts.source)
        self.readers, self.tails = self.readers_and_tails(networks_of(self.teacher))
        self.branches = [self._branch(number, each) for number, each in zip(numbers, made, strict=True)]

    def _branch(self, number: int, projector: nn.Module) -> Branch:
        size = 1 if self.kinds[number] == "mlp" else min(self.maps[number].size, self.student_facts.size)
        classifier = self.tails[number] if self.head is None else self.head
        return Branch(number, self.readers[number], size, projector, classifier)

    def readers_and_tails(self, networks: list[nn.Module]) -> tuple[list[maps.MapReader], list[nn.Module]]:
        """How F_t is read off networks of the teachers' architectures, and C_t in each."""
        readers, tails = [], []
        for network, facts, title in zip(networks, self.maps, self.teacher_titles, strict=True):
            readers.append(maps.MapReader(network, facts.source))
            tail = facts.tail_of(network)
            if isinstance(tail, Tail) and not tail.origin:
                named_here = {"network": title, "image_size": self.image_size}
                tail.origin = network.origin if isinstance(network, Adapted) and network.origin else named_here
            tails.append(tail)
        return readers, tails

    def _teacher_maps(self, cfg, factor: int, key: str, because: str) -> list[maps.MapFacts]:
        """MapFacts of every teacher; everything that cannot serve is refused together, by name."""
        found, refusals = [], []
        for network, name in zip(networks_of(self.teacher), self.titles(), strict=True):
            with _collected(refusals):
                facts = maps.teacher_map(network, self.image_size, name)
                found.append(facts)
                names = f"student {cfg.DISTILLER.STUDENT}", name
                with _collected(refusals):
                    wanted, key_of_type = cfg[self.NODE].PROJECTOR.TYPE, f"{self.NODE}.PROJECTOR.TYPE"
                    self.kinds.append(kind_of(wanted, facts.vector, facts.signed, key_of_type, name))
                with _collected(refusals):
                    maps.check_classes(self.student_facts.classes, facts.classes, *names, because)
                with _collected(refusals):
                    check_factor(facts.channels, factor, key)
                if self.TEACHERS == SEVERAL:
                    check_sizes(self.student_facts, facts, *names)
        if refusals:
            raise ModelRefused("\n".join(dict.fromkeys(refusals)))
        return found

    def titles(self) -> list[str]:
        """What each teacher is called in messages."""
        names = self.teacher_titles
        return [f"teacher {n} ({name})" if names[1:] else f"teacher {name}" for n, name in enumerate(names, 1)]

    # ---- parameters ----

    def freeze_unused(self) -> None:
        """The student's own head has no part in the prediction: no gradient, no weight decay."""
        for name in self.unused:
            self.student.get_parameter(name).requires_grad_(False)

    def student_parameters(self) -> list[nn.Parameter]:
        """What of the student and the projectors can move the prediction."""
        used = [p for name, p in self.student.named_parameters() if name not in self.unused]
        return used + list(self.projector.parameters())

    def get_extra_parameters(self) -> int:
        """mdistiller's own: how many parameters the method adds."""
        added = [self.projector] if self.head is None else [self.projector, self.head]
        return sum(p.numel() for module in added for p in module.parameters())

    def compile_networks(self, **options) -> list[str]:
        """Compile the map readers and the projectors."""
        compiled = []
        for name, reader in [("student", self.read_student), *self.named_readers()]:
            if reader.compile(**options):
                compiled.append(name)
            else:
                print(f"not compiled: the {name}, whose map is read at a module inside it", flush=True)
        for branch in self.branches:
            branch.projector.compile(**options)
        return [*compiled, "projector"]

    def named_readers(self) -> list[tuple[str, maps.MapReader]]:
        """The readers of the networks beside the student, with their names."""
        return [(network.name, reader) for network, reader in zip(self.networks(), self.readers, strict=True)]

    # ---- prediction ----

    def forward_test(self, image):
        return self.deployed()(image)

    def deployed(self) -> DeployedStudent:
        """The student as it leaves: it shares its modules with this distiller."""
        heads = [Head(branch.map_size, branch.projector, branch.classifier) for branch in self.branches]
        return DeployedStudent(
            self.student, self.student_facts.source, heads, self.ensemble, unused=modules_of(self.unused, self.student)
        )


def term_name(name: str, number: int, count: int) -> str:
    """A loss term of one branch: plain when there is one, loss_feat_1, loss_feat_2, ... for several."""
    return name if count == 1 else f"{name}_{number + 1}"


def check_sizes(student: maps.MapFacts, teacher: maps.MapFacts, student_name: str, teacher_name: str) -> None:
    """Refuse maps of which the larger cannot be averaged in equal windows.

    For several teachers only: they would average the student's map in different uneven ways. A single uneven pair
    (MobileNetV2's 9 pixels on ResNet18's 8 at 64 pixels) is averaged in overlapping windows, as SimKD's code does.
    """
    large, small = max(student.size, teacher.size), min(student.size, teacher.size)
    if large % small:
        raise ModelRefused(
            f"The map of {student_name} is {student.size} pixels wide, that of {teacher_name} {teacher.size}: {large} "
            f"is no multiple of {small}, so the larger cannot be averaged to the smaller one's size. Use another pair."
        )
