"""COTEACH: a teacher that learns from scratch beside the student, and a frozen expert that guides by attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from atsc_plugin.errors import ModelRefused
from atsc_plugin.host import image_size
from atsc_plugin.losses import full
from atsc_plugin.methods.base import Key, method
from atsc_plugin.methods.co_training import CoTrained, fresh_network
from atsc_plugin.networks import named
from atsc_plugin.networks.maps import check_classes, classes_of, evaluating, probe_image
from atsc_plugin.networks.stages import attention_distance, check_stages, stage_facts


def logits_distance(logits, wanted):
    """sum over images and classes of (z_s - z)^2, divided by the number of images"""
    return (logits - wanted).pow(2).sum() / len(logits)


def stem_modules(network, side, name):
    """Paths of the modules whose parameters move the first map in feats: the layers before the first stage."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    with evaluating(network), torch.enable_grad():
        total = network(probe_image(network, side))[1]["feats"][0].sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    paths = {path.rpartition(".")[0] for path, gradient in zip(names, gradients, strict=True) if gradient is not None}
    if "" in paths:
        raise ModelRefused(f"{name} has parameters outside any layer in its stem; COTEACH.SHARE_STEM needs layers.")
    return sorted(paths)


def share_stem(student, scratch, side, names):
    """Put the student's stem into the scratch teacher; stems of other layers or shapes are refused by name."""
    stems = [
        {
            f"{path}.{key}": tuple(tensor.shape)
            for path in stem_modules(network, side, name)
            for key, tensor in network.get_submodule(path).state_dict().items()
        }
        for network, name in zip((student, scratch), names, strict=True)
    ]
    if stems[0] != stems[1]:
        layers = [
            "{} has {}".format(name, ", ".join(f"{key} {list(shape)}" for key, shape in stem.items() if shape))
            for name, stem in zip(names, stems, strict=True)
        ]
        raise ModelRefused(
            f"COTEACH.SHARE_STEM True needs equal layers before the first stage; {'; '.join(layers)}. Choose another "
            "COTEACH.SCRATCH_TEACHER, or COTEACH.SHARE_STEM False."
        )
    for path in stem_modules(student, side, names[0]):
        parent, _, leaf = path.rpartition(".")
        setattr(scratch.get_submodule(parent), leaf, student.get_submodule(path))


def stage_pairs(wanted, student, expert, student_name, expert_name):
    """[(expert's index, student's index)] of the maps to compare: COTEACH.STAGES, or all stages in order."""
    if wanted:
        check_stages([pair[0] for pair in wanted], expert, "COTEACH.STAGES", expert_name)
        check_stages([pair[1] for pair in wanted], student, "COTEACH.STAGES", student_name)
        return [tuple(pair) for pair in wanted]
    ours, theirs = student.all_but_the_stem(), expert.all_but_the_stem()
    if len(ours) != len(theirs):
        raise ModelRefused(
            f"{student_name} has {len(ours)} stages, {expert_name} {len(theirs)}: they do not pair up. Name the pairs "
            "[expert, student] with COTEACH.STAGES, e.g. [[1, 1], [2, 2], [3, 3]]."
        )
    return list(zip(theirs, ours, strict=True))


@method("COTEACH")
class COTEACH(CoTrained):
    """Highlight Every Step: Knowledge Distillation via Collaborative Teaching (Zhao et al., 2019, arXiv 1907.09643).

    loss = CE(z_c, y) + CE(z_s, y) + LOGITS * ||sg(z_c) - z_s||^2 / batch + ATTENTION * sum over stages of
    mse(attention(expert), attention(student)); z_c are the momentary logits of the scratch teacher, which nothing but
    its own CE moves. The expert (DISTILLER.TEACHER) is frozen and in eval mode. Prediction: the student's own.
    Not Curriculum Temperature KD, whose acronym is also CTKD.

    Deviations: the released code applies the attention to the scratch teacher; the paper's words apply it to the
    student, and so do we. The two weights are inferred from the code it builds on. Attention is mdistiller's AT.
    """

    KEYS = (
        Key("COTEACH.SCRATCH_TEACHER", "", "network that learns beside the student; empty: DISTILLER.TEACHER's"),
        Key(
            "COTEACH.LOSS.LOGITS_WEIGHT",
            0.03,
            "weight of the squared distance to the scratch teacher's logits",
            minimum=0.0,
            symbol="gamma",
        ),
        Key(
            "COTEACH.LOSS.ATTENTION_WEIGHT",
            1000.0,
            "weight of the attention transfer from the expert",
            minimum=0.0,
            symbol="beta",
        ),
        Key(
            "COTEACH.STAGES",
            [],
            "pairs [expert, student] of indices into feats whose attention is compared, e.g. [[1, 1], [2, 3]]; empty: "
            "all but the stems, in order",
        ),
        Key(
            "COTEACH.SHARE_STEM",
            False,
            "the scratch teacher and the student share the layers before their first stage, which must be equal in "
            "shape",
        ),
    )

    @classmethod
    def problems(cls, cfg):
        problems, stages, name = [], cfg.COTEACH.STAGES, cfg.COTEACH.SCRATCH_TEACHER
        if not all(_is_pair(pair) for pair in stages):
            problems.append(
                f"COTEACH.STAGES: got {stages}, expected pairs [expert, student] of indices, e.g. [[1, 1], [2, 3]], or "
                "[]."
            )
        return problems + (named.problems("COTEACH.SCRATCH_TEACHER", cfg.DATASET.TYPE, name) if name else [])

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        teacher, side = self.teacher, image_size(cfg.DATASET)
        self.node = cfg.COTEACH
        scratch = self.node.SCRATCH_TEACHER or cfg.DISTILLER.TEACHER
        names = f"student {cfg.DISTILLER.STUDENT}", f"expert {cfg.DISTILLER.TEACHER}"
        facts = stage_facts(student, side, names[0]), stage_facts(teacher, side, names[1])
        check_classes(*(each.classes for each in facts), *names)
        self.stages = stage_pairs(self.node.STAGES, *facts, *names)
        self.scratch = fresh_network(cfg, scratch, facts[0].classes, "SCRATCH_TEACHER")
        title = f"scratch teacher {scratch}"
        check_classes(facts[0].classes, classes_of(self.scratch, side, title), names[0], title)
        if self.node.SHARE_STEM:
            share_stem(student, self.scratch, side, (names[0], title))
        teacher.requires_grad_(False)
        self.learn_beside({"scratch": scratch})

    def forward_train(self, image, target, **kwargs):
        logits, feats = self.student(image)
        scratch_logits = full(self.scratch(image)[0])
        with torch.no_grad():
            expert_feats = self.teacher(image)[1]["feats"]
        guidance = sum(attention_distance(feats["feats"][s], expert_feats[e]) for e, s in self.stages)
        self.count(target, [scratch_logits])
        weights = self.node.LOSS
        return logits, {
            "loss_ce": F.cross_entropy(logits, target),
            "loss_scratch_ce": F.cross_entropy(scratch_logits, target),
            "loss_logits": weights.LOGITS_WEIGHT * logits_distance(logits, scratch_logits.detach()),
            "loss_attention": weights.ATTENTION_WEIGHT * guidance,
        }


def _is_pair(pair) -> bool:
    return isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(i) is int and i >= 0 for i in pair)
