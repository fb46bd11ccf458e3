"""Run a host's own, unmodified script with our methods, trainer and keys registered: a fork keeps its own trainer."""

import argparse
import os
import runpy
import sys
from pathlib import Path

from atsc_plugin.commands import Parser
from atsc_plugin.errors import HostError, PluginError

EXAMPLES = """
  launch ../mdistiller/tools/train.py --cfg configs/cifar100/atsc/res32x4_res8x4.yaml SOLVER.EPOCHS 240
"""


def parser():
    options = Parser("launch", __doc__, EXAMPLES)
    add = options.add_argument
    add("--leave", action="append", default=[], metavar="NAME", help="leave this method name to the host, e.g. SIMKD")
    add("script", help="the host's script, e.g. ../mdistiller/tools/train.py")
    add("argv", nargs=argparse.REMAINDER, help="everything behind it is the script's own")
    return options


def parse(argv):
    """The script's own options are not ours to read."""
    return parser().parse_args(argv)


def run(args):
    script = Path(args.script).resolve()
    if not script.is_file():
        raise PluginError(f"There is no script {args.script}; expected a host's train.py. Check the path.")
    checkout = next((folder for folder in script.parents if (folder / "mdistiller" / "__init__.py").is_file()), None)
    if checkout is not None:  # the script's own host, not another one that happens to be installed
        sys.path.insert(0, str(checkout))
    os.environ.setdefault("ATSC_HOST", "mdistiller")
    from atsc_plugin import host

    if host.NAME != "mdistiller":
        raise HostError(f"launch runs mdistiller's scripts, but ATSC_HOST chose the {host.NAME} host. Unset it.")
    import atsc_plugin
    from atsc_plugin.engine.signals import LAUNCHED

    atsc_plugin.register(leave=args.leave)
    print(f"atsc_plugin: registered with mdistiller {host.VERSION} ({host.FOLDER}); running {script}", flush=True)
    sys.path.insert(0, str(script.parent))  # as `python script` has it
    before, sys.argv = sys.argv, [str(script), *args.argv]
    LAUNCHED.extend(["launch", *(word for name in args.leave for word in ("--leave", name))])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:
        raise
    except OSError as error:  # mostly data or a teacher that the script itself looks for, or fetches
        raise PluginError(
            f"{args.script} ended with {type(error).__name__}: {error}. mdistiller's scripts take data from "
            f"{host.data_root()} and teachers from the host's own folder, whatever DATASET.ROOT "
            "and DISTILLER.TEACHER_CKPT say; our `train` heeds these."
        ) from error
    finally:
        sys.argv = before
        LAUNCHED.clear()
    return 0
