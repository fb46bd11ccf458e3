"""AVERKD: plain distillation from several teachers at once, by the mean of their losses or of their logits."""

import torch
import torch.nn.functional as F

from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import image_size
from atsc_plugin.losses import softened_divergence
from atsc_plugin.methods.base import SEVERAL, Key, Method, method
from atsc_plugin.networks.maps import classes_of


def averaged_kd(logits, wanted, temperature, mode):
    """losses: 1/K sum_k T^2 KL(softmax(z_k / T) || softmax(z_s / T)), z_k the entries of `wanted`;

    logits: T^2 KL(softmax(z / T) || softmax(z_s / T)) with z = 1/K sum_k z_k.
    """
    if mode == "logits":
        wanted = [torch.stack(wanted).mean(0)]
    return torch.stack([softened_divergence(logits, each, temperature) for each in wanted]).mean()


class FrozenTeachers(Method):
    """Several frozen teachers, of which only the logits are used. A subclass adds the loss."""

    TEACHERS = SEVERAL

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.teacher.requires_grad_(False)
        self._check_classes(student, cfg)

    def _check_classes(self, student, cfg):
        """Refuse, all together and by name, teachers that know another number of classes than the student."""
        size, titles = image_size(cfg.DATASET), enumerate(self.teacher_titles, 1)
        names = [f"student {cfg.DISTILLER.STUDENT}", *(f"teacher {number} ({title})" for number, title in titles)]
        networks = zip(names, [student, *self.teacher], strict=True)
        (name, expected), *found = [(name, classes_of(network, size, name)) for name, network in networks]
        if wrong := [f"{teacher} has {count}" for teacher, count in found if count != expected]:
            raise ModelRefused(
                f"{name} has {expected} classes, but {', '.join(wrong)}; expected the same. Use teachers of these data."
            )

    @torch.no_grad()
    def teacher_logits(self, image):
        """z_k of every teacher."""
        return [teacher(image)[0] for teacher in self.teacher]


@method("AVERKD", "AverKD")
class AverKD(FrozenTeachers):
    """AVER-MKD as CA-MKD's code has it (github.com/Rorozhl/CA-MKD at c2f39a9, --ensemble_method AVERAGE_LOSS).

    loss = CE_WEIGHT * CE(z_s, y) + KD_WEIGHT * 1/K sum_k T^2 KL(softmax(z_k / T) || softmax(z_s / T)); weights 1 and 1,
    T 4, as in its scripts/run.sh. MODE "logits" is ours: KD from the teachers' mean logits. Not taken over, because
    they are the trainer's and not the method's: Nesterov momentum, and leaving out an epoch's last, smaller batch.
    """

    KEYS = (
        Key(
            "AVERKD.MODE",
            "losses",
            "losses: mean of the K teachers' KD losses, as CA-MKD's code has it; logits: KD from their mean logits "
            "(ours)",
            choices=("losses", "logits"),
        ),
        Key("AVERKD.LOSS.CE_WEIGHT", 1.0, "weight of the student's CE", minimum=0.0, symbol="gamma (-r)"),
        Key("AVERKD.LOSS.KD_WEIGHT", 1.0, "weight of the averaged KD", minimum=0.0, symbol="alpha (-a)"),
        Key("AVERKD.TEMPERATURE", 4.0, "T of that KD", minimum=0.1, symbol="kd_T"),
    )

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.node, self.weights = cfg.AVERKD, cfg.AVERKD.LOSS

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        divergence = averaged_kd(logits, self.teacher_logits(image), self.node.TEMPERATURE, self.node.MODE)
        return logits, {
            "loss_ce": self.weights.CE_WEIGHT * F.cross_entropy(logits, target),
            "loss_kd": self.weights.KD_WEIGHT * divergence,
        }
