"""Check configurations, and train the teachers they lack; no student is trained and no run directory made."""

from atsc_plugin.commands import parser_of, registered_cfg
from atsc_plugin.errors import ConfigError, PluginError

EXAMPLES = """
  prepare --cfg configs/quickstart/simkd.yaml
  prepare --check --cfg configs/quickstart/*.yaml
"""


def parser():
    words = parser_of("prepare", __doc__, EXAMPLES)
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
    problems, checked = [], []
    for path in args.cfg:
        try:
            checked.append(registered_cfg(path, args.opts))
        except ConfigError as error:
            problems += [f"{path}: {problem}" for problem in error.problems]
        except PluginError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    from atsc_plugin import build

    for cfg in () if args.check else checked:
        build.prepare(cfg, args.opts)
    print(f"{len(checked)} configuration{'s' if len(checked) > 1 else ''} checked", flush=True)
    return 0
