"""DIH: the student learns from the teacher and from linear classifiers on each of the teacher's stages."""

import torch
import torch.nn.functional as F

from atsc_plugin.errors import ConfigError, PluginError
from atsc_plugin.host import Distiller, image_size
from atsc_plugin.methods.atsc import softened_divergence
from atsc_plugin.methods.dih_heads import Heads, ensure_trained, find_cached, load_heads
from atsc_plugin.methods.sister_checks import dih_problems
from atsc_plugin.networks.maps import check_classes
from atsc_plugin.networks.stages import check_stages, stage_facts


class DIH(Distiller):
    """Distilling Knowledge via Intermediate Classifiers (Asadian, Salehi-Abari, 2021, arXiv 2103.00497).

    loss = sum over the k heads and the teacher's own logits z of ALPHA * tau^2 KL(softmax(z / tau) || softmax(z_s /
    tau)) + (1 - ALPHA) * CE(z_s, y): a plain sum, so CE counts k + 1 times. Prediction: the student's own logits. Head
    k is linear on the flattened map of the teacher's stage k; the heads are trained first, jointly, on the sum of
    their CE, with the teacher frozen and in eval mode.

    Deviations: above 64 pixels each stage is average-pooled to 8 x 8 first; the heads' optimizer is ours.
    """

    def __init__(self, student, teacher, cfg):
        if problems := dih_problems(cfg):
            raise ConfigError(problems)
        super().__init__(student, teacher, cfg)
        self.cfg, self.alpha, self.temperature = cfg, cfg.DIH.ALPHA, cfg.DIH.TEMPERATURE
        side = image_size(cfg.DATASET)
        names = f"student {cfg.DISTILLER.STUDENT}", f"teacher {cfg.DISTILLER.TEACHER}"
        facts = stage_facts(teacher, side, names[1])
        check_classes(stage_facts(student, side, names[0]), facts, *names)
        stages = cfg.DIH.STAGES or facts.all_but_the_stem()
        check_stages(stages, facts, "DIH.STAGES", names[1])
        self.heads = Heads(facts.shapes, stages, facts.classes, side)
        self.heads_from = None
        teacher.requires_grad_(False)

    # ---- before the student ----

    def prepare(self, data, data_of):
        """Heads from the cache, or trained into it; our commands call this once the teacher is filled."""
        self.heads_from, facts = ensure_trained(self.cfg, self.teacher, self.heads, data, data_of)
        split = "val" if facts["val_top1"] else "train"
        told = " ".join(f"{top1:.1f}" for top1 in facts[f"{split}_top1"])
        print(f"heads of {self.cfg.DISTILLER.TEACHER} from {self.heads_from} ({split} top-1 {told})", flush=True)

    def preparation(self):
        """(label, text) for the plan of a run."""
        size = sum(p.numel() for p in self.heads.parameters())
        where = f"from {self.heads_from}" if self.heads_from else f"from {self.cfg.TEACHER.CACHE}, else trained first"
        return "heads", f"{len(self.heads.layers)}, {size:,} parameters, {where}"

    def train(self, mode=True):
        super().train(mode)
        if mode and not self.heads.trained.item():
            self._take_from_cache()
        return self

    def _take_from_cache(self):
        """Under a host's own script nobody hands over data: heads that were trained before are used, or asked for."""
        path = find_cached(self.cfg, self.teacher, self.heads)
        if path is None:
            raise PluginError(
                f"DIH has no heads for this {self.cfg.DISTILLER.TEACHER}: looked in {self.cfg.TEACHER.CACHE} "
                "(TEACHER.CACHE) for a file with its weights' hash and this DIH.HEADS recipe. Train them with `python "
                "-m atsc_plugin heads --cfg FILE` and the same keys, then start again."
            )
        load_heads(self.heads, path)
        self.heads_from = path
        print(f"heads of {self.cfg.DISTILLER.TEACHER} from {path}", flush=True)

    # ---- the step ----

    def forward_train(self, image, target, **kwargs):
        logits, _ = self.student(image)
        with torch.no_grad():
            teacher_logits, feats = self.teacher(image)
            head_logits = self.heads(feats["feats"])
        branches = 1 + len(head_logits)
        from_heads = sum(softened_divergence(logits, wanted, self.temperature) for wanted in head_logits)
        return logits, {
            "loss_ce": branches * (1 - self.alpha) * F.cross_entropy(logits, target),
            "loss_kd": self.alpha * softened_divergence(logits, teacher_logits, self.temperature),
            "loss_heads": self.alpha * from_heads,
        }
