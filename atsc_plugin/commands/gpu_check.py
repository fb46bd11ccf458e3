"""Check this machine's GPU paths by one command, and write one JSON and one page.

Parts: environment; correctness (every method's first steps against the CPU,
resume, deployment, CUDA graph); speed (steps and epochs at CIFAR-100's shape);
accuracy (digits100, bf16 and graph); two processes. Each has a share of the
minutes. What fails or runs out of time is named, and the rest goes on.
Nothing is downloaded. Exit status 0: all that ran passed.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from atsc_plugin.commands import Parser
from atsc_plugin.commands.doctor import installed
from atsc_plugin.errors import PluginError

EXAMPLES = """
  gpu-check
  gpu-check --minutes 8 --out gpu-check
  gpu-check --device cpu --minutes 2          small sizes: shows that it runs
  gpu-check --parts correctness speed
"""
SHARES = {"environment": 0.07, "correctness": 0.28, "speed": 0.35, "accuracy": 0.2, "two processes": 0.1}
GRACE = 5  # seconds that a part gets to end the item at which its share is over


def parser():
    options = Parser("gpu-check", __doc__, EXAMPLES)
    add = options.add_argument
    add("--minutes", type=_minutes, default=8.0, help="it ends in this time (default: 8)")
    add("--out", default="gpu-check", help="folder for result.json, index.html and what the parts leave")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: the GPU if torch sees one")
    add(
        "--parts",
        nargs="+",
        choices=list(SHARES),
        default=list(SHARES),
        metavar="PART",
        help=f"only these: {', '.join(SHARES)}",
    )
    add("--run-part", help=argparse.SUPPRESS)  # one part in a process of its own: NAME
    add("--until", type=float, help=argparse.SUPPRESS)  # when its share ends
    return options


def _minutes(text):
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 10_000:
        raise argparse.ArgumentTypeError(f"got {text}; expected minutes above 0, e.g. 8")
    return minutes


def run(args):
    if args.run_part:
        return run_part(args)
    check_packages()
    from atsc_plugin.bench import gpu_page
    from atsc_plugin.engine.run_dir import read_json
    from atsc_plugin.files import write_json, write_text

    out, began = Path(args.out), time.time()
    out.mkdir(parents=True, exist_ok=True)
    parts, total, end = {}, sum(SHARES[name] for name in args.parts), began
    for name in args.parts:
        end += max(0, 60 * args.minutes - GRACE - 2) * SHARES[name] / total
        left = end - time.time()
        print(f"{name}  ({max(0, left):.0f} s at most)", flush=True)
        file = out / name.replace(" ", "_") / "part.json"
        file.unlink(missing_ok=True)
        ended = started_part(args, name, end, file.parent) if left > 0 else "out of time"
        part = read_json(file.parent, file.name) or {"rows": []}
        parts[name] = {**part, "ended": part.get("ended") or ended}
    found = {
        "device": gpu_page.facts_of(parts.get("environment", {"rows": []})).get("device", args.device),
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began)),
        "minutes": round((time.time() - began) / 60, 2),
        "notes": [f"Took {(time.time() - began) / 60:.1f} of {args.minutes:g} minutes. Sizes are small on a CPU."],
        "parts": parts,
    }
    write_json(found, out / "result.json")
    write_text(gpu_page.html(found, out), out / "index.html")
    print()
    for name, part in parts.items():
        print(f"{name:<14} {gpu_page.verdict(part)}")
    failed = gpu_page.failures(found)
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    print(f"{out / 'index.html'} is the page, {out / 'result.json'} all figures; logs lie beside them")
    return 1 if failed else 0


def check_packages() -> None:
    """Refuse, with one line to install all of it, what is not there or too old."""
    versions = installed()
    missing = [name for name, version in versions.items() if not version]
    if versions["torch"] and tuple(map(int, versions["torch"].split(".")[:2])) < (2, 7):
        missing.append("torch>=2.7")
    if missing:
        raise PluginError(f"gpu-check needs {', '.join(missing)}. Install: pip install {' '.join(map(repr, missing))}")


def started_part(args, name, end, folder):
    """Run a part in a process of its own, which may crash or hang; how it ended where it does not say so itself."""
    from atsc_plugin.leaderboard.jobs import COMMAND, environment  # which imports what check_packages looks for

    folder.mkdir(parents=True, exist_ok=True)
    command = [*COMMAND, "gpu-check", "--run-part", name, "--until", str(end)]
    command += ["--device", args.device, "--out", str(args.out)]
    with open(folder / "stderr.txt", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stderr=log, env=environment())
        try:
            status = process.wait(timeout=max(1.0, end - time.time()) + GRACE)
        except subprocess.TimeoutExpired:
            print("  out of time within an item", flush=True)
            return "out of time"
        finally:
            process.kill()
            process.wait()
    if status:
        print(f"  FAILED with exit status {status}; see {folder / 'stderr.txt'}", flush=True)
    return f"failed with exit status {status}" if status else "done"


def run_part(args):
    """One part, in this process."""
    import torch

    import atsc_plugin

    atsc_plugin.register()
    from atsc_plugin.bench import gpu_check
    from atsc_plugin.quickstart import teacher

    wanted = "cuda" if args.device == "auto" and torch.cuda.is_available() else args.device.replace("auto", "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise PluginError("--device cuda, but torch sees no CUDA device. Use --device cpu, or a torch built for CUDA.")
    folder = Path(args.out) / args.run_part.replace(" ", "_")
    device = torch.device("cuda:0" if wanted == "cuda" else "cpu")
    copied = str(teacher.copied(args.out))
    check = gpu_check.Check(device, folder, folder / "part.json", args.until, device.type == "cpu", copied)
    gpu_check.run(args.run_part, check)
    sys.stdout.flush()
    os._exit(0)  # what is left to tear down may hang, and the part is written
