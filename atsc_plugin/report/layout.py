"""What a report says: every table as a Section of grids and notes, which text, Markdown, HTML and CSV render alike.

A Grid's rows are dicts {column: Cell}. A Cell has its text, the number behind it, and further figures for the CSV.
"""

import shlex
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from atsc_plugin.report import published
from atsc_plugin.report.compare import FEWEST, Difference
from atsc_plugin.report.runs import Run, of_teachers
from atsc_plugin.report.table import Row, Table

TOYS = {
    "digits100": "digits100 is a toy of composed handwritten digits. It shows that things work and how fast they "
    "learn, not how methods rank on photographs."
}
SPLITS = {"val": "a validation split", "test": "the TEST split (mdistiller's habit: optimistic)"}
TESTS = (
    "Test: last epoch, Student's t on differences paired by student seed (two-sided). p (Holm) is corrected over all "
    "arms compared with the same reference, on all pairs of networks; of two rows that are each other's reference the "
    "larger p counts. Welch's unpaired t is a check. Intervals are not corrected. "
    f"No verdict below {FEWEST} seeds or with a missing run."
)
PRIMARY = "Primary: named in the suite file before the runs, and corrected over the pairs of networks alone."
COST = (
    "trained: parameters that the optimizer moves; deployed: parameters that inference needs; extra: deployed minus "
    "the bare student. Times are training alone, without evaluation, median over runs. Memory is the device's, or the "
    "process's on a CPU."
)
TO_KD = "To KD: s / epoch over KD's."
TEACHERS = (
    "Last epoch, on the images that choose the best epoch, mean over runs, one teacher beside the other. Agreement: "
    "how often the teacher predicts what it predicted at the start. Scale: standard deviation of its map against the "
    "start's. Motion: how far the map moved, as a share of its norm; drift: the same for the weights. kappa: DRIFT / "
    "(FEAT var F_t). Collapsed: runs that lost a teacher. BN's batch statistics alone move a map: compare motion with "
    "that of a teacher whose weights stay."
)
AGAIN = "To repeat a row, check out its (first) commit and run the command: later versions may name keys otherwise."
MONITORED = {  # column: (name in log.jsonl, format)
    "agreement": ("teacher_agreement", "{:.3f}"),
    "scale": ("feature_scale", "{:.3f}"),
    "motion": ("feature_motion", "{:.3f}"),
    "drift of kernels": ("drift_kernels", "{:.2%}"),
    "drift of scales, shifts, biases": ("drift_vectors", "{:.2%}"),
    "kappa": ("kappa", "{:.2f}"),
}
MINUS, BEFORE = "minus {} [95 %]", "teacher_top1_before"


class Cell(NamedTuple):
    text: str = ""
    value: float | None = None
    more: dict[str, Any] = {}  # {what the CSV adds to the column's name: value}
    links: tuple[tuple[str, dict[str, Path]], ...] = ()  # (what a run is called, {text: file})


class Grid(NamedTuple):
    title: str
    rows: list[dict[str, Cell]]
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> dict[str, bool]:
        """{title: whether it holds numbers} of the columns that are not empty."""
        names = [name for name in self.rows[0] if any(row[name].text or row[name].links for row in self.rows)]
        return {name: any(row[name].value is not None for row in self.rows) for name in names}


class Section(NamedTuple):
    """One table of the report."""

    heading: str
    table: Table
    results: Grid
    more: list[Grid]
    warnings: list[str]
    notes: list[str]


def sections(tables: list[Table]) -> list[Section]:
    lines = []
    for table in tables:
        devices, hosts = (", ".join(dict.fromkeys(map(name, table.runs))) for name in (_device, _host))
        pair = table.pair.replace("->", "→")
        line = f"{table.images}: {pair}, {table.epochs:g} epoch{'s' * (table.epochs != 1)} on {devices}, host {hosts}"
        lines.append(line + (f", with {table.trial}" if table.trial else ""))
    made = []
    for line, table in zip(lines, tables, strict=True):
        identity = ", ".join(str(part) for part in table.data[1:] if part)  # of images that are called alike
        heading = f"{line} ({identity})" if lines.count(line) > 1 else line
        more = [make(table) for make in (tests, teachers, cost, figures_elsewhere, sources)]
        grids = [grid for grid in more if grid.rows]
        made.append(Section(heading, table, results(table), grids, warnings(table), notes(table)))
    return made


def results(table: Table, front: bool = False) -> Grid:
    """The headline. For a terminal and a front page: with verdicts, sizes and times."""
    measured = [name for name in ("ece", "nll") if any(row.figures(name) for row in table.rows)]
    rows = []
    for row in table.rows:
        line = {"method": Cell(row.label), "n": _count(row), "top-1 last": _spread(row, "top1_last")}
        line |= {} if front else {"top-1 best": _spread(row, "top1_best")}
        for other in table.references:
            line[MINUS.format(other.label)] = _difference(row.differences.get(other.label), front)
        line["teacher before → after"] = _teacher(row)
        line |= {name.upper(): _spread(row, name, 4) for name in measured}
        if front:
            line["deployed"], line["seconds"] = _number(row.any("params_deployed")), _number(row.median("seconds"))
        elif any(one.published for one in table.rows):
            line["published"] = _number(row.published and float(row.published["top1"]), "{:.2f}")
            line["reproduced"] = Cell(published.reproduced(table, row))
        rows.append(line)
    return Grid("", rows)


def tests(table: Table) -> Grid:
    rows, notes, sizes = [], [TESTS], set()
    for row in table.rows:
        for name, found in row.differences.items():
            if found.n > 1:
                p = [Cell(_p(p), p) if found.family else Cell() for p in (found.p, found.p_holm, found.p_welch)]
                line = {"method": Cell(row.label), "against": Cell(name), "n": _number(found.n)}
                line |= {"last − last [95 %]": _difference(found), "p": p[0], "p (Holm)": p[1], "p (Welch)": p[2]}
                line["verdict"] = Cell(found.verdict + (" (primary)" if found.primary else ""))
                rows.append(line | {"best − best [95 %]": _difference(found.best)})
                sizes |= {found.family} - {0}
    notes += [f"Tests in a family: {', '.join(map(str, sorted(sizes)))}."] if sizes else []
    notes += [PRIMARY] if any("(primary)" in row["verdict"].text for row in rows) else []
    return Grid("Differences and their tests", rows, tuple(notes))


def teachers(table: Table) -> Grid:
    """What teachers that keep learning did meanwhile."""
    rows = []
    for row in table.rows:
        last = [run.log[-1] for run in row.runs if run.log]
        if any(of_teachers(line, "teacher_agreement") for line in last):
            line = {"method": Cell(row.label), "n": _number(len(row.runs))}
            for column, (logged, form) in MONITORED.items():
                each = [found for entry in last if (found := of_teachers(entry, logged))]
                means = [statistics.fmean(values) for values in zip(*each, strict=False)]
                line[column] = Cell(" / ".join(map(form.format, means)), means[0] if means else None)
            rows.append(line | {"collapsed": _number(sum(run.collapsed is not None for run in row.runs))})
    return Grid("Teachers during training", rows, (TEACHERS,))


def _epoch_seconds(row: Row) -> float:
    return statistics.median(run.get("seconds") / run.get("epochs") for run in row.runs)


def cost(table: Table) -> Grid:
    rows, kd = [], [_epoch_seconds(row) for row in table.rows if row.runs and row.plain and row.any("method") == "KD"]
    for row in table.rows:
        figures = {name: row.any(name) for name in ("epochs", "params_trained", "params_deployed", "params_student")}
        if row.runs:
            epochs, trained, deployed, student = figures.values()
            extra = None if student is None else deployed - student
            line = {"epochs": epochs, "trained": trained, "deployed": deployed, "extra": extra}
            line |= {"seconds": row.median("seconds"), "images/s": row.median("images_per_second")}
            line["s / epoch"] = _epoch_seconds(row)
            line["to KD"] = line["s / epoch"] / kd[0] if kd else None
            line["peak MB"] = max(row.figures("peak_memory_mb"), default=None)
            forms = {"extra": "{:+,}", "s / epoch": "{:.1f}", "to KD": "{:.2f}"}
            cells = {name: _number(value, forms.get(name, "{:,.0f}")) for name, value in line.items()}
            rows.append({"method": Cell(row.label), **cells})
    return Grid("Cost", rows, (COST, TO_KD) if kd else (COST,))


def figures_elsewhere(table: Table) -> Grid:
    rows = []
    for row in table.rows:
        if one := row.published:
            note = "; also ".join([one["note"], *one["others"]])
            line = {"method": Cell(row.label), "published": Cell(one["top1"], float(one["top1"]))}
            rows.append(line | {"source": Cell(one["source"]), "note": Cell(note)})
    return Grid("Published figures", rows, (published.RULE,))


def sources(table: Table) -> Grid:
    """Where a row comes from, and the command that makes its first run again."""
    rows = []
    for row in table.rows:
        runs, first = row.runs or row.missing or row.unfinished, row.first
        keys = ", ".join(f"{key} {value}" for key, value in first.get("set", {}).items())
        named = str(first.get("command", "")).partition(" --cfg ")[2].split()[:1] or ["cfg.yaml of the run"]
        taught = _every(runs, "teacher_from") or sorted({run.teacher_id for run in runs} - {None})
        line = {"method": row.label, "config": f"{', '.join(_every(runs, 'cfg') or named)} {keys}".strip()}
        line |= {name: ", ".join(_every(runs, name.removesuffix("s"))) for name in ("seeds", "commit", "torch")}
        line |= {"teachers": ", ".join(taught), "again": again(first)}
        rows.append({name: Cell(text) for name, text in line.items()} | {"files": Cell(links=_files(row))})
    return Grid("Where the rows come from", rows, (AGAIN,))


def _files(row):
    """What the row's runs left and a reader may open."""
    wanted = (("log", "log.jsonl"), ("config", "cfg.yaml"), ("result", "result.json"))
    every = [(row.naming(run), {text: run.path / name for text, name in wanted}) for run in (*row.runs, *row.missing)]
    there = [(name, {text: path for text, path in files.items() if path.is_file()}) for name, files in every]
    return tuple((name, files) for name, files in there if files)


def again(run: Run) -> str:
    """A command that trains a run anew. A run of a suite is made by the suite, with the run that leaves its teacher."""
    argv = ["atsc-plugin", "leaderboard", "--suite", run.suite.get("suite_file", ""), "--arms"]
    argv += [name for name in (run.get("adapted_by"), run.get("arm")) if name]
    argv += [*(["--pairs", run.get("pair")] if run.get("pair") else []), "--output", "again"]
    argv += map(str, run.get("overrides", []))
    if not run.suite.get("suite_file"):
        if not (run.path / "cfg.yaml").is_file():
            return run.get("command", "")
        argv = ["atsc-plugin", "train", "--cfg", str(run.path / "cfg.yaml"), "LOG.PREFIX", "again"]
        argv += ["EXPERIMENT.NAME", run.path.parent.name, "EXPERIMENT.SEED", str(run.get("seed"))]
    return shlex.join(argv)


def warnings(table: Table) -> list[str]:
    """What a reader must see first: trials, and collapsed, failed and stopped runs by name."""
    notes = [f"A trial, not the suite: {table.trial}."] if table.trial else []
    for row in table.rows:
        collapsed = {run: run.collapsed for run in row.runs if run.collapsed}
        came_back = {run: run.came_back for run in row.runs if run.came_back}
        notes += _fallen(row, collapsed, "collapsed and are counted")
        notes += _fallen(row, came_back, "had a teacher that fell below half of its start and came back")
        if row.missing:
            first, seeds = row.missing[0], ", ".join(str(run.get("seed")) for run in row.missing)
            notes.append(f"{row.label}: no result for seed {seeds}. Seed {first.get('seed')} {first.trouble}")
    return notes


def _fallen(row, epochs, what):
    """The runs of a row in which a teacher was lost, with the epoch and the student's accuracy in the end."""
    which = "; ".join(f"{row.naming(run)} in epoch {n} ({run.get('top1_last'):.2f})" for run, n in epochs.items())
    return [f"{row.label}: {len(epochs)} of {len(row.runs)} runs {what}: {which}."] if epochs else []


def notes(table: Table) -> list[str]:
    """What must be said below a table."""
    notes = [TOYS[table.data[0]]] if table.data[0] in TOYS else []
    chosen = " / ".join(SPLITS.get(split, split) for split in sorted(_every(table.runs, "selected_on")))
    notes.append(f"Top-1 in percent on the test split, mean ± standard deviation. Best epoch chosen on {chosen}.")
    notes += _teachers_note(table)
    trials = {}
    for row in table.rows:
        if row.first.get("trials") is not None:
            trials.setdefault(row.first.get("trials"), []).append(row.label)
    if len(trials) > 1:
        each = (f"{number}: {'; '.join(labels)}." for number, labels in sorted(trials.items()))
        notes.append(f"Tuning trials are NOT equal. {' '.join(each)}")
    elif trials:
        notes.append(f"Tuning trials per method: {min(trials)}.")
    at_once = max(run.get("at_once", 1) for run in table.runs)
    notes += [f"Up to {at_once} runs shared the machine: compare times with care."] if at_once > 1 else []
    notes += map(str, table.suite.get("notes", []))
    if other := published.elsewhere(table):
        notes.append(f"Published under another recipe, not comparable: {'; '.join(other)}.")
    return notes


def _teachers_note(table):
    """What the differences hold for: one teacher, or several crossed with the student seeds."""
    units = {row.label: {(run.teacher_id, run.get("seed")) for run in row.runs} for row in table.rows}
    names = sorted({teacher for found in units.values() for teacher, _ in found} - {None})
    if len(names) < 2:
        one = "One teacher: differences between methods hold for it alone. The spread is over student seeds."
        return [one] if names else []
    taught = [found for found in units.values() if found and all(teacher for teacher, _ in found)]
    seeds = [{seed for teacher, seed in found if teacher == name} for found in taught for name in names]
    if all(found == seeds[0] and found for found in seeds):
        said = f"{len(names)} teachers crossed with the student seeds: n counts the runs; differences are means over "
        said += "these teachers, paired by student seed, and hold for them alone."
    elif all(len({t for t, s in found if s == seed}) == 1 for found in taught for _, seed in found):
        said = "Every student seed has a teacher of its own: the spread is over teachers and students together."
    else:
        said = f"{len(names)} teachers, not crossed with the student seeds in every row: read the rows with care."
    means = []
    for row in table.rows:
        each = [[run.get("top1_last") for run in row.runs if run.teacher_id == name] for name in names]
        means += [f"{row.label} {' / '.join(f'{statistics.fmean(found):.2f}' for found in each)}"] if all(each) else []
    return [said] + ([f"Top-1 behind each teacher ({' / '.join(names)}): {'; '.join(means)}."] if means else [])


def _device(run):
    return run.get("device").replace("(1 threads)", "(1 thread)")  # as older runs wrote it


def _host(run):
    """The host and its version, which names the embedded host itself."""
    host, version = run.get("host"), run.get("host_version")
    return version if version.startswith(host) else f"{host} {version}"


def _number(value: float | None, form: str = "{:,.0f}") -> Cell:
    return Cell() if value is None else Cell(form.format(value), value)


def _count(row: Row) -> Cell:
    """n, and of how many where some are missing."""
    done, missing = len(row.runs), len(row.missing)
    return Cell(f"{done} of {done + missing}" if missing else f"{done}", done, {"missing": missing})


def _spread(row: Row, name: str, digits: int = 2) -> Cell:
    values = row.figures(name)
    if not values:
        return Cell()
    mean, std = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    each = "; ".join(f"{row.naming(run)}: {run.get(name)}" for run in row.runs if run.get(name) is not None)
    text = f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")
    return Cell(text, mean, {"std": std, "by seed": each})


def _difference(found: Difference | None, judged: bool = False) -> Cell:
    if found is None:
        return Cell()
    text = f"{found.mean:+.2f}" + ("" if found.low is None else f" [{found.low:+.2f}, {found.high:+.2f}]")
    more = {name: getattr(found, name) for name in ("n", "low", "high", "p", "p_holm", "p_welch", "family", "verdict")}
    return Cell(text + (f" {found.verdict}" if judged and found.n >= FEWEST else ""), found.mean, more)


def _p(p: float | None) -> str:
    return "" if p is None else "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _teacher(row: Row) -> Cell:
    """The teacher's accuracy before and after, the second only where it changed."""
    before, after = _accuracies(row.runs, BEFORE), _accuracies(row.runs, "teacher_top1_after")
    return Cell(before if before == after or not after else f"{before} → {after}")


def _accuracies(runs, name):
    """88.58, or 88.58 / 87.90 for several teachers: for each its mean over the runs; of more than three the range."""
    same = {}
    for run in runs:
        before, each = (value if isinstance(value, list) else [value] for value in map(run.get, (BEFORE, name)))
        same.setdefault(tuple(before), []).append([top1 for top1 in each if top1 is not None])
    means = [statistics.fmean(tops) for group in same.values() for tops in zip(*group, strict=False)]
    if len(same) > 3 and means:
        return f"{statistics.fmean(means):.2f} ({min(means):.2f} to {max(means):.2f})"
    return " / ".join(f"{mean:.2f}" for mean in means)


def _every(runs, *names):
    """The different values that runs have for a field (or fields), as text."""
    every = {}
    for run in runs:
        values = [run.get(name) for name in names]
        if values[0] is not None:
            values = values[0] if isinstance(values[0], list) else [" ".join(map(str, values))]
            every[", ".join(map(str, values))] = True
    return list(every)
