"""Accuracy of a run directory, of a deployed student or of any checkpoint, on the data of its configuration."""

import argparse
import json
from pathlib import Path

from atsc_plugin.errors import PluginError

EXAMPLES = """examples:
  eval output/quickstart/simkd,res20,res8/seed_1              the deployed student of the last epoch
  eval output/quickstart/simkd,res20,res8/seed_1 --which best
  eval output/quickstart/kd,res20,res8/seed_1/latest          a checkpoint; the cfg.yaml beside it says what it is
  eval teacher.pth --cfg configs/quickstart/vanilla.yaml DISTILLER.STUDENT resnet20     a bare network
"""


def parser():
    words = argparse.ArgumentParser(
        "eval",
        description="Evaluate a run directory, deployed student or checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("path", help="run directory, deploy_* file or checkpoint")
    words.add_argument("--which", choices=("last", "best"), default="last", help="of a run directory (default: last)")
    words.add_argument("--split", choices=("test", "val"), default="test", help="images to evaluate on (default: test)")
    words.add_argument("--cfg", metavar="FILE", help="configuration, where no cfg.yaml lies beside the file")
    words.add_argument("--json", action="store_true", help="print one JSON object instead of a sentence")
    words.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys to override, e.g. DATASET.ROOT /data")
    return words


def run(args):
    import atsc_plugin

    atsc_plugin.register()
    from atsc_plugin import build
    from atsc_plugin.config import load_cfg
    from atsc_plugin.engine.evaluate import evaluate, in_eval_mode
    from atsc_plugin.engine.placement import place_module

    path = Path(args.path)
    if not path.exists() and not path.with_suffix(".safetensors").exists():
        raise PluginError(f"There is no {path}; expected a run directory, a deploy_* file or a checkpoint.")
    folder = path if path.is_dir() else path.parent
    own = folder / "cfg.yaml"
    if not args.cfg and not own.is_file():
        raise PluginError(
            f"{own} is not there, so it is unknown what {path} is. Name its configuration with --cfg FILE."
        )
    cfg = load_cfg(args.cfg or own, args.opts)
    device = build.device_of(cfg)
    data = build.data_of(cfg, device)
    loader = data.test if args.split == "test" else data.val
    if loader is None:
        raise PluginError(f"{data.name} has no validation split; use --split test.")
    module, what = _module(path, args.which, cfg, data)
    scores = evaluate(in_eval_mode(place_module(module, device)), loader, device)
    facts = {"path": str(path), "what": what, "split": args.split, "dataset": data.name, **scores}
    if args.json:
        print(json.dumps(facts))
    else:
        print(
            f"{what}, {data.name} {args.split} ({scores['images']:,} images): top-1 {scores['top1']:.2f}, "
            f"top-5 {scores['top5']:.2f}, cross entropy {scores['loss']:.4f}"
        )
    return 0


def _deployed(path, data):
    from atsc_plugin import deploy

    module, card = deploy.load(path)
    if card["classes"] != data.classes:
        raise PluginError(
            f"{path} tells {card['classes']} classes apart, {data.name} has {data.classes}; expected the data it was "
            "trained on. Name their configuration with --cfg."
        )
    return module


def _module(path, which, cfg, data):
    """(module that gives logits, what it is in words)."""
    method = cfg.DISTILLER.TYPE
    if path.is_dir():
        return _deployed(path / f"deploy_{which}", data), f"deployed student ({method}, {which} epoch)"
    if path.suffix in (".safetensors", ".json") or path.with_suffix(".safetensors").exists():
        return _deployed(path, data), f"deployed student ({method})"
    return _from_checkpoint(path, cfg, data)


def _from_checkpoint(path, cfg, data):
    """A whole distiller when the file holds one, else the bare student network."""
    from torch import nn

    from atsc_plugin.engine import checkpoint
    from atsc_plugin.export import sources

    distiller = sources.whole_distiller(checkpoint.load(path), path, cfg, data)
    if distiller is None:
        return sources.bare_student(path, cfg, data), f"network {cfg.DISTILLER.STUDENT}"

    class Predictor(nn.Module):
        def __init__(self):
            super().__init__()
            self.distiller = distiller

        def forward(self, image):
            return self.distiller(image=image)

    return Predictor(), f"checkpoint of {cfg.DISTILLER.TYPE}"
