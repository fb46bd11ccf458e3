"""Differences between the rows of a table and its references; last with last, best with best.

References are vanilla, KD and SimKD by their methods, or rows by their labels where a suite has others.
"""

from dataclasses import dataclass, replace

from atsc_plugin.reporting.statistics import VERDICT_FROM, Difference, difference, holm, verdict

REFERENCES = {"NONE": "vanilla", "KD": "KD", "SIMKD": "SimKD"}


@dataclass(frozen=True)
class Compared:
    """A row against one reference: the primary comparison (last epoch) and the one of the best epochs.

    `seeds`: student seeds that both have; with several teachers there are more pairs than that.
    """

    last: Difference
    best: Difference
    seeds: int
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
    units = sorted(_by_unit(row, other, "top1_last").keys() & _by_unit(other, row, "top1_last").keys(), key=str)
    if not units:
        return None

    def of(name):
        ours, theirs = _by_unit(row, other, name), _by_unit(other, row, name)
        return difference([ours[unit] for unit in units], [theirs[unit] for unit in units])

    return Compared(of("top1_last"), of("top1_best"), len({_seed(unit) for unit in units}))


def _seed(unit):
    return unit[1] if isinstance(unit, tuple) else unit


def _by_unit(row, other, name):
    """{(teacher, seed): figure}; by seed alone where either side has no teacher, the mean over the other's teachers."""
    alone = any(run.teacher_id is None for run in (*row.runs, *other.runs))
    values = {}
    for run in row.runs:
        values.setdefault(run.seed if alone else (run.teacher_id, run.seed), []).append(run.result[name])
    return {unit: sum(figures) / len(figures) for unit, figures in values.items()}


def _correct(title, members):
    """Holm and the verdicts of one comparison over its tables; one with too few runs is not tested at all."""
    found = [row.differences[title].last for row, _ in members]
    seeds = [row.differences[title].seeds for row, _ in members]
    tested = [k for k, one in enumerate(found) if one.p is not None and seeds[k] >= VERDICT_FROM]
    adjusted = dict(zip(tested, holm([found[k].p for k in tested]), strict=True))
    for place, (row, other) in enumerate(members):
        p, missing = adjusted.get(place), [*row.missing, *other.missing]
        compared = row.differences[title]
        said = verdict(compared.last, p, missing, compared.seeds)
        row.differences[title] = replace(compared, p_holm=p, family=max(1, len(tested)), verdict=said)
