"""The table for the terminal, and the differences below it where there are several seeds."""

from atsc_plugin.reporting import cells
from atsc_plugin.reporting.statistics import VERDICT_FROM

COLUMNS = ("method", "seeds", "top-1 last", "top-1 best", "vs vanilla", "teacher", "deployed", "trained", "images/s",
           "seconds")  # fmt: skip


def page(tables, skipped, lost):
    """The lines of the whole comparison."""
    lines = []
    for table, heading in zip(tables, cells.headings(tables), strict=True):
        lines += [heading, "", *aligned([list(COLUMNS), *map(_cells, table.rows)]), ""]
        lines += _differences(table)
        lines += [f"  {trouble}" for trouble in cells.troubles(table)]
    lines += list(dict.fromkeys(note for table in tables for note in cells.notes(table)))
    if tables and max(len(row.runs) for table in tables for row in table.rows) == 1:
        lines.append("One seed a row: differences of a point or two mean nothing yet; run more with EXPERIMENT.SEED.")
    return lines + leftovers(tables, skipped, lost)


def leftovers(tables, skipped, lost):
    """What is not in the tables, and why."""
    unfinished = [run for table in tables for row in table.rows for run in row.unfinished]
    unfinished += [run for run in lost if run.trouble == "unfinished"]
    told = [f"unfinished: {folder}" for folder in dict.fromkeys(run.folder for run in unfinished)]
    told += [f"{run.folder}: {run.trouble}" for run in lost if run.trouble != "unfinished"]
    return told + [f"skipped: {folder}: {why}" for folder, why in skipped]


def _cells(row):
    if not row.runs:
        return [row.label, cells.count(row), *[""] * (len(COLUMNS) - 2)]
    gain = row.differences.get("vanilla")
    trained, deployed, _ = cells.sizes(row)
    return [
        row.label,
        cells.count(row),
        cells.spread(row.spread("top1_last"), "+-"),
        cells.spread(row.spread("top1_best"), "+-"),
        "" if gain is None else f"{gain.last.mean:+.2f}",
        cells.accuracies(row.runs, "teacher_top1_before"),
        f"{deployed:,}",
        f"{trained:,}",
        f"{row.median('images_per_second'):.0f}",
        f"{row.median('seconds'):.0f}",
    ]


def _differences(table):
    """Differences to KD and SimKD with their intervals, last epoch; nothing for single seeds."""
    names = [name for name in cells.reference_names(table) if name != "vanilla"]
    rows = []
    for row in table.rows:
        told = [row.differences.get(name) for name in names]
        if not any(found and found.last.n > 1 for found in told):
            continue
        line = [row.label]
        for found in told:
            line += [cells.difference(found.last), found.verdict] if found else ["", ""]
        rows.append(line)
    if not rows:
        return []
    head = ["last epoch, paired by seed"]
    for name in names:
        head += [f"minus {name} [95 %]", "verdict"]
    told = f"  Verdicts from {VERDICT_FROM} seeds on: paired t, Holm over the pairs of networks, Welch as a check."
    return [*(f"  {line}" for line in aligned([head, *rows], left=True)), told, ""]


def aligned(rows, left=False):
    """Rows of text as columns, a rule below the first."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            f"{cell:<{width}}" if column == 0 or left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
