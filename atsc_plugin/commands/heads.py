"""Train DIH's heads for a teacher and keep them beside it, so that a host's own script finds them."""

import argparse

from atsc_plugin.errors import PluginError


def parser():
    words = argparse.ArgumentParser(
        "heads",
        description=__doc__,
        epilog="example: heads --cfg configs/cifar100/dih/res32x4_res8x4.yaml; `train` does this by itself",
    )
    words.add_argument("--cfg", required=True, metavar="FILE", help="a DIH configuration")
    words.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys to override, e.g. DIH.HEADS.EPOCHS 10")
    return words


def run(args):
    import atsc_plugin

    atsc_plugin.register()
    from atsc_plugin import build
    from atsc_plugin.config import load_cfg

    cfg = load_cfg(args.cfg, args.opts)
    if cfg.DISTILLER.TYPE != "DIH":
        raise PluginError(f"{args.cfg} is a configuration of {cfg.DISTILLER.TYPE}; heads belong to DISTILLER.TYPE DIH.")
    build.prepare(cfg, args.opts)
    return 0
