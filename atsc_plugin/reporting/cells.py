"""How a figure reads: the same words in the terminal, in Markdown and on the page; and the notes below a table."""

import statistics

from atsc_plugin.reporting import published
from atsc_plugin.reporting.rows import trial_of

TOYS = {
    "digits100": "digits100 is a toy of composed handwritten digits: it shows that things work and how fast they "
    "learn, not how methods rank on photographs."
}
SPLITS = {"val": "a validation split", "test": "the TEST split (mdistiller's habit: optimistic)"}


def spread(found, sign="±"):
    if found is None:
        return ""
    return f"{found.mean:.2f}" if found.std is None else f"{found.mean:.2f} {sign} {found.std:.2f}"


def difference(found):
    if found is None:
        return ""
    if found.low is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def p_value(p):
    return "" if p is None else "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def mean(values, digits=0):
    values = [value for value in values if isinstance(value, (int, float))]
    return f"{sum(values) / len(values):,.{digits}f}" if values else ""


def _flat(value):
    return value if isinstance(value, list) else [] if value is None else [value]


def accuracies(runs, name):
    """The accuracies teacher by teacher, 88.58 or 88.58 / 87.90; over runs of the same teacher their mean."""
    same = {}
    for run in runs:
        same.setdefault(tuple(_flat(run.result.get("teacher_top1_before"))), []).append(_flat(run.result.get(name)))
    means = [statistics.mean(values) for group in same.values() for values in zip(*group, strict=True)]
    return " / ".join(f"{top1:.2f}" for top1 in means)


def teacher(row):
    """The teacher's accuracy before and after, the second only where it changed."""
    before, after = (accuracies(row.runs, f"teacher_top1_{when}") for when in ("before", "after"))
    return before if before == after or not after else f"{before} → {after}"


def sizes(row):
    """trained, deployed, and what deployment carries beyond the bare student, in parameters."""
    result = row.runs[0].result
    extra = result["params_deployed"] - result.get("params_student", result["params_deployed"])
    return result["params_trained"], result["params_deployed"], extra


def seconds_per_epoch(row):
    return statistics.median(run.result["seconds"] / run.result["epochs"] for run in row.runs)


def seeds(runs):
    return ", ".join(str(seed) for seed in dict.fromkeys(run.seed for run in runs))


def count(row):
    """n, and of how many where some are missing."""
    return f"{len(row.runs)}" if not row.missing else f"{len(row.runs)} of {len(row.runs) + len(row.missing)}"


def devices(table):
    return sorted({run.result["device"] for run in table.runs})


def hosts(table):
    return sorted({f"{run.result['host']} {run.result['host_version']}" for run in table.runs})


def heading(table, twins=False):
    """One line that names the comparison; `twins`: another table has the same name over other images."""
    which = f" ({table.data[1]})" if twins else ""
    trial = overrides(table)
    return (
        f"{table.images}{which}: {table.pair_text}, {table.epochs} epochs on {', '.join(devices(table))}, "
        f"host {', '.join(hosts(table))}" + (f", with {trial}" if trial else "")
    )


def headings(tables):
    """The tables' headings, those of the same data set told apart by the images' identity."""
    names = [(table.data[0], table.pair_text, table.epochs) for table in tables]
    other = [len({t.data for t in tables if t.data[0] == table.data[0]}) > 1 for table in tables]
    return [
        heading(table, twins=names.count(name) > 1 and several)
        for table, name, several in zip(tables, names, other, strict=True)
    ]


def overrides(table):
    """Keys given at the suite runner's command line: such a table is a trial of the suite, not the suite."""
    pairs = next((trial_of(run) for run in table.runs if trial_of(run)), ())
    return ", ".join(f"{key} {value}" for key, value in pairs)


def troubles(table):
    """Collapsed, failed, stopped and unfinished runs, by name."""
    told = []
    for row in table.rows:
        lost = [
            f"{row.called(run)} in epoch {run.collapsed} (counted: {run.result['top1_last']:.2f})"
            for run in row.runs
            if run.collapsed
        ]
        told += [f"collapsed: {row.label} {', '.join(lost)}"] if lost else []
        told += [f"{row.label} seed {run.seed} {run.trouble}" for run in row.missing]
    return told


def teachers_note(table):
    """What the differences hold for: one teacher, or several crossed with the students' seeds."""
    crossed = {row.label: {(run.teacher_id, run.seed) for run in row.runs} for row in table.rows}
    teachers = {teacher for units in crossed.values() for teacher, _ in units} - {None}
    if not teachers:
        return None
    if len(teachers) == 1:
        return "Given this teacher: differences between methods hold for it alone. Spread is over student seeds."
    units = [found for found in crossed.values() if all(teacher for teacher, _ in found)]
    seeds_of = [{s for t, s in found if t == teacher} for found in units for teacher in teachers]
    if all(found == seeds_of[0] and found for found in seeds_of):
        return (
            f"{len(teachers)} teachers crossed with the student seeds: n counts the runs; differences are means over "
            "these teachers, paired by student seed, and hold for them alone."
        )
    if all(len({t for t, s in found if s == seed}) == 1 for found in units for _, seed in found):
        return "A teacher of its own for every student seed: spread is over teachers and students together."
    return f"{len(teachers)} teachers, not crossed with the student seeds in every row: read the rows with care."


def by_teacher(table):
    """Each row's mean behind each teacher, where there are several."""
    teachers = sorted({run.teacher_id for run in table.runs} - {None})
    if len(teachers) < 2:
        return None
    means = {
        row.label: [[run.result["top1_last"] for run in row.runs if run.teacher_id == one] for one in teachers]
        for row in table.rows
    }
    told = [
        f"{label} {' / '.join(f'{statistics.fmean(found):.2f}' for found in figures)}"
        for label, figures in means.items()
        if all(figures)
    ]
    return f"Top-1 behind each teacher ({' / '.join(teachers)}): {', '.join(told)}." if told else None


def notes(table):
    """Everything that must be said below one table."""
    told = [TOYS[table.data[0]]] if table.data[0] in TOYS else []
    splits = sorted({run.result["selected_on"] for run in table.runs})
    chosen = " / ".join(SPLITS.get(split, split) for split in splits)
    told.append(f"Top-1 in percent on the test split. Best epoch chosen on {chosen}.")
    told += [note for note in [teachers_note(table), by_teacher(table), tuning(table), beside_others(table)] if note]
    told += next((run.job["notes"] for run in table.runs if run.job.get("notes")), [])
    if any(row.published for row in table.rows):
        told.append(published.RULE)
    other = published.elsewhere(table)
    if other:
        told.append(
            "Published under another recipe or a mixture (SimKD's repository: CE + KD weighted 1 + 1, WRNs with extra "
            f"BNs), not comparable: {'; '.join(other)}."
        )
    return told


def tuning(table):
    """How many trials each method was tuned with, as the suite file says."""
    trials = {row.label: row.first.job["trials"] for row in table.rows if "trials" in row.first.job}
    if not trials:
        return None
    if len(set(trials.values())) == 1:
        number = next(iter(trials.values()))
        return (
            f"Tuning: {number} trials for every method." if number else "Tuning: none; settings as published or given."
        )
    told = ", ".join(f"{label} {number}" for label, number in trials.items())
    return f"Tuning trials are NOT equal: {told}."


def beside_others(table):
    at_once = {run.job.get("at_once", 1) for run in table.runs}
    if max(at_once) > 1:
        return f"Times were taken with up to {max(at_once)} runs on one machine at once: compare them with care."
    return None


def reference_names(table):
    """What the references that the table has are called, in order."""
    return [name for name in table.references if any(name in row.differences for row in table.rows)]
