"""One table of several run directories: accuracy of the last and the best epoch, the teacher, the size, the speed.

Reads result.json files only: no torch, no host, nothing is run. Runs that differ only in their seed share a row. The
headline is the last epoch; what chose the best epoch is said below the table.
"""

import argparse
import json
import statistics
from pathlib import Path

from atsc_plugin.engine.run_files import read_json
from atsc_plugin.errors import PluginError

COLUMNS = (
    "method",
    "seeds",
    "top-1 last",
    "top-1 best",
    "vs vanilla",
    "teacher",
    "deployed",
    "trained",
    "images/s",
    "seconds",
)
TOYS = {
    "digits100": "digits100 is a toy of composed handwritten digits: it shows that things work and how fast they "
    "learn, not how methods rank on photographs."
}


def parser():
    words = argparse.ArgumentParser(
        "report", description="Compare finished runs in one table.", epilog="example: report output/quickstart"
    )
    words.add_argument("folders", nargs="+", help="run directories, or folders that hold some")
    words.add_argument("--json", action="store_true", help="print the results as a JSON list instead")
    return words


def run(args):
    results, unfinished = collect(args.folders)
    if not results:
        raise PluginError(
            f"No result.json under {', '.join(args.folders)}; expected finished runs (train writes it last)."
        )
    print(json.dumps(results, indent=2) if args.json else "\n".join(page(results, unfinished)))
    return 0


def collect(folders):
    """(results of all finished runs, directories of unfinished ones) under the folders."""
    results, unfinished = [], []
    for folder in folders:
        if not Path(folder).is_dir():
            raise PluginError(f"{folder} is no directory; expected a run directory or a folder of some.")
        for config in sorted(Path(folder).rglob("cfg.yaml")):
            result = read_json(config.parent, "result.json")
            if result is None:
                unfinished.append(str(config.parent))
            else:
                results.append({**result, "run": str(config.parent)})
    return results, unfinished


def page(results, unfinished):
    """The lines of the whole comparison, one block a data set, pair and length."""
    blocks = {}
    for result in results:
        blocks.setdefault((result["dataset"], result["student"], result["epochs"]), []).append(result)
    lines = []
    for (data, student, epochs), members in blocks.items():
        lines += [_heading(data, student, epochs, members), "", *_table(members), ""]
    lines += [TOYS[data] for data in dict.fromkeys(result["dataset"] for result in results) if data in TOYS]
    chosen = {"val": "a validation split", "test": "the TEST split (mdistiller's habit: optimistic)"}
    splits = sorted({result["selected_on"] for result in results})
    lines.append(f"Top-1 in percent on the test split. Best epoch chosen on {' / '.join(chosen[s] for s in splits)}.")
    if any(result["teacher"] is not None for result in results):
        lines.append(
            "One teacher a table: differences between methods hold given this teacher. Spread is over student seeds."
        )
    if len(results) == 1 or max(len(runs) for runs in _groups(results).values()) == 1:
        lines.append("One seed a row: differences of a point or two mean nothing yet; run more with EXPERIMENT.SEED.")
    lines += [f"unfinished: {folder}" for folder in unfinished]
    return lines


def _heading(data, student, epochs, members):
    teachers = sorted({result["teacher"] for result in members if result["teacher"]})
    hosts = sorted({f"{result['host']} {result['host_version']}" for result in members})
    devices = sorted({result["device"] for result in members})
    pair = f"{', '.join(teachers)} -> {student}" if teachers else student
    return f"{data}: {pair}, {epochs} epochs on {', '.join(devices)}, host {', '.join(hosts)}"


def _groups(members):
    groups = {}
    for result in members:
        name = Path(result["run"]).parent.name
        groups.setdefault((result["dataset"], result["method"], name), []).append(result)
    return groups


def _table(members):
    groups = _groups(members)
    plain = [result["top1_last"] for result in members if result["method"] == "NONE"]
    names = [key[1] for key in groups]
    rows = []
    for (_, method, run_name), runs in sorted(groups.items(), key=lambda item: (item[0][1] != "NONE", item[0][1:])):
        label = {"NONE": "vanilla"}.get(method, method) if names.count(method) == 1 else run_name
        last = [result["top1_last"] for result in runs]
        gain = statistics.mean(last) - statistics.mean(plain) if plain and method != "NONE" else None
        teachers = {result["teacher_top1_before"] for result in runs} - {None}
        first = runs[0]
        rows.append(
            [
                label,
                str(len(runs)),
                _spread(last),
                _spread([result["top1_best"] for result in runs]),
                "" if gain is None else f"{gain:+.2f}",
                " / ".join(f"{top1:.2f}" for top1 in sorted(teachers)),
                f"{first['params_deployed']:,}",
                f"{first['params_trained']:,}",
                f"{statistics.mean(result['images_per_second'] for result in runs):.0f}",
                f"{statistics.mean(result['seconds'] for result in runs):.0f}",
            ]
        )
    return _aligned([list(COLUMNS), *rows])


def _spread(values):
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.2f}"


def _aligned(rows):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            f"{cell:<{width}}" if column == 0 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
