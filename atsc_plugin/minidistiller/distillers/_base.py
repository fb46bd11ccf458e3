"""What a distiller is to a trainer: a module that holds the student and, in training mode, returns its losses.

Training: distiller(image=..., target=..., epoch=..., ...) -> (logits, {name: loss}); forward_train takes **kwargs so
that a trainer may pass more than a method needs. Evaluation: distiller(image=...) -> logits.
Vanilla is the one without a teacher (DISTILLER.TYPE "NONE").
"""

import torch.nn as nn
import torch.nn.functional as F


class StudentTrainer(nn.Module):
    def __init__(self, student):
        super().__init__()
        self.student = student

    def get_learnable_parameters(self):
        """What the optimizer gets. A method with modules of its own adds theirs."""
        return list(self.student.parameters())

    def get_extra_parameters(self):
        """How many parameters the method trains beside the student."""
        return 0

    def forward(self, **kwargs):
        return self.forward_train(**kwargs) if self.training else self.forward_test(kwargs["image"])

    def forward_train(self, **kwargs):
        raise NotImplementedError(f"{type(self).__name__} has to define forward_train(image, target, **kwargs)")

    def forward_test(self, image):
        return self.student(image)[0]


class Distiller(StudentTrainer):
    """A student and a teacher. The teacher stays in eval mode whatever mode the distiller is put in."""

    def __init__(self, student, teacher):
        super().__init__(student)
        self.teacher = teacher

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self


class Vanilla(StudentTrainer):
    """Cross-entropy on the labels alone."""

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        return logits, {"ce": F.cross_entropy(logits, target)}
