"""Results to commit: docs/results/SUITE/{runs.csv, curves.csv, suite.json, README.md, figures.png}.

runs.csv has a line per run: every value of the flat table, and in `keys` the configuration keys that differ within the
suite. curves.csv has a line per run and epoch, rounded to six digits. suite.json has what holds for the whole suite:
notes, the references of its table, the keys that all runs share. README.md is the report of these files. A suite may
do without curves.csv, and then without the picture too.
"""

import os
import re
from pathlib import Path

from atsc_plugin.errors import PluginError
from atsc_plugin.files import whole_file, write_json
from atsc_plugin.report import markdown, plots
from atsc_plugin.report.layout import Section
from atsc_plugin.report.runs import Run, read_suite

FIRST = ("run", "suite", "pair", "arm", "method", "method_name", "status", "reason", "seed", "teacher", "student")
NOT_KEPT = ("LOG.", "EXPERIMENT.NAME", "EXPERIMENT.PROJECT", "EXPERIMENT.SEED", "EXPERIMENT.TAG")  # the run's own names
WRITTEN = "This page is written from `runs.csv`"
CHECKOUT = re.compile(r"/[^\s\"']*/(?=(?:atsc_plugin|tools)/\w+\.py\b)")  # where the code of a recorded command lay


def record(runs: list[Run], folder: Path, against: list[str] | None = None) -> str:
    """Add finished, failed and stopped runs to a folder's tables, in place of those of the same name; says what it did.

    A suite may get notes on its way: those of any run stay.
    `against`: rows that the page compares the others with; suite.json keeps them, unless the runs' suite names its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old, problems = read_suite(folder)
    if problems:
        raise PluginError(f"{folder}/{problems[0]}. Mend that line before more is recorded there.")
    new, whole = {}, {run.values["run"]: run for run in old}
    for run in runs:
        if (run.finished or run.missing) and run.path.resolve() != folder.resolve():
            name = run.values["run"]
            if name in new:
                raise PluginError(f"{run.path} and {new[name].path} are both called {name}; record one suite a folder.")
            new[name] = run
    replaced = len(new.keys() & whole.keys())
    whole |= new
    if len(suites := {run.get("suite") for run in whole.values()}) > 1:
        raise PluginError(
            f"{folder} would hold runs of {', '.join(sorted(map(str, suites)))}; record one suite a folder."
        )
    if not whole:
        raise PluginError(
            f"No finished run to record in {folder}. `report` without --record says what is wrong with each."
        )
    suite = {"about": "", **(old[0].suite if old else {})}
    notes = list(suite.get("notes") or ())
    for run in new.values():
        suite |= {name: value for name, value in run.suite.items() if value}  # what is empty says nothing
        notes += [note for note in run.suite.get("notes") or () if note not in notes]
    suite |= {"notes": notes} if notes else {}
    suite |= {"against": against} if against else {}
    _write(sorted(whole.values(), key=lambda run: (run.name, str(run.get("seed")).zfill(9))), folder, suite)
    return f"recorded: {len(new)} runs, {replaced} in place of older ones; {len(whole)} in {folder}"


def _write(runs, folder, suite):
    keys = [{key: value for key, value in run.keys.items() if not key.startswith(NOT_KEPT)} for run in runs]
    shared = {key: value for key, value in keys[0].items() if all(own.get(key, ...) == value for own in keys)}
    lines, curves = [], []
    for run, own in zip(runs, keys, strict=True):
        line = _without_checkout({**run.values, "keys": {key: own[key] for key in sorted(own.keys() - shared.keys())}})
        if isinstance(line.get("resumed"), list):
            line["resumed"] = [_without_checkout(entry) for entry in line["resumed"]]
        lines.append(line)
        for epoch in run.log:
            rounded = {name: float(f"{v:.6g}") if isinstance(v, float) else v for name, v in epoch.items()}
            curves.append({"run": run.values["run"], **rounded})
    write_json({**suite, "keys": dict(sorted(shared.items()))}, folder / "suite.json")
    markdown.write_csv(lines, folder / "runs.csv", FIRST)
    if curves:
        markdown.write_csv(curves, folder / "curves.csv", ("run", "epoch"))


def _without_checkout(entry):
    """A run, or one of its continuations, with a command that does not say where the code lay."""
    if not isinstance(entry, dict) or not isinstance(entry.get("command"), str):
        return entry
    return {**entry, "command": CHECKOUT.sub("", entry["command"])}


def write_page(folder: Path, sections: list[Section], leftovers: list[str], check: bool = False) -> bool:
    """README.md and its picture from the folder's tables; with `check` only say whether README.md is the one there.

    A README.md that was written by hand keeps its words: the tables go between its two marks.
    """
    picture, curves = "figures.png", (folder / "curves.csv").is_file()
    if curves and not check and plots.available():
        with whole_file(folder / picture) as file:
            file.write(plots.picture(sections))
    picture = picture if (folder / picture).is_file() else ""
    suite, readme = sections[0].table.suite, folder / "README.md"
    made = f"The runs were made by `atsc-plugin leaderboard --suite {suite.get('suite_file')}`."
    page = [
        f"{WRITTEN}{', `curves.csv`' if curves else ''} and `suite.json` beside it by",
        f"`atsc-plugin report --record {Path(os.path.relpath(folder)).as_posix()}`.",
    ]
    page += [*([made] if suite.get("suite_file") else []), "", *markdown.lines(sections, leftovers, picture)]
    if readme.is_file() and WRITTEN not in readme.read_text(encoding="utf-8").partition(markdown.BEGIN)[0]:
        text = markdown.between_marks(readme, page)  # a page written by hand, such as a plan made before the runs
    else:
        title = f"# {markdown.escaped(folder.resolve().name)}"
        text = "\n".join([title, "", str(suite.get("about") or "Recorded runs."), "", *page])
    return markdown.write_or_compare(text, readme, check)
