"""Distil one teacher on digits100 by vanilla, KD, SimKD and ATSC, and compare.

The runs are those of configs/leaderboard/quickstart.yaml; they lie in
output/quickstart. A second call runs what is missing and prints the table.
"""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from atsc_plugin import cards, report
from atsc_plugin.commands import Parser, registered_cfg
from atsc_plugin.engine import run_dir
from atsc_plugin.errors import PluginError, started_as
from atsc_plugin.keys import flatten
from atsc_plugin.leaderboard import jobs, runner
from atsc_plugin.leaderboard.suite import read_suite
from atsc_plugin.quickstart import teacher
from atsc_plugin.quickstart.progress import BarRunner

EXAMPLES = """
  quickstart
  quickstart --fresh           run all of it again
  quickstart --train-teacher   train the teacher here, too: some minutes more
  quickstart SOLVER.EPOCHS 12 SOLVER.LR_DECAY_STAGES "[8, 10]"   trains longer
"""
SUITE = "configs/leaderboard/quickstart.yaml"
OWN_TEACHER = "quickstart_own_teacher"  # the folder of the runs whose teacher was trained here
AT_ONCE = 4  # as many as there are methods; each gets its share of the cores
NOTES = """
top-1: % of the test images after the last epoch; deployed: parameters in use.
digits100 is a toy, and this is one seed: it shows how fast the methods learn in
{epochs}, not how they rank. A few points mean nothing here, and with more
epochs the plain student comes near its teacher, too."""
NEXT = (
    "export {run} --format torch",
    "leaderboard --suite configs/leaderboard/quick.yaml",
    "doctor --cfg configs/cifar100/atsc.yaml",
)


def parser():
    options = Parser("quickstart", __doc__, EXAMPLES)
    add = options.add_argument
    add("--fresh", action="store_true", help="delete the runs of an earlier call and run them again")
    add("--train-teacher", action="store_true", help="train the teacher here instead of taking the one that ships")
    add("--output", default="./output", help="LOG.PREFIX of the runs (default: ./output)")
    add(
        "--make-teacher",
        metavar="FOLDER",
        help="only make the files of the shipped teacher anew, in FOLDER; TEACHER.CACHE keeps what was trained",
    )
    add("opts", nargs="*", metavar="KEY VALUE", help="keys for every run, e.g. SOLVER.EPOCHS 12")
    return options


def run(args):
    if args.make_teacher:
        card = teacher.make(registered_cfg(teacher.CONFIG, args.opts), args.make_teacher, args.opts)
        print(f"{card['student']}: {card['test_top1']:.2f} % on the test images; written to {args.make_teacher}")
        return 0
    runs = _runs(args)
    if args.fresh:
        _forget(runs)
    places = runner.Slots(min(AT_ONCE, len(runs), runner.cores()))
    _say_plan(runs, places)
    failures = _run(runs, places)
    for job, reason in failures or ():
        print(f"failed: {job.title}: {reason}; see {job.log}", file=sys.stderr)
    if failures is None:
        return 130
    done = [one for one in runs if one.done]
    if done:
        _say_result(done)
    return 1 if failures else 0


def _runs(args):
    """The runs of the suite; the shipped teacher is named to each unless one is trained here."""
    suite = read_suite(SUITE)
    if args.train_teacher:
        suite = replace(suite, name=OWN_TEACHER)
    else:
        file = teacher.copied(Path(args.output) / suite.name, again=args.fresh)
        suite = replace(suite, common={**suite.common, "DISTILLER.TEACHER_CKPT": str(file)})
    return jobs.expand(suite, args.output, overrides=jobs.parse_overrides(args.opts))


def _forget(runs):
    """Delete what an earlier call left; while one of the runs is being worked on, nothing is deleted."""
    for one in runs:
        run_dir.refuse_if_held(one.folder)
    for one in runs:
        run_dir.clear(one.folder)
        Path(f"{one.folder}.log").unlink(missing_ok=True)
    for file in runs[0].folder.parents[1].glob("measured-*.json"):
        file.unlink(missing_ok=True)


def _run(runs, places):
    """[(job, reason)] of the jobs that failed; None after an interruption."""
    if _all_finished(runs):
        print("all runs are finished; --fresh runs them again")
        return []
    if sys.stderr.isatty():
        print("checking the configurations ...", end="\r", file=sys.stderr, flush=True)  # the bar takes this line
    try:
        to_do = jobs.jobs_of(runs, jobs.check(runs))
    except PluginError as error:
        if not any(one.done for one in runs):
            raise
        raise PluginError(f"{error}\n--fresh deletes these runs and runs them again.") from error
    jobs.write_configs(runs)
    bar = BarRunner(to_do, places)
    try:
        return bar.run()
    except PluginError:
        if not bar.signals:
            raise
        again = shlex.join(word for word in sys.argv[1:] if word != "--fresh")
        print(f"interrupted; what is done is kept. Continue with:\n  {started_as()} {again}", file=sys.stderr)
        return None


def _all_finished(runs):
    """Whether every run is there with just these keys; seen without torch, so that the table comes at once."""

    def finished(one):
        there = flatten(run_dir.read_tree(one.folder / "cfg.yaml")) if one.done else {}
        return all(there.get(key) == value for key, value in one.keys.items())

    return all(map(finished, runs))


# ---- what is printed ----


def _say_plan(runs, places):
    """What is going to run, and with which teacher."""
    keys = runs[0].keys
    methods = ", ".join(one.record["display"] for one in _in_reading_order(runs))
    print(f"methods   {methods}")
    print(f"teacher   {_teacher_from(keys)}")
    print(
        f"students  {keys['DISTILLER.STUDENT']}, {_count(runs[0].epochs, 'epoch')} on {keys['DATASET.TYPE']}; "
        f"{places.at_once} at a time, {_count(places.threads, 'thread')} each",
        flush=True,
    )


def _teacher_from(keys):
    file = keys.get("DISTILLER.TEACHER_CKPT", "")
    stem = cards.deployed_stem(file)
    card = cards.read(f"{stem}.json") if stem else {}
    if card.get("command") == teacher.COMMAND:
        return f"{card['student']}, {card['test_top1']:.2f} % on the test images; it ships with the package"
    if file:
        return f"from {file}"
    epochs = _count(keys.get("TEACHER.EPOCHS"), "epoch")
    return f"{keys['DISTILLER.TEACHER']}, trained here for {epochs} unless that was done before"


def _in_reading_order(runs):
    """From the plain student to the method with the most parts; the suite lists them as they are best run."""
    order = ("vanilla", "kd", "simkd", "atsc")
    return sorted(runs, key=lambda one: order.index(one.arm) if one.arm in order else len(order))


def _say_result(done):
    folder = done[0].folder.parents[1]
    rows = [(one.record["display"], run_dir.read_json(one.folder, "result.json")) for one in _in_reading_order(done)]
    print("\n" + "\n".join(_table(rows)))
    print(NOTES.format(epochs=_count(done[0].epochs, "epoch")))
    page = report.write([one.folder for one in done], folder / "page")[0]
    shown = next((one.folder for one in done if one.arm == "atsc"), done[0].folder)
    print(f"\n{_bold('page')}  {page}")
    print(f"{_bold('run')}   {shown} (log.jsonl, deploy_last.safetensors)")
    for label, command in zip((_bold("next"), "    ", "    "), NEXT, strict=True):
        print(f"{label}  {started_as()} {command.format(run=shown)}")


def _table(rows):
    """Lines of the comparison: accuracies in percent on the test images after the last epoch."""
    lines = [("method", "top-1", "teacher before -> after", "deployed", "seconds")]
    for name, result in rows:
        size, seconds = f"{result['params_deployed']:,}", f"{result['seconds']:.0f}"
        lines.append((name, f"{result['top1_last']:.2f}", _teacher(result), size, seconds))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for name, *cells in lines:
        parts = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        text.append("   ".join([name.ljust(widths[0]), *parts]))
    return [_bold(text[0]), "-" * len(text[0]), *text[1:]]


def _teacher(result):
    """Before -> after for a teacher that learns; a teacher that stays has one accuracy, vanilla none."""
    before, after = result["teacher_top1_before"], result["teacher_top1_after"]
    if before is None:
        return "none"
    moved = any(network["moved"] for network in result["networks"] if network["name"].startswith("teacher"))
    return f"{before:.2f} -> {after:.2f}" if moved else f"{before:.2f}, frozen"


def _count(number, what):
    return f"{number} {what}{'' if number == 1 else 's'}"


def _bold(text):
    plain = not sys.stdout.isatty() or os.environ.get("NO_COLOR")
    return text if plain else f"\033[1m{text}\033[0m"
