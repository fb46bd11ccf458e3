"""A matrix of runs from one suite file: every arm with every seed, each run a subprocess of its own.

Finished runs (those with a result.json) are skipped, unfinished ones resumed, failures collected and listed at the end
while the rest goes on. Needs neither torch nor a host itself. A suite is YAML:

    name: my_suite              # becomes EXPERIMENT.PROJECT, so that all runs lie in one folder
    seeds: [1, 2, 3]
    common: {SOLVER.EPOCHS: 6}  # keys for every arm
    arms:
      simkd: {cfg: configs/quickstart/simkd.yaml}
      atsc_drift_1: {cfg: configs/quickstart/atsc.yaml, set: {ATSC.DRIFT.WEIGHT: 1.0}}
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from atsc_plugin.errors import PluginError
from atsc_plugin.files import write_text
from atsc_plugin.shipped import config_file


@dataclass(frozen=True)
class Job:
    """One run: an arm with a seed."""

    arm: str
    seed: int
    config: Path
    folder: Path


def parser():
    words = argparse.ArgumentParser(
        "leaderboard",
        description="Run every arm of a suite with every seed, then print the table.",
        epilog="example: leaderboard --suite configs/leaderboard/quick.yaml --seeds 3 --jobs 2",
    )
    words.add_argument("--suite", required=True, metavar="FILE", help="suite file, e.g. configs/leaderboard/quick.yaml")
    words.add_argument("--seeds", type=int, metavar="N", help="seeds 1..N instead of the suite's")
    words.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms of the suite")
    words.add_argument("--jobs", type=int, default=1, help="runs at a time; the cores are divided among them")
    words.add_argument("--output", default="./output", help="LOG.PREFIX of the runs (default: ./output)")
    words.add_argument("--dry-run", action="store_true", help="list the runs and what is done, start nothing")
    return words


def run(args):
    suite = read_suite(args.suite)
    unknown = set(args.arms or ()) - set(suite["arms"])
    if unknown:
        raise PluginError(
            f"{args.suite} has no arm {', '.join(sorted(unknown))}; expected of {', '.join(suite['arms'])}."
        )
    seeds = list(range(1, args.seeds + 1)) if args.seeds else suite["seeds"]
    folder = Path(args.output) / suite["name"]
    jobs = expand(suite, seeds, args.arms or list(suite["arms"]), folder, write=not args.dry_run)
    waiting = [job for job in jobs if not (job.folder / "result.json").exists()]
    print(f"{len(jobs)} runs: {len(jobs) - len(waiting)} done, {len(waiting)} to do", flush=True)
    if args.dry_run:
        for job in jobs:
            print(f"  {'to do' if job in waiting else 'done ':5}  {job.folder}")
        return 0
    failures = run_all(waiting, args.jobs, args.output)
    for job, status in failures:
        print(f"failed (status {status}): {job.arm}, seed {job.seed}; see {log_of(job)}", file=sys.stderr)
    from atsc_plugin import report

    if any((job.folder / "result.json").exists() for job in jobs):
        report.run(report.parser().parse_args([str(folder)]))
    return 1 if failures else 0


def read_suite(path):
    """A checked suite: name, seeds, common, arms."""
    try:
        suite = yaml.safe_load(config_file(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PluginError(f"Suite file {path} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise PluginError(f"Suite file {path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if (
        not isinstance(suite, dict)
        or not {"name", "seeds", "arms"} <= set(suite)
        or not isinstance(suite["arms"], dict)
    ):
        raise PluginError(f"{path} is no suite; expected keys name, seeds and arms (a mapping), optionally common.")
    for arm, content in suite["arms"].items():
        if (
            not isinstance(content, dict)
            or not set(content) <= {"cfg", "set"}
            or not config_file(content.get("cfg", "")).is_file()
        ):
            raise PluginError(
                f"{path}: arm {arm} is {content}; expected cfg: an existing file, and optionally set: keys."
            )
    return {"common": {}, **suite}


def expand(suite, seeds, arms, folder, write):
    """All jobs, seed by seed, so that an interrupted suite has whole columns; each arm's config is written whole."""
    configs = folder / "configs"
    if write:
        configs.mkdir(parents=True, exist_ok=True)
    for arm in arms if write else ():
        content = suite["arms"][arm]
        tree = yaml.safe_load(config_file(content["cfg"]).read_text(encoding="utf-8"))
        own = {"EXPERIMENT.PROJECT": suite["name"], "EXPERIMENT.NAME": str(arm)}
        for key, value in {**suite["common"], **content.get("set", {}), **own}.items():
            _put(tree, key, value)
        write_text(yaml.safe_dump(tree), configs / f"{arm}.yaml")
    return [
        Job(arm, seed, configs / f"{arm}.yaml", folder / str(arm) / f"seed_{seed}") for seed in seeds for arm in arms
    ]


def _put(tree, key, value):
    *path, leaf = key.split(".")
    for step in path:
        tree = tree.setdefault(step, {})
    tree[leaf] = value


def log_of(job):
    return job.folder.parent / f"seed_{job.seed}.log"


def run_all(jobs, at_once, output):
    """Run the jobs, `at_once` side by side; (job, exit status) of those that failed. Ctrl-C loses nothing."""
    started, failures = time.monotonic(), []
    pool = ThreadPoolExecutor(at_once)
    try:
        for done, (job, status) in enumerate(pool.map(lambda job: (job, _run_one(job, at_once, output)), jobs), 1):
            left = (time.monotonic() - started) / done * (len(jobs) - done)
            said = "ok" if status == 0 else f"FAILED ({status})"
            print(f"[{done}/{len(jobs)}] {job.arm} seed {job.seed}: {said}; about {left / 60:.0f} min left", flush=True)
            if status:
                failures.append((job, status))
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        raise PluginError("Interrupted; the same command goes on where it stopped.") from None
    pool.shutdown()
    return failures


def _run_one(job, at_once, output):
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    words = [sys.executable, "-m", "atsc_plugin", "train", "--cfg", str(job.config), "--resume"]
    words += ["EXPERIMENT.SEED", str(job.seed), "LOG.PREFIX", output]
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": path}
    with open(log_of(job), "a", encoding="utf-8") as log:
        return subprocess.run(words, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
