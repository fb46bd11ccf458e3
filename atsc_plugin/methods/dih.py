"""DIH: the student learns from the teacher and from linear classifiers on each of the teacher's stages.

The heads are trained once for a teacher, before the student, and cached beside it in one safetensors file, under the
content of the teacher (a hash of its weights), the recipe and the identity of the data. The test split is never read.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn

from atsc_plugin.engine.batches import inputs_of, progress, set_epoch
from atsc_plugin.engine.checkpoint import digest_of
from atsc_plugin.engine.evaluate import correct
from atsc_plugin.errors import PluginError
from atsc_plugin.files import key_of, only_writer, whole_file
from atsc_plugin.host import image_size
from atsc_plugin.keys import DEFAULTS
from atsc_plugin.losses import align, full, hard_labels, softened_divergence
from atsc_plugin.methods.base import Key, Method, method
from atsc_plugin.networks.maps import check_classes, classes_of
from atsc_plugin.networks.stages import check_stages, stage_facts
from atsc_plugin.untrusted import open_regular, parse_json

LARGEST_IMAGE = 64  # above this every stage is pooled first: the first one of ResNet50 at 224 would need 803 M weights
POOLED = 8
AUGMENTS = ("CROP", "AUGMENT", "ERASING")  # in a recipe where they are on: heads of before they came keep their names


class Heads(nn.Module):
    """heads(feats) -> a list of logits, W_k flatten(feats[k]) + b_k for each stage k.

    On images above 64 pixels a map larger than 8 x 8 is average-pooled to that first. They start at zero: each is a
    convex problem of its own. `trained` is 1 once they may be learnt from.
    """

    def __init__(self, shapes, stages, classes, image_size):
        super().__init__()
        self.stages = list(stages)
        self.pooled = POOLED if image_size > LARGEST_IMAGE else None
        sides = [[min(side, self.pooled or side) for side in shapes[stage][1:]] for stage in stages]
        widths = [shapes[stage][0] * height * width for stage, (height, width) in zip(stages, sides, strict=True)]
        layers = [nn.utils.skip_init(nn.Linear, width, classes) for width in widths]
        for layer in layers:
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)
        self.register_buffer("trained", torch.zeros((), dtype=torch.long))
        self.requires_grad_(False)

    def forward(self, feats):
        maps = [align(feats[stage], self.pooled) if self.pooled else feats[stage] for stage in self.stages]
        return [full(layer(feature_map.flatten(1))) for layer, feature_map in zip(self.layers, maps, strict=True)]


# ---- training ----


def train_heads(teacher, heads, loader, recipe):
    """Minimise the sum over heads of CE(head, y) with the teacher in eval mode and held; mean figures by epoch."""
    if not hasattr(loader, "__len__"):
        raise PluginError(
            "The heads' rate falls over all steps, and the loader has no length. Hand over a list of batches, or a "
            "DataLoader over a dataset with a length."
        )
    heads.requires_grad_(True)
    teacher.eval()
    optimizer = torch.optim.Adam(heads.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe["epochs"] * len(loader))
    lines = []
    try:
        for epoch in range(1, recipe["epochs"] + 1):
            set_epoch(loader, epoch)
            lines.append(
                _epoch(teacher, heads, progress(loader, f"heads {epoch}/{recipe['epochs']}"), optimizer, schedule)
            )
            top1 = " ".join(f"{value:.1f}" for value in lines[-1]["train_top1"])
            print(f"heads epoch {epoch}/{recipe['epochs']}  loss {lines[-1]['loss']:.4f}  train {top1}", flush=True)
    finally:
        heads.requires_grad_(False)
        optimizer.zero_grad(set_to_none=True)  # what is left would count where a loop clips all gradients
    return lines


def _epoch(teacher, heads, loader, optimizer, schedule):
    device = heads.trained.device
    loss_sum, hits, images = 0.0, [0] * len(heads.layers), 0
    for batch in loader:
        inputs = inputs_of(batch, device)
        image, target = inputs["image"], inputs["target"]
        with torch.no_grad():
            feats = teacher(image)[1]["feats"]
        outputs = heads(feats)
        loss = sum(F.cross_entropy(logits, target) for logits in outputs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        loss_sum, images = loss_sum + loss.detach() * len(target), images + len(target)
        target = hard_labels(target)
        hits = [hit + correct(logits.detach(), target, 1) for hit, logits in zip(hits, outputs, strict=True)]
    loss = float(loss_sum) / images
    if not loss < float("inf"):
        raise PluginError(f"DIH's heads: the loss is {loss}; expected a finite number. Lower DIH.HEADS.LR.")
    return {"loss": loss, "train_top1": [100 * int(hit) / images for hit in hits]}


@torch.no_grad()
def validation_top1(teacher, heads, loader):
    """Top-1 of each head in percent."""
    hits, images = [0] * len(heads.layers), 0
    teacher.eval()
    for batch in loader:
        inputs = inputs_of(batch, heads.trained.device)
        outputs = heads(teacher(inputs["image"])[1]["feats"])
        hits = [hit + int(correct(logits, inputs["target"], 1)) for hit, logits in zip(hits, outputs, strict=True)]
        images += len(inputs["target"])
    return [100 * hit / images for hit in hits]


# ---- the cache ----


def recipe_of(cfg, teacher, heads):
    """All that decides what the heads become, except the data."""
    node = cfg.DIH.HEADS
    return {
        "teacher": digest_of(teacher),
        "stages": heads.stages,
        "pooled": heads.pooled,
        "epochs": node.EPOCHS,
        "batch_size": node.BATCH_SIZE,
        "lr": node.LR,
        "weight_decay": node.WEIGHT_DECAY,
        "seed": cfg.TEACHER.SEED,
        "padding": cfg.DATASET.PADDING,
        "flip": cfg.DATASET.FLIP,
        **{key.lower(): cfg.DATASET[key] for key in AUGMENTS if cfg.DATASET[key] != DEFAULTS[f"DATASET.{key}"]},
    }


def cache_file(cfg, recipe, data):
    """The file of the heads with this recipe on these data, there or not."""
    key = key_of({**recipe, "data": data.identity, "mean": list(data.mean), "std": list(data.std)})
    return Path(cfg.TEACHER.CACHE) / f"{cfg.DISTILLER.TEACHER}-{data.name}-heads-{key}.safetensors"


def save_heads(heads, path, facts):
    """The heads and their facts in one file, whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in heads.state_dict().items()}
    with whole_file(path) as file:
        file.write(safetensors.torch.save(tensors, metadata={"facts": json.dumps(facts)}))


def load_heads(heads, path):
    """Fill `heads` from a cached file and return its facts; whatever is no such file is refused, and not executed."""
    try:
        facts = facts_of(path)
        heads.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError, OSError) as error:
        raise PluginError(
            f"{path} holds no heads of this teacher ({str(error).splitlines()[0][:160]}); expected a safetensors file "
            "written here. Delete it, and they are trained again."
        ) from error
    return facts


def facts_of(path):
    """What a cached file says of itself."""
    open_regular(path).close()
    with safe_open(path, framework="pt") as file:
        return parse_json(file.metadata()["facts"])


def ensure_trained(cfg, teacher, heads, loaders):
    """Heads from the cache, or trained into it; (path, facts)."""
    recipe = recipe_of(cfg, teacher, heads)
    path = cache_file(cfg, recipe, loaders.data)
    if not path.is_file():
        with only_writer(path, "TEACHER.CACHE"):
            if not path.is_file():  # whoever waited for the lock finds it
                print(
                    f"no heads for this {cfg.DISTILLER.TEACHER} found: training {len(heads.layers)} for "
                    f"{recipe['epochs']} epochs (DIH.HEADS); they are kept in {path}",
                    flush=True,
                )
                _train_into(path, cfg, teacher, heads, loaders, recipe)
    return path, load_heads(heads, path)


def _train_into(path, cfg, teacher, heads, loaders, recipe):
    data, started = loaders(cfg.DIH.HEADS.BATCH_SIZE, cfg.TEACHER.SEED), time.perf_counter()
    torch.manual_seed(cfg.TEACHER.SEED)  # for loaders that draw globally
    lines = train_heads(teacher, heads, data.train, recipe)
    figures = {"seconds": time.perf_counter() - started, "train_top1": lines[-1]["train_top1"], "val_top1": None}
    if data.val is not None:
        figures["val_top1"] = validation_top1(teacher, heads, data.val)
    heads.trained.fill_(1)
    save_heads(heads, path, {"recipe": recipe, "data": data.identity, "images": data.train_images, **figures})


def find_cached(cfg, teacher, heads):
    """The cached file for this teacher and recipe on the configured data set, by its own facts; None without one.

    For a host's own trainer, which hands over no data: of several, the one trained on the most images.
    """
    recipe, found = recipe_of(cfg, teacher, heads), []
    pattern = f"{cfg.DISTILLER.TEACHER}-{cfg.DATASET.TYPE}-heads-*.safetensors"
    for path in sorted(Path(cfg.TEACHER.CACHE).glob(pattern)):
        try:
            facts = facts_of(path)
            if facts["recipe"] == recipe:
                found.append((facts["images"], path))
        except (PluginError, SafetensorError, KeyError, TypeError, ValueError, OSError):
            continue  # not a file of ours, or of another teacher: never a reason to stop
    return max(found)[1] if found else None


# ---- the method ----


@method("DIH")
class DIH(Method):
    """Distilling Knowledge via Intermediate Classifiers (Asadian, Salehi-Abari, 2021, arXiv 2103.00497).

    loss = sum over the k heads and the teacher's own logits z of ALPHA * tau^2 KL(softmax(z / tau) || softmax(z_s /
    tau)) + (1 - ALPHA) * CE(z_s, y): a plain sum, so CE counts k + 1 times. Prediction: the student's own logits. Head
    k is linear on the flattened map of the teacher's stage k; the heads are trained first, jointly, on the sum of
    their CE, with the teacher frozen and in eval mode.

    Deviations: above 64 pixels each stage is average-pooled to 8 x 8 first; the heads' optimizer is ours.
    """

    KEYS = (
        Key("DIH.TEMPERATURE", 5.0, "temperature of the divergence from each branch", minimum=0.1, symbol="tau"),
        Key(
            "DIH.ALPHA",
            0.1,
            "share of the divergence in a branch's loss, 0 to 1; the rest is CE",
            minimum=0.0,
            maximum=1.0,
            symbol="alpha",
        ),
        Key("DIH.STAGES", [], "indices into the teacher's feats that get a head; empty: all but the first, the stem"),
        Key(
            "DIH.HEADS.EPOCHS", 30, "epochs of training the heads, before the student and once for a teacher", minimum=1
        ),
        Key("DIH.HEADS.BATCH_SIZE", 64, "their batch size", minimum=1),
        Key("DIH.HEADS.LR", 0.0003, "their learning rate (Adam, falling to zero along a cosine)", minimum=0.0),
        Key("DIH.HEADS.WEIGHT_DECAY", 0.0, "their weight decay", minimum=0.0),
    )

    @classmethod
    def problems(cls, cfg):
        node, stages, problems = cfg.DIH, cfg.DIH.STAGES, []
        whole = all(type(stage) is int and stage >= 0 for stage in stages)
        if not whole or len(set(stages)) < len(stages):
            problems.append(f"DIH.STAGES: got {stages}, expected different whole numbers from 0, e.g. [1, 2, 3].")
        if not node.HEADS.LR > 0:
            problems.append(f"DIH.HEADS.LR: got {node.HEADS.LR}, expected a rate above 0, e.g. 0.0003.")
        return problems

    def __init__(self, student, teacher, cfg):
        super().__init__(student, teacher, cfg)
        self.cfg, self.alpha, self.temperature = cfg, cfg.DIH.ALPHA, cfg.DIH.TEMPERATURE
        side = image_size(cfg.DATASET)
        names = f"student {cfg.DISTILLER.STUDENT}", f"teacher {cfg.DISTILLER.TEACHER}"
        facts = stage_facts(self.teacher, side, names[1])
        check_classes(classes_of(student, side, names[0]), facts.classes, *names)
        stages = cfg.DIH.STAGES or facts.all_but_the_stem()
        check_stages(stages, facts, "DIH.STAGES", names[1])
        self.heads = Heads(facts.shapes, stages, facts.classes, side)
        self.heads_from = None
        self.teacher.requires_grad_(False)

    def start(self, loaders=None):
        """Heads from the cache; where data are handed over, they are trained into it if need be."""
        message = ""
        if loaders is not None:
            self.heads_from, facts = ensure_trained(self.cfg, self.teacher, self.heads, loaders)
            split = "val" if facts["val_top1"] else "train"
            message = f" ({split} top-1 {' '.join(f'{top1:.1f}' for top1 in facts[f'{split}_top1'])})"
        elif not self.heads.trained.item():
            self.heads_from = find_cached(self.cfg, self.teacher, self.heads)
            if self.heads_from is None:
                raise PluginError(
                    f"DIH has no heads for this {self.cfg.DISTILLER.TEACHER}: looked in {self.cfg.TEACHER.CACHE} "
                    "(TEACHER.CACHE) for a file with its weights' hash and this DIH.HEADS recipe. Train them with "
                    "`python -m atsc_plugin prepare --cfg FILE` and the same keys, then start again."
                )
            load_heads(self.heads, self.heads_from)
        if self.heads_from:
            print(f"heads of {self.cfg.DISTILLER.TEACHER} from {self.heads_from}{message}", flush=True)

    def plan(self):
        size = sum(p.numel() for p in self.heads.parameters())
        where = f"from {self.heads_from}" if self.heads_from else f"from {self.cfg.TEACHER.CACHE}, else trained first"
        return [("heads", f"{len(self.heads.layers)}, {size:,} parameters, {where}")]

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
