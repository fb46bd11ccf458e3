"""The statistics: differences between the rows of a table and its references, last epoch with last, best with best.

Fixed for every table: Student's t on differences paired by student seed (two-sided), Welch's t (unpaired) as a check,
no verdict below FEWEST pairs or where a run is missing. Several teachers of one seed are averaged first: runs of one
seed begin alike and see the images in one order, so they are not independent. p values are corrected by Holm's method
over all arms compared with the same reference, on all pairs of networks of the suite. A suite file may name one
`primary` comparison before its runs: that one is corrected over the pairs of networks alone.
"""

import statistics
import warnings
from dataclasses import dataclass

from atsc_plugin.errors import PluginError
from atsc_plugin.report.runs import Run
from atsc_plugin.report.table import Row, Table

FEWEST, LEVEL = 5, 0.05
ALL_PAIRS = 4  # rows up to which every row is a reference, where nobody named any


@dataclass
class Difference:
    """Mean of paired differences with its 95 % interval and p values; None where they are not defined."""

    mean: float
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_welch: float | None = None
    best: "Difference | None" = None  # the same for the best epochs
    p_holm: float | None = None
    family: int = 0  # how many tests p_holm is corrected for
    primary: bool = False
    verdict: str = ""


def compare(tables: list[Table], against: list[str] | None = None) -> None:
    """Fill every table's references and every row's differences from them."""
    if against:
        unknown = [name for name in against if not any(_called(table, name) for table in tables)]
        if unknown:
            labels = ", ".join(sorted({row.label for table in tables for row in table.rows}))
            raise PluginError(f"--against {', '.join(unknown)}: no such row; expected of {labels}.")
    families = {}
    for table in tables:
        table.references = _references(table, against)
        primary = [_called(table, str(name)) for name in table.suite.get("primary", ())]
        for other in table.references:
            for row in table.rows:
                found = _compared(row, other) if row is not other else None
                if found:
                    found.primary = len(primary) == 2 and row is primary[0] and other is primary[1]
                    row.differences[other.label] = found
                    family = (table.runs[0].get("suite"), table.trial, table.data, other.label, found.primary)
                    families.setdefault(family, []).append(found)
    for family in families.values():
        tested = [found for found in family if found.p is not None and found.n >= FEWEST]
        for found, p in zip(tested, holm([found.p for found in tested]), strict=True):
            found.p_holm, found.family = p, len(tested)
    for table in tables:
        _judge(table)


def difference(ours: list[float], theirs: list[float]) -> Difference:
    """Paired by place. Differences that are all the same have no spread: no interval and no p value."""
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    found = Difference(statistics.fmean(gaps), len(gaps))
    if max(gaps) - min(gaps) < 1e-9:
        return found
    from scipy import stats  # two seconds that a table of single seeds does not wait for

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, where one side has no spread
        test = stats.ttest_rel(ours, theirs)
        found.low, found.high = map(float, test.confidence_interval(1 - LEVEL))
        found.p = float(test.pvalue)
        found.p_welch = float(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
    return found


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down: the i-th smallest of m is multiplied by m - i + 1, never below the one before, at most 1."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = floor
    return adjusted


def verdict(found: Difference, missing: int = 0) -> str:
    """What may be said of a difference; `missing` runs ought to be there and are not."""
    if missing:
        return f"no verdict: {missing} run{'s' if missing > 1 else ''} missing"
    if found.n < FEWEST:
        return f"no verdict: {found.n} seed{'s' if found.n > 1 else ''} < {FEWEST}"
    if found.p_holm is None:
        return "no verdict: no spread"
    if found.p_holm >= LEVEL:
        return "no difference shown"
    said = "higher" if found.mean > 0 else "lower"
    return said if found.p_welch < LEVEL else f"{said} (Welch disagrees)"


def _called(table: Table, name: str) -> Row | None:
    return next((row for row in table.rows if row.runs and row.is_called(name)), None)


def _references(table, against):
    """What the others are compared with: the named rows, else the suite's, else all of a few, else students alone."""
    asked = against or map(str, [*table.suite.get("against", ()), *table.suite.get("primary", ())[1:]])
    named = list(dict.fromkeys(row for name in asked if (row := _called(table, name))))
    if named:
        return named
    rows = [row for row in table.rows if row.runs]
    return rows if len(rows) <= ALL_PAIRS else [row for row in rows if not row.first.teachers]


def _compared(row, other):
    """The Difference of two rows over the seeds (and teachers) that both have, None where they share none."""
    alone = any(run.teacher_id is None for run in (*row.runs, *other.runs))  # then the seed alone makes a pair

    def unit(run: Run):
        return None if alone else run.teacher_id, run.get("seed")

    units = set(map(unit, row.runs)) & set(map(unit, other.runs))
    seeds = sorted({seed for _, seed in units}, key=str)
    if not seeds:
        return None

    def means(one, name):
        runs = [run for run in one.runs if unit(run) in units]
        return [statistics.fmean(run.values[name] for run in runs if run.get("seed") == seed) for seed in seeds]

    found = difference(means(row, "top1_last"), means(other, "top1_last"))
    found.best = difference(means(row, "top1_best"), means(other, "top1_best"))
    return found


def _judge(table):
    """The verdicts. Rows that are each other's reference were tested in two families: the larger p counts for both."""
    both = [(row, other) for row in table.rows for other in table.references if other.label in row.differences]
    for row, other in both:
        found, back = row.differences[other.label], other.differences.get(row.label)
        if back and found.family and not (found.primary or back.primary):
            found.p_holm = back.p_holm = max(found.p_holm, back.p_holm)
    for row, other in both:
        found = row.differences[other.label]
        found.verdict = verdict(found, len(row.missing) + len(other.missing))
