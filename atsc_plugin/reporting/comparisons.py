"""Differences between the rows of a table and its references; last with last, best with best.

References are vanilla, KD and SimKD by their methods, or rows by their labels where a suite has others.
"""

import statistics
from dataclasses import dataclass, replace

from atsc_plugin.reporting.statistics import VERDICT_FROM, Difference, difference, holm, verdict

REFERENCES = {"NONE": "vanilla", "KD": "KD", "SIMKD": "SimKD"}


@dataclass(frozen=True)
class Compared:
    """A row against one reference: the primary comparison (last epoch) and the one of the best epochs."""

    last: Difference
    best: Difference
    p_holm: float | None = None
    family: int = 1  # pairs of networks in Holm's correction
    verdict: str = ""


def compare(tables, against=None):
    """Fill `differences` of every row; Holm over the tables of the same data for the same row and reference.

    `against`: labels of rows that stand as references instead of the usual methods.
    """
    found = {}
    for table in tables:
        others = _references(table, against)
        table.references = list(others)
        for title, other in others.items():
            for row in table.rows:
                compared = row is not other and row.runs and other.runs and _compare(row, other)
                if compared:
                    row.differences[title] = compared
                    found.setdefault((table.data, table.suite, row.label, title), []).append((row, other))
    for (_, _, _, title), members in found.items():
        _correct(title, members)


def _references(table, against):
    """{title: row} of what the rows of a table are compared with, in order."""
    if against:
        found = {name: table.row_called(name) for name in against}
    else:
        found = {title: table.row_of(method) for method, title in REFERENCES.items()}
    return {title: row for title, row in found.items() if row}


def _compare(row, other):
    alone = any(run.teacher_id is None for run in (*row.runs, *other.runs))
    units = {_unit(run, alone) for run in row.runs} & {_unit(run, alone) for run in other.runs}
    seeds = sorted({seed for _, seed in units}, key=str)
    if not seeds:
        return None
    sides = [[run for run in one.runs if _unit(run, alone) in units] for one in (row, other)]

    def of(name):
        return difference(*(_means(runs, seeds, name) for runs in sides))

    return Compared(of("top1_last"), of("top1_best"))


def _unit(run, alone):
    """What makes a pair: the teacher and the student's seed; the seed alone where one side has no teacher."""
    return None if alone else run.teacher_id, run.seed


def _means(runs, seeds, name):
    """A figure for each student seed, the mean over its teachers: runs of one seed begin alike, see the images in one
    order, and are not counted as independent of each other."""
    return [statistics.fmean(run.result[name] for run in runs if run.seed == seed) for seed in seeds]


def _correct(title, members):
    """Holm and the verdicts of one comparison over its tables; one with too few runs is not tested at all."""
    found = [row.differences[title].last for row, _ in members]
    tested = [k for k, one in enumerate(found) if one.p is not None and one.n >= VERDICT_FROM]
    adjusted = dict(zip(tested, holm([found[k].p for k in tested]), strict=True))
    for place, (row, other) in enumerate(members):
        p, missing = adjusted.get(place), [*row.missing, *other.missing]
        compared = row.differences[title]
        said = verdict(compared.last, p, missing)
        row.differences[title] = replace(compared, p_holm=p, family=max(1, len(tested)), verdict=said)
