"""Check configurations, and train the teachers they lack; no student is trained and no run directory made."""

import json
from types import SimpleNamespace

from atsc_plugin.commands import Parser, registered_cfg
from atsc_plugin.errors import ConfigError, PluginError

EXAMPLES = """
  prepare --cfg configs/quickstart/simkd.yaml
  prepare --check --cfg configs/quickstart/*.yaml
"""


def parser():
    options = Parser("prepare", __doc__, EXAMPLES)
    add = options.add_argument
    add("--cfg", required=True, nargs="+", metavar="FILE", help="configuration files")
    add("--check", action="store_true", help="only check the files: nothing is built or trained")
    add("--json", action="store_true", help="with --check: what the files come to, for the leaderboard")
    add("--estimate", action="store_true", help="with --json: how long an epoch takes on this device, estimated")
    add("--teacher", type=int, metavar="N", help="only find or train teacher N, from 1, of one file")
    add("opts", nargs="*", metavar="KEY VALUE", help="keys to override, e.g. TEACHER.EPOCHS 20")
    return options


def parse(argv):
    """--cfg takes one file or several; KEY VALUE pairs are the arguments without a suffix of a file."""
    args = parser().parse_args(argv)
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
    if args.json:
        print(json.dumps(_facts(dict(zip(args.cfg, checked, strict=True)), args.estimate)))
        return 0
    from atsc_plugin import build

    for cfg in checked:
        if args.teacher is not None:
            _find_or_train(cfg, args.teacher)
        elif not args.check:
            build.prepare(cfg, args.opts)
    print(f"{len(checked)} configuration{'s' if len(checked) > 1 else ''} checked", flush=True)
    return 0


def _facts(checked, estimate):
    """{defaults, configs: {file: resolved keys, teachers, whether the run leaves one of its own, an epoch's cost}}."""
    from atsc_plugin import teachers
    from atsc_plugin.files import key_of
    from atsc_plugin.host import CFG
    from atsc_plugin.keys import changed, flatten
    from atsc_plugin.methods.base import class_of

    if estimate:
        from atsc_plugin.bench.estimate import epoch

    configs = {}
    for path, cfg in checked.items():
        data = SimpleNamespace(identity=flatten(cfg.DATASET))  # the images are not read here: their keys name them
        here = changed(cfg, {"EXPERIMENT.DEVICE": "cpu"})  # the runs' device need not be seen from here
        each, kind = teachers.configs_by_teacher(here), class_of(cfg.DISTILLER.TYPE)
        trained, derived = kind.teacher_weights(cfg) == "trained", kind.derives(cfg)
        wanted = [
            {"number": number, "name": own.DISTILLER.TEACHER, "seed": own.TEACHER.SEED,
             "recipe": key_of({**teachers.recipe(own, data), "cache": own.TEACHER.CACHE,
                               "pretrained": own.DISTILLER.TEACHER_PRETRAINED})}
            for number, own in enumerate(each, 1) if trained and not own.DISTILLER.TEACHER_CKPT
        ]  # fmt: skip
        configs[path] = {
            "keys": {key: value for key, value in flatten(cfg).items() if key not in derived},
            "teachers": wanted,
            "teacher_names": [own.DISTILLER.TEACHER for own in each],
            "leaves_teacher": kind.LEAVES_NETWORKS,
            "epoch": epoch(cfg) if estimate else None,
        }
    return {"defaults": flatten(CFG), "configs": configs}


def _find_or_train(cfg, number):
    """One teacher of a configuration, found, or trained and put into the cache."""
    from atsc_plugin import build, teachers

    configs = teachers.configs_by_teacher(cfg)
    if not 1 <= number <= len(configs):
        raise PluginError(f"--teacher is {number}; expected 1 to {len(configs)}, the teachers of this configuration.")
    device = build.device_of(cfg)
    data = build.data_of(cfg, device)
    networks = [teachers.new_teacher(own, data) for own in configs]
    own, network = configs[number - 1], networks[number - 1]
    source = teachers.find_all(configs, data, networks)[number - 1]
    teachers.load(source, own, network, data, build.Loaders(cfg, device, data).of)
