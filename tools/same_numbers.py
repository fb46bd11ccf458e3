#!/usr/bin/env python
"""Train every quickstart arm for two small epochs in this tree and in another commit's, and compare the weights.

    python tools/same_numbers.py 4c80322                       every arm, bit for bit
    python tools/same_numbers.py 4c80322 --arms kd simkd       some of them
    python tools/same_numbers.py 4c80322 --arms old=new        an arm whose file has another name here

Both trees run on this machine with one thread, so that equal arithmetic gives equal bits. Exit status 0 when all
tensors of `latest` and of the deployed student, and all logged figures but times, are equal.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ARMS = "vanilla kd dkd reviewkd simkd atsc atsc_published atsc_ema atsc_multi simkd_multi averkd dih coteach"
KEYS = (
    "DATASET.DIGITS100.TRAIN_IMAGES 320 DATASET.DIGITS100.VAL_IMAGES 200 DATASET.DIGITS100.TEST_IMAGES 200 "
    "TEACHER.EPOCHS 2 TEACHER.LR_DECAY_STAGES [] SOLVER.EPOCHS 2 SOLVER.LR_DECAY_STAGES [1] "
    "EXPERIMENT.NAME run EXPERIMENT.DEVICE cpu"
)
TIMES = {"seconds", "data_seconds", "checkpoint_seconds", "images_per_second", "memory_mb"}
# All arms in one process: importing torch for each would take longer than training.
DRIVER = """
import json, sys
import torch
torch.set_num_threads(1)
from atsc_plugin.__main__ import main
for argv in json.loads(sys.argv[1]):
    status = main(argv)
    if status: sys.exit(status)
"""


def parser():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("commit", help="the tree to compare with")
    options.add_argument(
        "--arms", nargs="+", default=ARMS.split(), metavar="ARM", help="files of configs/quickstart; OLD=NEW"
    )
    options.add_argument(
        "--keep", metavar="DIR", help="keep the other commit's runs there, and reuse them if they are there"
    )
    options.add_argument(
        "--rename", nargs="*", default=[], metavar="OLD=NEW", help="starts of tensor names that changed"
    )
    return options


def run(tree, arms, place):
    """Train the arms with the package of `tree`; the run directories go below `place`."""
    commands = [
        ["train", "--cfg", str(tree / f"configs/quickstart/{arm}.yaml"), *KEYS.split()]
        + ["EXPERIMENT.PROJECT", arm, "LOG.PREFIX", str(place), "TEACHER.CACHE", str(place / "teachers")]
        for arm in arms
    ]
    argv = [sys.executable, "-c", DRIVER, json.dumps(commands)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    place.mkdir(parents=True)
    with open(place / "output.txt", "w") as output:
        done = subprocess.run(argv, cwd=place, env=environment, stdout=output, stderr=output)
    if done.returncode:
        sys.exit(f"{tree}: exit status {done.returncode}\n{(place / 'output.txt').read_text()[-3000:]}")


def differences(old, new, renames):
    """What differs between two run directories, in words."""
    import torch
    from safetensors.torch import load_file

    from atsc_plugin.engine import checkpoint

    found = []
    for name, read in (
        ("latest", lambda path: checkpoint.load(path)["model"]),
        ("deploy_last.safetensors", load_file),
    ):
        before, after = read(old / name), read(new / name)
        for start, other in renames:
            before = {other + key[len(start) :] if key.startswith(start) else key: t for key, t in before.items()}
        if before.keys() != after.keys():
            found.append(f"{name}: other names: {sorted(before.keys() ^ after.keys())[:4]}")
            continue
        unequal = {key: (before[key].double() - after[key].double()).abs().max().item()
                   for key in before if not torch.equal(before[key], after[key])}  # fmt: skip
        if unequal:
            worst = max(unequal, key=unequal.get)
            found.append(f"{name}: {len(unequal)} of {len(before)} tensors differ, {worst} by {unequal[worst]:.3g}")
    for number, (one, two) in enumerate(zip(log_of(old), log_of(new), strict=True), 1):
        unequal = [key for key in one.keys() & two.keys() if key not in TIMES and one[key] != two[key]]
        if unequal:
            found.append(f"log of epoch {number}: {', '.join(f'{key} {one[key]} / {two[key]}' for key in unequal[:4])}")
    return found


def only_run(project):
    """The run directory of a project with one run, whatever its name."""
    (folder,) = project.glob("*/seed_*")
    return folder


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def main():
    args = parser().parse_args()
    pairs = [(arm.partition("=")[0], arm.partition("=")[2] or arm) for arm in args.arms]
    renames = [tuple(text.split("=")) for text in args.rename]
    with tempfile.TemporaryDirectory(prefix="same_numbers_") as scratch:
        place = Path(scratch)
        old_runs = Path(args.keep).absolute() if args.keep else place / "old"
        if not old_runs.is_dir():
            tree = place / "tree"
            add = ["git", "worktree", "add", "--detach", "--force", tree, args.commit]
            subprocess.run(add, cwd=ROOT, check=True, capture_output=True)
            try:
                run(tree, [old for old, _ in pairs], old_runs)
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)
        run(ROOT, [new for _, new in pairs], place / "new")
        wrong = 0
        for old, new in pairs:
            found = differences(only_run(old_runs / old), only_run(place / "new" / new), renames)
            wrong += bool(found)
            print(f"{new:<16} {'equal to the bit' if not found else '; '.join(found)}", flush=True)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
