"""Train the teachers of a configuration that are missing, each under its own seed, and say what every one reaches."""

import argparse

from atsc_plugin.errors import ConfigError, PluginError

EXAMPLES = """examples:
  teachers --cfg configs/quickstart/atsc_multi.yaml                 the three of DISTILLER.TEACHERS
  teachers --cfg configs/quickstart/kd.yaml --seeds 1,2,3           DISTILLER.TEACHER with three seeds
  teachers --cfg configs/cifar100/atsc_multi/3res32x4_res8x4.yaml DATASET.ROOT /data --dry-run
"""


def parser():
    words = argparse.ArgumentParser(
        "teachers",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument(
        "--cfg", required=True, metavar="FILE", help="YAML configuration; its TEACHER node is the recipe"
    )
    words.add_argument(
        "--seeds", type=_seeds, metavar="1,2,3", help="train DISTILLER.TEACHER with each of these seeds instead"
    )
    words.add_argument("--dry-run", action="store_true", help="say what is there and what would be trained, and stop")
    words.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys to override, e.g. TEACHER.EPOCHS 20")
    return words


def run(args):
    import atsc_plugin

    atsc_plugin.register()
    from atsc_plugin import build, teachers
    from atsc_plugin.engine.evaluate import evaluate, in_eval_mode
    from atsc_plugin.engine.placement import place_module

    cfg = _configuration(args)
    device = build.device_of(cfg)
    data = build.data_of(cfg, device)
    found = teachers.find_all(cfg, data)
    if args.dry_run:
        for own, source in found:
            print(f"{own.DISTILLER.TEACHER}, seed {own.TEACHER.SEED}: {source.text}")
        return 0
    networks = [build.network(own, "TEACHER", data.classes, own.TEACHER.SEED).to(device) for own, _ in found]
    teachers.load_all(found, networks, data, lambda own: build.data_of(own, device))
    print(f"top-1 on {data.name} test:")
    for (own, source), network in zip(found, networks, strict=True):
        top1 = evaluate(in_eval_mode(place_module(network, device)), data.test, device)["top1"]
        place = source.path or source.text
        print(f"  {own.DISTILLER.TEACHER}, seed {own.TEACHER.SEED}: {top1:.2f}  {place}", flush=True)
    return 0


def _configuration(args):
    """The configuration with leave to train; `--seeds` makes a list of its only teacher."""
    from atsc_plugin.config import check, load_cfg
    from atsc_plugin.methods.teacher_list import takes_several, teacher_names

    cfg = load_cfg(args.cfg, args.opts).clone()
    cfg.defrost()
    cfg.TEACHER.TRAIN_IF_MISSING = True
    names = sorted(set(teacher_names(cfg)))
    if args.seeds and len(names) > 1:
        raise PluginError(
            f"--seeds is for one network, but DISTILLER.TEACHERS has {', '.join(names)}; expected one. Leave --seeds "
            "out (TEACHER.SEEDS has a seed for each), or name one with DISTILLER.TEACHERS [NAME]."
        )
    if args.seeds:
        cfg.DISTILLER.TEACHERS, cfg.TEACHER.SEEDS = names * len(args.seeds), args.seeds
        cfg.DISTILLER.TEACHER_CKPT, cfg.DISTILLER.TEACHER_CKPTS = "", []
    if args.seeds and not takes_several(cfg) or cfg.DISTILLER.TYPE == "NONE":
        cfg.DISTILLER.TYPE = "AVERKD"  # any method that takes a list: no student is built here
    if problems := check(cfg):
        raise ConfigError(problems)
    cfg.freeze()
    return cfg


def _seeds(text):
    """'1,2,3' as a list."""
    words = text.split(",")
    seeds = [int(word) for word in words if word.isdecimal()]
    if len(set(seeds)) < len(words):
        raise argparse.ArgumentTypeError(f"got {text}, expected different numbers from 0 on, e.g. 1,2,3")
    return seeds
