"""Check configurations, and train the teachers they lack; no student is trained and no run directory made."""

import argparse

from atsc_plugin.errors import ConfigError, PluginError


def parser():
    words = argparse.ArgumentParser(
        "prepare",
        description=__doc__,
        epilog="example: prepare --cfg configs/quickstart/simkd.yaml",
    )
    words.add_argument("--cfg", required=True, nargs="+", metavar="FILE", help="configuration files")
    words.add_argument("--check", action="store_true", help="only check the files: nothing is built or trained")
    words.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys to override, e.g. TEACHER.EPOCHS 20")
    return words


def parse(words):
    """--cfg takes one file or several; KEY VALUE pairs are the words without a suffix of a file."""
    args = parser().parse_args(words)
    files = [word for word in args.cfg if word.endswith((".yaml", ".yml"))]
    args.cfg, args.opts = files or args.cfg, args.cfg[len(files) :] + args.opts if files else args.opts
    return args


def run(args):
    import atsc_plugin

    atsc_plugin.register()
    from atsc_plugin import build
    from atsc_plugin.config import load_cfg

    problems, checked = [], []
    for path in args.cfg:
        try:
            checked.append(load_cfg(path, args.opts))
        except ConfigError as error:
            problems += [f"{path}: {problem}" for problem in error.problems]
        except PluginError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    for cfg in checked:
        if not args.check:
            build.prepare(cfg, args.opts)
    print(f"{len(checked)} configuration{'s' if len(checked) > 1 else ''} checked", flush=True)
    return 0
