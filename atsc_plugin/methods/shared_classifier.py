"""What SimKD and ATSC have in common: a student that predicts through a teacher's classifier behind a projector.

One teacher or several: of each there is a projector, and together they make an ensemble. The modules of a single
teacher are called teacher and projector; those of several stand in lists under the same names.
"""

from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import Distiller, image_size
from atsc_plugin.methods.teacher_list import names_of, networks_of, teacher_module
from atsc_plugin.networks import maps as parts
from atsc_plugin.networks.deployed import DeployedStudent, Head, modules_of

SHARED = ", since the student predicts through the teacher's classifier"


@contextmanager
def _kept(refusals):
    """A refusal goes into the list instead of ending the checks behind it."""
    try:
        yield
    except ModelRefused as refusal:
        refusals.append(str(refusal))


@dataclass(frozen=True)
class Branch:
    """A teacher and one projector towards its map; it is made anew for each step out of the distiller's modules."""

    number: int  # of the teacher, from 0
    teacher: nn.Module
    facts: parts.MapFacts
    map_size: int
    projector: nn.Module
    classifier: nn.Module

    def project(self, feature_map):
        """P(F_s), the map of the student pooled to the common size first."""
        return self.projector(parts.align(feature_map, self.map_size))

    def wanted(self, teacher_map):
        """F_t pooled to the common size."""
        return parts.align(teacher_map, self.map_size)


class SharedClassifier(Distiller):
    """All maps, the projectors between them, prediction = C_t(pool(P(F_s))) or its ensemble. A subclass adds the loss.

    `settings` is the method's config node, `name` what it is called there.
    """

    several = False  # a subclass that takes a list of teachers says so

    def __init__(self, student, teacher, cfg, settings, name, projectors=1):
        super().__init__(student, teacher_module(teacher, self.several, cfg), cfg)
        self.image_size = image_size(cfg.DATASET)
        self.ensemble, self.projectors_each = settings.ENSEMBLE, projectors
        self.student_facts = parts.student_map(student, self.image_size, f"student {cfg.DISTILLER.STUDENT}")
        factor = settings.PROJECTOR.FACTOR, f"{name}.PROJECTOR.FACTOR"
        self.maps = self._teacher_maps(cfg, *factor)
        made = [
            parts.projector(self.student_facts.channels, facts.channels, *factor)
            for facts in self.maps
            for _ in range(projectors)
        ]
        self.projector = nn.ModuleList(made) if self.several else made[0]
        self.unused = parts.unused_parameters(student, self.student_facts.source, self.image_size)

    def _teacher_maps(self, cfg, factor, key):
        """MapFacts of every teacher; everything that cannot serve is refused together, by name."""
        maps, refusals = [], []
        for network, name in zip(networks_of(self.teacher), self.titles(cfg), strict=True):
            with _kept(refusals):
                facts = parts.teacher_map(network, self.image_size, name)
                maps.append(facts)
                names = f"student {cfg.DISTILLER.STUDENT}", name
                with _kept(refusals):
                    parts.check_classes(self.student_facts, facts, *names, because=SHARED)
                with _kept(refusals):
                    parts.check_factor(facts.channels, factor, key)
                if self.several:
                    check_sizes(self.student_facts, facts, *names)
        if refusals:
            raise ModelRefused("\n".join(dict.fromkeys(refusals)))
        return maps

    def titles(self, cfg):
        """What each teacher is called in messages."""
        names = names_of(networks_of(self.teacher), cfg)
        return [f"teacher {n} ({name})" if names[1:] else f"teacher {name}" for n, name in enumerate(names, 1)]

    # ---- one branch for each projector ----

    def branches(self):
        """Every projector with its teacher, in the order of the teachers."""
        teachers = networks_of(self.teacher)
        projectors = list(self.projector) if self.several else [self.projector]
        numbers = [number for number in range(len(teachers)) for _ in range(self.projectors_each)]
        return [
            Branch(n, teachers[n], self.maps[n], self._map_size(n), projector, self.classifier_behind(teachers[n]))
            for n, projector in zip(numbers, projectors, strict=True)
        ]

    def _map_size(self, number):
        return min(self.maps[number].size, self.student_facts.size)

    def classifier_behind(self, teacher):
        """What predicts behind a teacher's projector: the teacher's classifier, which is the student's as well."""
        return parts.classifier_of(teacher)

    @property
    def classifier(self):
        """The classifier of the only teacher, or the first one's."""
        return self.classifier_behind(networks_of(self.teacher)[0])

    # ---- parameters ----

    def freeze_unused(self):
        """The student's own head has no part in the prediction: no gradient, no weight decay."""
        for name in self.unused:
            self.student.get_parameter(name).requires_grad_(False)

    def student_parameters(self):
        """What of the student and the projectors can move the prediction."""
        used = [p for name, p in self.student.named_parameters() if name not in self.unused]
        return used + list(self.projector.parameters())

    def get_extra_parameters(self):
        return sum(p.numel() for p in self.projector.parameters())

    # ---- prediction ----

    def student_map(self, image):
        """(the student's own logits, F_s) of one forward pass."""
        return self.student_facts.source(self.student, image)

    def projected(self, image):
        """(the student's own logits, P(F_s)) of one forward pass with the only projector."""
        logits, feature_map = self.student_map(image)
        return logits, self.branches()[0].project(feature_map)

    def forward_test(self, image):
        return self.deployed()(image)

    def deployed(self):
        """The student as it leaves: it shares its modules with this distiller."""
        heads = [Head(branch.map_size, branch.projector, branch.classifier) for branch in self.branches()]
        return DeployedStudent(self.student, self.student_facts.source, heads, self.ensemble)

    def unused_modules(self):
        """The student's modules behind the projected map, absent from what is stored for deployment."""
        return modules_of(self.unused)


def check_sizes(student, teacher, student_name, teacher_name):
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
