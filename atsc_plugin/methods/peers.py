"""PEERS: several students learn from one teacher and from each other; one of them is deployed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from atsc_plugin.contract import OUR_TRAINER, EpochReport
from atsc_plugin.engine.evaluate import evaluate
from atsc_plugin.losses import full, softened_divergence
from atsc_plugin.methods.base import Key, method
from atsc_plugin.methods.co_training import LearningTeacher, fresh_network, start_keys
from atsc_plugin.methods.monitor import top1_of
from atsc_plugin.networks import named
from atsc_plugin.networks.deployed import DeployedStudent, ensemble_of
from atsc_plugin.networks.maps import evaluating


def peer_divergence(logits, number, temperature):
    """1/(K-1) sum_{l != k} T^2 KL(sg(p_l) || p_k) for student k, `number` from 0; None for K = 1"""
    others = [each.detach() for other, each in enumerate(logits) if other != number]
    if not others:
        return None
    return torch.stack([softened_divergence(logits[number], each, temperature) for each in others]).mean()


def students_of(cfg):
    """The students' architectures, DISTILLER.STUDENT first; two of it where none are named."""
    return list(cfg.PEERS.STUDENTS) or [cfg.DISTILLER.STUDENT] * 2


@method("PEERS")
class Peers(LearningTeacher):
    """OUR definition of Augmenting KD with Peer-to-Peer Mutual Learning (Niyaz and Bathula, 2021, arXiv 2110.11023).

    student k: CE_WEIGHT * CE(z_k, y) + KD_WEIGHT * T^2 KL(sg(p_t) || p_k)
               + PEER_WEIGHT * 1/(K-1) sum_{l != k} T^2 KL(sg(p_l) || p_k)
    teacher, unless frozen: CE_WEIGHT * CE(z_t, y) + TEACHER.KD_WEIGHT * 1/K sum_k T^2 KL(sg(p_k) || p_t)

    From the paper: one teacher, several students, online; each learns from the teacher and its peers. Ours, since we
    could not read them there: all weights, T, what the teacher learns from. The students differ in their first weights.
    Controls: PEER_WEIGHT 0 is KD of each student alone (the gain of an ensemble), KD_WEIGHT 0 is DML without the
    teacher; what a student learns from its peers is the gradient of KD to their mean probability.
    One student is deployed; the paper judges the ensemble, which the log has as `ensemble_top1` (mean of the logits of
    all students) and which would cost K networks. The best of K on the test images would be selection: DEPLOY best
    asks for validation images; the log's top-1 of an epoch is that of the student chosen after it.
    """

    NODE = "PEERS"
    KEYS = (
        Key(
            "PEERS.STUDENTS",
            [],
            "all students, DISTILLER.STUDENT first, e.g. [resnet8, resnet8, resnet14]; empty: two of DISTILLER.STUDENT",
        ),
        Key("PEERS.LOSS.CE_WEIGHT", 1.0, "weight of each network's CE", minimum=0.0),
        Key("PEERS.LOSS.KD_WEIGHT", 1.0, "weight of what each student learns from the teacher", minimum=0.0),
        Key("PEERS.LOSS.PEER_WEIGHT", 1.0, "weight of what each student learns from its peers", minimum=0.0),
        Key("PEERS.TEMPERATURE", 4.0, "T of all divergences", minimum=0.1, symbol="T"),
        Key(
            "PEERS.TEACHER.KD_WEIGHT",
            0.0,
            "weight of what the teacher learns from the students; 0: nothing",
            minimum=0.0,
        ),
        *start_keys("PEERS", ("scratch", "pretrained", "frozen"), "; frozen: a trained one, which does not learn"),
        Key(
            "PEERS.DEPLOY",
            "first",
            "the student that is deployed: first, or best on the validation images of the last epoch",
            choices=("first", "best"),
        ),
    )

    @classmethod
    def problems(cls, cfg):
        problems, names, node = super().problems(cfg), students_of(cfg), cfg.PEERS
        problems += [text for name in names[1:] for text in named.problems("PEERS.STUDENTS", cfg.DATASET.TYPE, name)]
        if names[0] != cfg.DISTILLER.STUDENT:
            problems.append(
                f"PEERS.STUDENTS begins with {names[0]}; expected DISTILLER.STUDENT, {cfg.DISTILLER.STUDENT}. Put it "
                "first."
            )
        if node.TEACHER.INIT == "frozen":
            moot = {"KD_WEIGHT": node.TEACHER.KD_WEIGHT != 0, "LR_SCALE": node.TEACHER.LR_SCALE != 1}
            problems += [
                f"PEERS.TEACHER.{key} has no effect on a teacher that does not learn (INIT frozen). Leave it out."
                for key, given in moot.items()
                if given
            ]
        if node.DEPLOY == "best" and len(set(names)) > 1:
            problems.append(
                f"PEERS.DEPLOY best chooses among equal networks, and PEERS.STUDENTS is {names}. Use first."
            )
        if node.DEPLOY == "best" and cfg.EXPERIMENT.SELECT_ON != "val":
            problems.append(
                "PEERS.DEPLOY best chooses on validation images, and EXPERIMENT.SELECT_ON is "
                f"{cfg.EXPERIMENT.SELECT_ON}. Set SELECT_ON val, and DATASET.VAL_SPLIT where data have none."
            )
        if node.DEPLOY == "best" and cfg.SOLVER.EMA:
            problems.append(
                f"PEERS.DEPLOY best may deploy another student in every epoch, and SOLVER.EMA {cfg.SOLVER.EMA:g} "
                "averages one. Use PEERS.DEPLOY first, or SOLVER.EMA 0."
            )
        return problems

    @classmethod
    def needs(cls, cfg):
        needs = super().needs(cfg)
        if cfg.PEERS.DEPLOY == "best":
            needs[OUR_TRAINER] = "PEERS.DEPLOY best measures the students after every epoch"
        return needs

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        names = students_of(cfg)
        self.peers = nn.ModuleDict(
            {
                str(number): fresh_network(cfg, name, self.classes, "PEER", number, kin="STUDENT")
                for number, name in enumerate(names[1:], 2)
            }
        )
        self.register_buffer("chosen", torch.zeros((), dtype=torch.long))  # the deployed student, from 0
        peers = {f"peers.{number}": name for number, name in enumerate(names[1:], 2)}
        self.frozen = self.node.TEACHER.INIT == "frozen"
        self.teacher.requires_grad_(not self.frozen)
        self.learn_beside(peers if self.frozen else {"teacher": cfg.DISTILLER.TEACHER, **peers})

    @property
    def students(self) -> list[nn.Module]:
        return [self.student, *self.peers.values()]

    def student_side(self):
        return [p for student in self.students for p in student.parameters()]

    def other_side(self):
        return [] if self.frozen else list(self.teacher.parameters())

    def forward_train(self, image, target, **kwargs):
        with torch.set_grad_enabled(not self.frozen):
            wanted = full(self.teacher(image)[0])
        logits = [full(student(image)[0]) for student in self.students]
        self.count(target, logits[1:] if self.frozen else [wanted, *logits[1:]])
        weights, temperature, losses = self.node.LOSS, self.node.TEMPERATURE, {}
        for number, each in enumerate(logits):
            losses[f"loss_ce_{number + 1}"] = weights.CE_WEIGHT * F.cross_entropy(each, target)
            divergence = softened_divergence(each, wanted.detach(), temperature)
            losses[f"loss_kd_{number + 1}"] = weights.KD_WEIGHT * divergence
            if (peers := peer_divergence(logits, number, temperature)) is not None:
                losses[f"loss_peer_{number + 1}"] = weights.PEER_WEIGHT * peers
        if not self.frozen:
            losses["loss_teacher_ce"] = weights.CE_WEIGHT * F.cross_entropy(wanted, target)
            each = [softened_divergence(wanted, z.detach(), temperature) for z in logits]
            losses["loss_teacher_kd"] = self.node.TEACHER.KD_WEIGHT * torch.stack(each).mean()
        return logits[0], losses

    def after_epoch(self, epoch, loader):
        """The figures of every network and of the ensemble; the choice of the student that is deployed."""
        figures = super().after_epoch(epoch, loader).figures
        tops = [top1_of(self.student, loader, "student"), *(figures[f"peers_{number}_top1"] for number in self.peers)]
        figures["students_mean_top1"] = sum(tops) / len(tops)
        with evaluating(self):
            figures["ensemble_top1"] = evaluate(self.ensemble, loader, self.chosen.device, "ensemble")["top1"]
        if self.node.DEPLOY == "best":
            self.chosen.fill_(tops.index(max(tops)))
            figures["chosen_student"] = int(self.chosen) + 1
            figures["top1"] = max(tops)  # in place of that of the student chosen before
        return EpochReport(figures)

    def ensemble(self, image):
        """The mean of all students' logits: measured, not deployed."""
        return ensemble_of([student(image)[0] for student in self.students], "logits")

    def forward_test(self, image):
        return self.students[int(self.chosen)](image)[0]

    def deployed(self):
        return DeployedStudent(self.students[int(self.chosen)])
