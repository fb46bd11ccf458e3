"""Measure here a training step, the data loader, reading image files or an epoch, each against its alternatives.

Only an idle machine gives figures: anything else that runs is in them. `launches` counts, and `memory` runs on a folder
of made-up photographs look at their peak memory: these need no idle machine.
"""

import argparse
import sys

from atsc_plugin.commands import Parser
from atsc_plugin.errors import PluginError
from atsc_plugin.files import write_json

EXAMPLES = """
  bench step --quick
  bench step --batch 64 --rounds 9 --json step.json
  bench step --methods fused KD --amp none bf16 --compile none default
  bench step --methods KD fused --amp none bf16 --layout contiguous channels_last
  bench step --methods KD fused --graph none auto
  bench loader --rounds 5
  bench files
  bench epoch --images 6400
  bench launches --methods KD SIMKD ATSC
  bench memory
"""
FORMATS = ("none", "bf16", "fp16")
COMPILE = ("none", "default", "reduce-overhead", "max-autotune")
UNPRINTED = ("low", "high", "pair", "batch")  # only in the JSON file
# Images a pass, with --quick and without.
QUICK = {"loader": 5000, "files": 40, "epoch": 96, "memory": 300}
FULL = {"loader": 50000, "files": 200, "epoch": 50000, "memory": 3000}
UNTIMED = ("launches", "memory")


def parser():
    options = Parser("bench", __doc__, EXAMPLES)
    add = options.add_argument
    add("what", choices=("step", "loader", "files", "epoch", *UNTIMED), help="what is measured")
    add("--quick", action="store_true", help="small and rough: within a minute on two cores")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add("--teacher", default="resnet32x4", help="network of cifar100's table (default: %(default)s)")
    add("--student", default="resnet8x4", help="network of cifar100's table (default: %(default)s)")
    add("--batch", type=_count, help="images a batch (default: 64; quick: 16)")
    methods = (
        "step, launches: registered methods, released, published, fused, ATSC_x2, ATSC_x3, and task and ema, also with "
        "_every_2 or _every_4 (ATSC.TEACHER.LEARNS task, with EMA, EVERY); epoch: one of them"
    )
    add("--methods", nargs="+", metavar="NAME", help=methods)
    formats = f"number formats: {', '.join(FORMATS)}"
    add("--amp", nargs="+", default=["none"], choices=FORMATS, metavar="AMP", help=formats)
    modes = f"modes of torch.compile: {', '.join(COMPILE)}"
    add("--compile", nargs="+", default=["none"], choices=COMPILE, metavar="MODE", help=modes)
    layouts = ("auto", "contiguous", "channels_last")
    say = f"memory layouts: {', '.join(layouts)}; auto is the engine's own"
    add("--layout", nargs="+", default=["auto"], choices=layouts, metavar="LAYOUT", help=say)
    say = "step: none, or auto: recorded as one CUDA graph, the loader's work on the batch included"
    add("--graph", nargs="+", default=["none"], choices=("none", "auto"), metavar="GRAPH", help=say)
    add("--rounds", type=_count, help="turns of each arm (default: 7; quick: 3)")
    add("--images", type=_count, help=f"images a pass (default: {_each(FULL)}; quick: {_each(QUICK)})")
    add("--profile", action="store_true", help="step: also where the first arm's time goes")
    add("--json", metavar="FILE", help="write everything measured")
    return options


def _each(numbers):
    return ", ".join(f"{what} {number:,}" for what, number in numbers.items())


def _count(text):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"got {text}; expected a whole number above 0")
    return int(text)


def run(args):
    import torch
    from yacs.config import CfgNode

    import atsc_plugin

    atsc_plugin.register()
    from atsc_plugin import host
    from atsc_plugin.bench.steps import ARMS
    from atsc_plugin.bench.timing import environment, text_table
    from atsc_plugin.engine.batches import device_of

    known = [*ARMS, *host.distiller_dict]
    if unknown := [name for name in args.methods or () if name not in known]:
        raise PluginError(f"--methods {', '.join(unknown)}: expected of {', '.join(known)}.")
    device = device_of(CfgNode({"EXPERIMENT": {"DEVICE": args.device}}))
    torch.manual_seed(0)
    before = environment(device)
    rows, ratios = measured(args, device)
    print(text_table(rows, without=UNPRINTED))
    for name, value in ratios.items():
        print(f"{name}: {value:.4g}")
    print(f"{before['device']}; torch {before['torch']}; load before: {before['load']} of {before['cores']} cores")
    if (before["load"] or 0) > 0.5 and args.what not in UNTIMED:
        print("WARNING the machine was busy when this began: the figures are not to be quoted", file=sys.stderr)
    if args.json:
        write_json({"what": args.what, "environment": before, "rows": rows, "ratios": ratios}, args.json)
    return 0


def measured(args, device):
    """(rows, ratios) of what is asked for."""
    from atsc_plugin.bench import launches, loading, memory, steps

    batch, rounds = args.batch or (16 if args.quick else 64), args.rounds or (3 if args.quick else 7)
    images = args.images or (QUICK if args.quick else FULL).get(args.what)
    if args.what == "loader":
        return loading.bench_loader(images, batch, device, rounds)
    if args.what == "files":
        return loading.bench_files(images, device, rounds)
    if args.what == "memory":
        return memory.bench_memory(images)
    if args.what == "launches":
        settings = args.teacher, args.student, args.batch or launches.IMAGES, args.amp[0]
        arms = [steps.Arm(name, *settings) for name in args.methods or launches.METHODS]
        return launches.bench_launches(arms, device), {}
    methods = args.methods or (["fused"] if args.what == "epoch" else ["released", "fused", "SIMKD", "KD"])
    settings = args.amp, args.compile, args.layout, args.graph
    arms = steps.arms_of(methods, args.teacher, args.student, batch, *settings)
    if args.what == "step" and args.graph != ["none"] and device.type != "cuda":
        print(f"note: a {device.type} records no graph; recorded steps are plain calls here", file=sys.stderr)
    if args.what == "epoch":
        return loading.bench_epoch(arms[0], images, device, rounds)
    if args.profile:
        print(steps.profile(arms[0], device))
    return steps.bench_step(arms, device, rounds, calls=10 if device.type == "cuda" else 1)
