"""Measure here a training step, the data loader, reading image files or an epoch, each against its alternatives.

Only an idle machine gives figures: anything else that runs is in them.
"""

import argparse
import sys

from atsc_plugin.errors import PluginError
from atsc_plugin.files import write_json

EXAMPLES = """examples:
  bench step --quick
  bench step --batch 64 --rounds 9 --json step.json
  bench step --methods fused KD --amp none bf16 --compile none default
  bench data --rounds 5
  bench files
  bench epoch --images 6400
"""
HEADS = {
    "arm": "{}",
    "ms": "{:.1f}",
    "spread": "{:.1f}",
    "images_per_second": "{:.0f}",
    "ms_a_batch": "{:.2f}",
    "gflops": "{:.2f}",
    "share_of_achievable": "{:.2f}",
    "share_of_matmul": "{:.2f}",
    "kept_mb": "{:.0f}",
    "peak_mb": "{:.0f}",
    "times_released": "{:.3f}",
    "times_kd": "{:.2f}",
}


def parser():
    words = argparse.ArgumentParser(
        "bench", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("what", choices=("step", "data", "files", "epoch"), help="what is measured")
    words.add_argument("--quick", action="store_true", help="small and rough: within a minute on two cores")
    words.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    words.add_argument("--teacher", default="resnet32x4", help="network of cifar100's table (default: %(default)s)")
    words.add_argument("--student", default="resnet8x4", help="network of cifar100's table (default: %(default)s)")
    words.add_argument("--batch", type=_count, help="images a batch (default: 64; quick: 16)")
    words.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="step: of released, published, fused, SIMKD, KD, ATSC_x2, ATSC_x3 (teachers); epoch: one",
    )
    words.add_argument("--amp", nargs="+", default=["none"], choices=("none", "bf16", "fp16"), help="number formats")
    words.add_argument(
        "--compile", nargs="+", default=["none"], choices=("none", "default", "reduce-overhead", "max-autotune")
    )
    words.add_argument("--rounds", type=_count, help="times each arm has its turn (default: 7; quick: 3)")
    words.add_argument(
        "--images", type=_count, help="images a pass (default: 50000, files 200; quick: data 5000, files 40, epoch 96)"
    )
    words.add_argument("--profile", action="store_true", help="step: also where the first arm's time goes")
    words.add_argument("--json", metavar="FILE", help="write everything measured")
    return words


def _count(text):
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"got {text}; expected a whole number above 0")
    return int(text)


def run(args):
    import torch

    import atsc_plugin

    atsc_plugin.register()
    from atsc_plugin import build, host
    from atsc_plugin.benchmark.arms import METHODS
    from atsc_plugin.benchmark.timing import surroundings

    cfg = host.CFG.clone()
    cfg.defrost()
    cfg.EXPERIMENT.DEVICE = args.device
    device = build.device_of(cfg)
    unknown = set(args.methods or ()) - set(METHODS)
    if unknown:
        raise PluginError(f"--methods {', '.join(sorted(unknown))}: expected of {', '.join(METHODS)}.")
    args.batch = args.batch or (16 if args.quick else 64)
    args.rounds = args.rounds or (3 if args.quick else 7)
    torch.manual_seed(0)
    before = surroundings(device)
    rows, figures = {"step": _step, "data": _data, "files": _files, "epoch": _epoch}[args.what](args, device)
    print(table(rows))
    for name, value in figures.items():
        print(f"{name}: {value:.3g}")
    print(f"{before['device']}; torch {before['torch']}; load before: {before['load']:.1f} of {before['cores']} cores")
    if before["load"] > 0.5:
        print("WARNING the machine was busy when this began: the figures are not to be quoted", file=sys.stderr)
    if args.json:
        write_json({"what": args.what, "surroundings": before, "rows": rows, "figures": figures}, args.json)
    return 0


def _step(args, device):
    from atsc_plugin.benchmark.steps import arms_of, bench_step, profile

    methods = args.methods or ["released", "fused", "SIMKD", "KD"]
    arms = arms_of(methods, args.teacher, args.student, args.batch, args.amp, args.compile)
    if args.profile:
        print(profile(arms[0], device))
    calls, warm_up = (10, 10) if device.type == "cuda" else (1, 1)
    return bench_step(arms, device, args.rounds, calls, warm_up)


def _data(args, device):
    from atsc_plugin.benchmark.loading import bench_data

    return bench_data(args.images or (5000 if args.quick else 50000), args.batch, device, args.rounds)


def _files(args, device):
    from atsc_plugin.benchmark.files import bench_files

    return bench_files(args.images or (40 if args.quick else 200), device, args.rounds)


def _epoch(args, device):
    from atsc_plugin.benchmark.arms import Arm
    from atsc_plugin.benchmark.loading import bench_epoch

    method = (args.methods or ["fused"])[0]
    arm = Arm(method, args.teacher, args.student, args.batch, args.amp[0], args.compile[0])
    return bench_epoch(arm, args.images or (96 if args.quick else 50000), device, args.rounds)


def table(rows):
    """Rows as text, one column a figure that any of them has."""
    heads = [head for head in HEADS if any(row.get(head) is not None for row in rows)]
    cells = [heads] + [
        ["" if row.get(head) is None else HEADS[head].format(row[head]) for head in heads] for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    )
