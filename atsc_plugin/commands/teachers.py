"""Train the teachers of a configuration that are missing, each under its own seed, and say what every one reaches.

With --fine-tune, weights for other classes (DISTILLER.TEACHER_CKPT or TEACHER_PRETRAINED) get a new head and learn
these data for TEACHER.FINE_TUNE_EPOCHS; runs with the same keys then find that teacher.
"""

import argparse

from atsc_plugin.commands import Parser, registered_cfg
from atsc_plugin.errors import ConfigError, PluginError

EXAMPLES = """
  teachers --cfg configs/quickstart/atsc_multi.yaml                 the three of DISTILLER.TEACHERS
  teachers --cfg configs/quickstart/kd.yaml --seeds 1,2,3           DISTILLER.TEACHER with three seeds
  teachers --cfg configs/cifar100/atsc_multi.yaml DATASET.ROOT /data --dry-run
  teachers --fine-tune --cfg configs/cifar100/kd.yaml DISTILLER.TEACHER timm/resnet18 DISTILLER.TEACHER_PRETRAINED True
"""


def parser():
    options = Parser("teachers", __doc__, EXAMPLES)
    add = options.add_argument
    add("--cfg", required=True, metavar="FILE", help="YAML configuration; its TEACHER node is the recipe")
    add("--seeds", type=_seeds, metavar="1,2,3", help="train DISTILLER.TEACHER with each of these seeds instead")
    add("--fine-tune", action="store_true", help="give weights for other classes a new head, and train that teacher")
    add("--dry-run", action="store_true", help="say what is there and what would be trained, and stop")
    add("opts", nargs="*", metavar="KEY VALUE", help="keys to override, e.g. TEACHER.EPOCHS 20")
    return options


def run(args):
    cfg = registered_cfg(args.cfg, [*args.opts, "TEACHER.TRAIN_IF_MISSING", "True"])
    from atsc_plugin import build, teachers
    from atsc_plugin.engine.batches import device_of, place_module
    from atsc_plugin.engine.evaluate import evaluate, in_eval_mode

    configs = teachers.configs_of(cfg, *_names_and_seeds(cfg, args.seeds))
    if args.fine_tune and not any(own.DISTILLER.TEACHER_CKPT or own.DISTILLER.TEACHER_PRETRAINED for own in configs):
        raise PluginError(
            "--fine-tune starts from weights; got none. Name a file with DISTILLER.TEACHER_CKPT, or set "
            "DISTILLER.TEACHER_PRETRAINED True."
        )
    device = device_of(cfg)
    data = build.data_of(cfg, device)
    networks = [teachers.new_teacher(own, data).to(device) for own in configs]
    sources = teachers.find_all(configs, data, networks, args.fine_tune)
    if args.dry_run:
        for own, source in zip(configs, sources, strict=True):
            print(f"{own.DISTILLER.TEACHER}, seed {own.TEACHER.SEED}: {source.text}")
        return 0
    teachers.load_all(configs, sources, networks, data, build.Loaders(cfg, device, data).of)
    print(f"top-1 on {data.name} test:")
    for own, source, network in zip(configs, sources, networks, strict=True):
        top1 = evaluate(in_eval_mode(place_module(network, device)), data.test, device)["top1"]
        place = source.path or source.text
        print(f"  {own.DISTILLER.TEACHER}, seed {own.TEACHER.SEED}: {top1:.2f}  {place}", flush=True)
    return 0


def _names_and_seeds(cfg, seeds):
    """The networks to train, and a seed for each where they are given."""
    from atsc_plugin.methods.base import teacher_names
    from atsc_plugin.networks import named

    names = teacher_names(cfg)
    if not names:  # a method without a teacher: nothing has looked at this name yet
        names = [cfg.DISTILLER.TEACHER]
        if problems := named.problems("DISTILLER.TEACHER", cfg.DATASET.TYPE, names[0], cfg.DISTILLER.TEACHER_ARGS):
            raise ConfigError(problems)
    if not seeds:
        return names, list(cfg.TEACHER.SEEDS)
    if len(set(names)) > 1:
        raise PluginError(
            f"--seeds is for one network, but DISTILLER.TEACHERS has {', '.join(names)}; expected one. Leave --seeds "
            "out (TEACHER.SEEDS has a seed for each), or name one with DISTILLER.TEACHERS [NAME]."
        )
    return names[:1] * len(seeds), seeds


def _seeds(text):
    """'1,2,3' as a list."""
    entries = text.split(",")
    seeds = [int(entry) for entry in entries if entry.isdecimal()]
    if len(set(seeds)) < len(entries):
        raise argparse.ArgumentTypeError(f"got {text}, expected different numbers from 0 on, e.g. 1,2,3")
    return seeds
