"""The linear heads that DIH puts on a teacher's stages: what they are, how they are trained, where they are kept.

They are trained once for a teacher and cached beside it, in one safetensors file, under the CONTENT of the teacher (a
hash of its weights), the recipe and the identity of the data; the test split is never read.
"""

import json
import time
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import nn

from atsc_plugin.engine.cache import key_of, only_writer
from atsc_plugin.engine.checkpoint import digest
from atsc_plugin.engine.evaluate import correct
from atsc_plugin.engine.placement import inputs_of
from atsc_plugin.engine.progress import progress
from atsc_plugin.errors import PluginError
from atsc_plugin.files import whole_file
from atsc_plugin.networks.maps import align, full
from atsc_plugin.untrusted import open_regular, parse_json

LARGEST_IMAGE = 64  # above this every stage is pooled first: the first one of ResNet50 at 224 would need 803 M weights
POOLED = 8


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
    heads.requires_grad_(True)
    teacher.eval()
    optimizer = torch.optim.Adam(heads.parameters(), lr=recipe["lr"], weight_decay=recipe["weight_decay"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe["epochs"] * len(loader))
    lines = []
    try:
        for epoch in range(1, recipe["epochs"] + 1):
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            lines.append(
                _epoch(teacher, heads, progress(loader, f"heads {epoch}/{recipe['epochs']}"), optimizer, schedule)
            )
            told = " ".join(f"{top1:.1f}" for top1 in lines[-1]["train_top1"])
            print(f"heads epoch {epoch}/{recipe['epochs']}  loss {lines[-1]['loss']:.4f}  train {told}", flush=True)
    finally:
        heads.requires_grad_(False)
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
    """All that decides what the heads become, but for the data."""
    node = cfg.DIH.HEADS
    return {
        "teacher": digest(teacher.state_dict()),
        "stages": heads.stages,
        "pooled": heads.pooled,
        "epochs": node.EPOCHS,
        "batch_size": node.BATCH_SIZE,
        "lr": node.LR,
        "weight_decay": node.WEIGHT_DECAY,
        "seed": cfg.TEACHER.SEED,
        "padding": cfg.DATASET.PADDING,
        "flip": cfg.DATASET.FLIP,
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


def ensure_trained(cfg, teacher, heads, data, data_of):
    """Heads from the cache, or trained into it; (path, facts). data_of(cfg) makes loaders of their own."""
    recipe = recipe_of(cfg, teacher, heads)
    path = cache_file(cfg, recipe, data)
    if not path.is_file():
        with only_writer(path):
            if not path.is_file():  # whoever waited for the lock finds it
                print(
                    f"no heads for this {cfg.DISTILLER.TEACHER} found: training {len(heads.layers)} for "
                    f"{recipe['epochs']} epochs (DIH.HEADS); they are kept in {path}",
                    flush=True,
                )
                _train_into(path, cfg, teacher, heads, data_of, recipe, data)
    return path, load_heads(heads, path)


def _train_into(path, cfg, teacher, heads, data_of, recipe, data):
    own = cfg.clone()
    own.defrost()
    own.EXPERIMENT.SEED, own.SOLVER.BATCH_SIZE = cfg.TEACHER.SEED, cfg.DIH.HEADS.BATCH_SIZE
    own.freeze()
    loaders, started = data_of(own), time.perf_counter()
    torch.manual_seed(cfg.TEACHER.SEED)  # for loaders that draw globally
    lines = train_heads(teacher, heads, loaders.train, recipe)
    figures = {"seconds": time.perf_counter() - started, "train_top1": lines[-1]["train_top1"], "val_top1": None}
    if loaders.val is not None:
        figures["val_top1"] = validation_top1(teacher, heads, loaders.val)
    heads.trained.fill_(1)
    facts = {"recipe": recipe, "data": data.identity, "images": data.train_images, **figures}
    save_heads(heads, path, facts)


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
