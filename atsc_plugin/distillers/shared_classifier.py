"""What SimKD and ATSC have in common: a student that predicts through the teacher's classifier behind a projector."""

from atsc_plugin.distillers.deployed import DeployedStudent, Head, modules_of
from atsc_plugin.distillers.parts import (
    align,
    classifier_of,
    projector,
    student_map,
    teacher_map,
    unused_parameters,
)
from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import Distiller, image_size


class SharedClassifier(Distiller):
    """Both maps, the projector between them, prediction = C_t(pool(P(F_s))). A subclass adds the loss."""

    def __init__(self, student, teacher, cfg, factor, factor_key):
        super().__init__(student, teacher)
        self.image_size = image_size(cfg.DATASET)
        names = f"teacher {cfg.DISTILLER.TEACHER}", f"student {cfg.DISTILLER.STUDENT}"
        self.teacher_facts = teacher_map(teacher, self.image_size, names[0])
        self.student_facts = student_map(student, self.image_size, names[1])
        self.map_size = min(self.teacher_facts.size, self.student_facts.size)
        if self.student_facts.classes != self.teacher_facts.classes:
            raise ModelRefused(
                f"{names[1]} has {self.student_facts.classes} classes, {names[0]} {self.teacher_facts.classes}; "
                "expected the same, since the student predicts through the teacher's classifier. Use a teacher of "
                "these data."
            )
        self.projector = projector(self.student_facts.channels, self.teacher_facts.channels, factor, factor_key)
        self.unused = unused_parameters(student, self.student_facts.source, self.image_size)

    @property
    def classifier(self):
        """The teacher's classifier, which is the student's as well."""
        return classifier_of(self.teacher)

    def freeze_unused(self):
        """The student's own head has no part in the prediction: no gradient, no weight decay."""
        for name in self.unused:
            self.student.get_parameter(name).requires_grad_(False)

    def student_parameters(self):
        """What of the student and the projector can move the prediction."""
        used = [p for name, p in self.student.named_parameters() if name not in self.unused]
        return used + list(self.projector.parameters())

    def get_extra_parameters(self):
        return sum(p.numel() for p in self.projector.parameters())

    def projected(self, image):
        """(the student's own logits, P(F_s)) of one forward pass."""
        logits, feature_map = self.student_facts.source(self.student, image)
        return logits, self.projector(align(feature_map, self.map_size))

    def forward_test(self, image):
        return self.deployed()(image)

    def deployed(self):
        """The student as it leaves: it shares its modules with this distiller."""
        head = Head(self.map_size, self.projector, self.classifier)
        return DeployedStudent(self.student, self.student_facts.source, [head])

    def unused_modules(self):
        """The student's modules behind the projected map, absent from what is stored for deployment."""
        return modules_of(self.unused)
