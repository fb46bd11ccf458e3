"""A matrix of runs from one suite file: every arm on every pair with every seed, each run a subprocess of its own.

Finished runs (those with a result.json) are skipped, and so are those that the guard of ATSC stopped (stopped.json);
unfinished ones are resumed, failures collected and listed at the end while the rest goes on; then the page is written.
Needs neither torch nor a host itself. What a suite file holds stands in suites/suite_file.py.
"""

import argparse
import sys
from pathlib import Path

from atsc_plugin.errors import PluginError
from atsc_plugin.suites import jobs as jobs_of
from atsc_plugin.suites.jobs import write_configs
from atsc_plugin.suites.suite_file import read_suite

EXAMPLES = """examples:
  leaderboard --suite configs/leaderboard/quick.yaml --jobs 2
  leaderboard --suite configs/leaderboard/quick.yaml --seeds 1 SOLVER.EPOCHS 1      # a trial, in a folder of its own
  leaderboard --suite configs/leaderboard/cifar100_main.yaml --devices 0,1 --pairs res32x4_res8x4
  leaderboard --suite configs/leaderboard/cifar100_main.yaml --launcher submitit --slurm gpus_per_node=1 timeout_min=900
"""


def parser():
    words = argparse.ArgumentParser(
        "leaderboard",
        description="Run every arm of a suite with every seed, then write the page.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("--suite", required=True, metavar="FILE", help="suite file, e.g. configs/leaderboard/quick.yaml")
    words.add_argument("--seeds", type=int, metavar="N", help="seeds 1..N instead of the suite's")
    words.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms of the suite")
    words.add_argument("--pairs", nargs="+", metavar="PAIR", help="only these pairs of the suite")
    words.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: one a device); they share the cores"
    )
    words.add_argument("--devices", metavar="LIST", help="cpu, or GPUs such as 0,1: each run gets one of its own")
    words.add_argument("--output", default="./output", help="LOG.PREFIX of the runs (default: ./output)")
    words.add_argument("--launcher", choices=("local", "submitit"), default="local", help="submitit: a SLURM cluster")
    words.add_argument("--slurm", nargs="+", metavar="KEY=VALUE", help="submitit's own, e.g. timeout_min=900")
    words.add_argument("--cluster", choices=("slurm", "local", "debug"), help="submitit's kind (default: found)")
    words.add_argument("--dry-run", action="store_true", help="list the runs and what is done, start nothing")
    words.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys for every run: a trial of the suite")
    return words


def run(args):
    suite = read_suite(args.suite)
    devices, at_once = _slots(args)
    jobs = _jobs(suite, args)
    folder = jobs[0].folder.parents[1]
    jobs_of.refuse_lost_teachers(jobs)
    jobs_of.refuse_other_configurations(jobs)
    stopped = [job for job in jobs if job.stopped]
    waiting = [job for job in jobs if not (job.done or job.stopped)]
    done = len(jobs) - len(waiting) - len(stopped)
    ended = f"{done} done" + (f", {len(stopped)} stopped by the guard" if stopped else "")
    print(f"{len(jobs)} runs: {ended}, {len(waiting)} to do, in {folder}", flush=True)
    if args.dry_run:
        for job in jobs:
            print(f"  {'done' if job.done else 'stopped' if job.stopped else 'to do':7}  {job.folder}")
        return 0
    failures = _run(args, jobs, waiting, devices, at_once) if waiting else []
    for job, reason in failures:
        print(f"failed: {job.title}: {reason}; see {job.log}", file=sys.stderr)
    if any(job.done for job in jobs):
        from atsc_plugin import report

        whole = jobs_of.expand(suite, args.output, overrides=jobs_of.parse_overrides(args.opts))
        there = {job.arm for job in whole if job.done}  # the page is of all that lies there, not of this call's arms
        against = [arm for arm in suite.against if arm in there]
        print("\n".join(report.summary([folder], against)))
        written = report.write([folder], folder / "page", against)
        print(f"written: {', '.join(map(str, written))}")
    return 1 if failures else 0


def _slots(args):
    """(devices, runs at a time)."""
    devices = [device.strip() for device in args.devices.split(",")] if args.devices else []
    wrong = [device for device in devices if device != "cpu" and not device.isdigit()]
    if wrong or (args.devices is not None and not devices):
        raise PluginError(f"--devices is '{args.devices}'; expected cpu, or numbers of GPUs such as 0,1.")
    if args.jobs is not None and args.jobs < 1:
        raise PluginError(f"--jobs is {args.jobs}; expected at least 1.")
    if args.launcher == "submitit" and devices:
        raise PluginError("--devices is for this machine; on a cluster use --slurm gpus_per_node=1.")
    return devices, args.jobs or max(1, len(devices))


def _jobs(suite, args):
    if args.seeds is not None and args.seeds < 1:
        raise PluginError(f"--seeds is {args.seeds}; expected how many, at least 1.")
    for what, asked, known in (("arm", args.arms, suite.arms), ("pair", args.pairs, suite.pairs)):
        unknown = [name for name in asked or () if name not in known]
        if unknown:
            raise PluginError(
                f"{args.suite} has no {what} {', '.join(unknown)}; expected of {', '.join(map(str, known))}. "
                "(KEY VALUE words come last, behind another option.)"
            )
    seeds = list(range(1, args.seeds + 1)) if args.seeds else None
    found = jobs_of.expand(
        suite, args.output, seeds=seeds, arms=args.arms, pairs=args.pairs, overrides=jobs_of.parse_overrides(args.opts)
    )
    if not found:
        raise PluginError(f"{args.suite} has no run with these --arms on these --pairs. Name others.")
    return found


def _run(args, jobs, waiting, devices, at_once):
    from atsc_plugin.suites import runner, slurm

    write_configs(jobs)
    runner.check_configs(waiting)
    if args.launcher == "submitit":
        folder = Path(waiting[0].folder.parents[1]) / "slurm"
        cluster = slurm.Cluster(
            folder, waiting[0].facts["suite"], at_once, slurm.parse_options(args.slurm), args.cluster
        )
        return cluster.run(jobs, waiting)
    return runner.Runner(waiting, at_once, devices).run(jobs)
