"""Run a matrix of runs from one suite file: every arm on every pair with every seed, each run a process of its own.

Finished runs (those with a result.json) are skipped, and so are those that ATSC's guard stopped (stopped.json);
unfinished ones are resumed, failures are listed at the end while the rest goes on; then the page is written.
Imports no torch. The format of a suite file stands in leaderboard/suite.py.
"""

import sys

from atsc_plugin import report
from atsc_plugin.commands import Parser
from atsc_plugin.errors import PluginError
from atsc_plugin.leaderboard import jobs, plan, runner, slurm
from atsc_plugin.leaderboard.suite import read_suite

EXAMPLES = """
  leaderboard --suite configs/leaderboard/quick.yaml --jobs 2
  leaderboard --suite configs/leaderboard/quick.yaml --seeds 1 SOLVER.EPOCHS 1   a trial, in a folder of its own
  leaderboard --suite configs/leaderboard/cifar100_main.yaml --devices 0,1 --pairs res32x4_res8x4
  leaderboard --suite configs/leaderboard/cifar100_main.yaml --launcher submitit --slurm gpus_per_node=1 timeout_min=900
"""


def parser():
    options = Parser("leaderboard", "Run every arm of a suite with every seed, then write the page.", EXAMPLES)
    add = options.add_argument
    add("--suite", required=True, metavar="FILE", help="suite file, e.g. configs/leaderboard/quick.yaml")
    add("--seeds", type=int, metavar="N", help="seeds 1..N instead of the suite's")
    add("--arms", nargs="+", metavar="ARM", help="only these arms of the suite")
    add("--pairs", nargs="+", metavar="PAIR", help="only these pairs of the suite")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: one a device); they share the cores")
    add(
        "--devices",
        metavar="LIST",
        help="cpu, or GPUs such as 0,1, one a run; numbers count within CUDA_VISIBLE_DEVICES",
    )
    add("--output", default="./output", help="LOG.PREFIX of the runs (default: ./output)")
    add("--launcher", choices=("local", "submitit"), default="local", help="submitit: a SLURM cluster")
    add("--slurm", nargs="+", metavar="KEY=VALUE", help="options of submitit, e.g. timeout_min=900")
    add("--cluster", choices=("slurm", "local", "debug"), help="kind of submitit (default: found)")
    look = options.add_mutually_exclusive_group()
    look.add_argument("--dry-run", action="store_true", help="list the runs and what is done, start nothing")
    look.add_argument(
        "--plan", action="store_true", help="the same, with configurations checked, published figures, expected hours"
    )
    add("opts", nargs="*", metavar="KEY VALUE", help="keys for every run: a trial of the suite")
    return options


def run(args):
    suite = read_suite(args.suite)
    devices = _devices(args)
    runs = _runs(suite, args)
    folder, done, stopped = runs[0].folder.parents[1], sum(run.done for run in runs), sum(run.stopped for run in runs)
    slots = args.jobs or max(1, len(devices))
    measured_on = {"device": devices[0] if devices else None, "threads": max(1, runner.cores() // slots)}
    checked = {} if args.dry_run else jobs.check(runs, True, **measured_on) if args.plan else jobs.check(runs)
    ended = f"{done} done" + (f", {stopped} stopped by the guard" if stopped else "")
    print(f"{len(runs)} runs: {ended}, {len(runs) - done - stopped} to do, in {folder}", flush=True)
    if args.dry_run or args.plan:
        lines = plan.states(runs) if args.dry_run else plan.lines(runs, checked, slots)
        print("\n".join(lines))
        return 0
    to_do = jobs.jobs_of(runs, checked)
    failures = _run(args, runs, to_do, devices) if to_do else []
    for job, reason in failures:
        print(f"failed: {job.title}: {reason}; see {job.log}", file=sys.stderr)
    whole = jobs.expand(suite, args.output, overrides=jobs.parse_overrides(args.opts))
    there = {run.arm for run in (*runs, *whole) if run.done}  # the page shows all finished arms, not this call's alone
    if there:
        _write_page(folder, [arm for arm in (*suite.against, *suite.primary[1:]) if arm in there])
    return 1 if failures else 0


def _devices(args):
    if args.jobs is not None and args.jobs < 1:
        raise PluginError(f"--jobs is {args.jobs}; expected at least 1.")
    if args.launcher == "submitit" and args.devices is not None:
        raise PluginError("--devices is for this machine; on a cluster use --slurm gpus_per_node=1.")
    return [] if args.devices is None else runner.devices_of(args.devices)


def _runs(suite, args):
    if args.seeds is not None and args.seeds < 1:
        raise PluginError(f"--seeds is {args.seeds}; expected how many, at least 1.")
    for what, asked, known in (("arm", args.arms, suite.arms), ("pair", args.pairs, suite.pairs)):
        unknown = [name for name in asked or () if name not in known]
        if unknown:
            raise PluginError(
                f"{args.suite} has no {what} {', '.join(unknown)}; expected of {', '.join(map(str, known))}. "
                "(KEY VALUE options come last, behind another option.)"
            )
    found = jobs.expand(
        suite,
        args.output,
        seeds=range(1, args.seeds + 1) if args.seeds else None,
        arms=args.arms,
        pairs=args.pairs,
        overrides=jobs.parse_overrides(args.opts),
    )
    if not found:
        raise PluginError(f"{args.suite} has no run with these --arms, --pairs and --seeds. Name others.")
    return found


def _run(args, runs, to_do, devices):
    """[(job, reason)] of the jobs that failed."""
    if args.launcher == "submitit":
        folder, name = runs[0].folder.parents[1] / "slurm", runs[0].record["suite"]
        places = slurm.Cluster(folder, name, args.jobs, slurm.parse_options(args.slurm), args.cluster)
    else:
        places = runner.Slots(args.jobs or max(1, len(devices)), devices)
    jobs.write_configs(runs)
    return runner.Runner(to_do, places).run()


def _write_page(folder, against):
    """The table and page of all finished runs of the suite: the one place that calls the report."""
    print("\n".join(report.summary([folder], against)))
    written = report.write([folder], folder / "page", against)
    print(f"written: {', '.join(map(str, written))}")
