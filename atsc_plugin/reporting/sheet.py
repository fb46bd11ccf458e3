"""leaderboard.csv: a line a row, every figure unrounded, for whoever reckons on."""

import csv
import io

from atsc_plugin.files import write_text
from atsc_plugin.reporting import adapting, cells, provenance, published


def write(tables, path):
    lines = [record(table, row) for table in tables for row in table.rows]
    names = list(dict.fromkeys(name for line in lines for name in line))
    sheet = io.StringIO()
    writer = csv.DictWriter(sheet, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(sheet.getvalue(), path)


def record(table, row):
    """{column: value} of one row."""
    line = {
        "dataset": table.data[0],
        "data": table.data[1],
        "pair": table.pair or "",
        "teacher": " / ".join(table.teachers),
        "student": table.student,
        "label": _plain(row.label),
        "method": row.method,
        "n": len(row.runs),
        "missing": len(row.missing),
        "collapsed": sum(run.collapsed is not None for run in row.runs),
        "overrides": cells.overrides(table),
        "trials": row.first.job.get("trials", ""),
    }
    if row.runs:
        line |= _figures(row) | _differences(row) | _teachers(row) | _beside(table, row)
    return line | {f"from_{name.replace(' ', '_')}": value for name, value in provenance.facts(row).items()}


def _plain(text):
    """A spreadsheet must not take a name for a formula."""
    return f"'{text}" if text[:1] in "=+-@" else text


def _figures(row):
    trained, deployed, extra = cells.sizes(row)
    memory = [run.result.get("peak_memory_mb") or 0 for run in row.runs]
    line = {"epochs": row.runs[0].result["epochs"], "selected_on": row.runs[0].result["selected_on"]}
    for name in ("last", "best"):
        found = row.spread(f"top1_{name}")
        line |= {f"top1_{name}_mean": found.mean, f"top1_{name}_std": found.std}
        line[f"top1_{name}_by_seed"] = " ".join(
            (f"{run.teacher_id.replace(' ', '_')}/" if row.crossed else "")
            + f"{run.seed}:{run.result[f'top1_{name}']:.4f}"
            for run in row.runs
        )
    return line | {
        "teacher_before": cells.accuracies(row.runs, "teacher_top1_before"),
        "teacher_after": cells.accuracies(row.runs, "teacher_top1_after"),
        "params_trained": trained,
        "params_deployed": deployed,
        "params_extra": extra,
        "seconds_per_epoch": cells.seconds_per_epoch(row),
        "images_per_second": row.median("images_per_second"),
        "peak_memory_mb": max(memory),
    }


def _differences(row):
    line = {}
    for name, compared in row.differences.items():
        stem = f"minus_{name.lower()}"
        for epoch in ("last", "best"):
            found = getattr(compared, epoch)
            line |= {
                f"{stem}_{epoch}": found.mean,
                f"{stem}_{epoch}_low": found.low,
                f"{stem}_{epoch}_high": found.high,
            }
        line |= {
            f"{stem}_n": compared.last.n,
            f"{stem}_p_holm": compared.p_holm,
            f"{stem}_p_welch": compared.last.p_welch,
        }
        line[f"{stem}_verdict"] = compared.verdict
    return line


def _teachers(row):
    """What the monitor logged of teachers that keep learning, under its own names, teacher by teacher."""
    found = adapting.figures(row.runs)
    return {adapting.FIGURES[name][0]: " / ".join(map(str, means)) for name, means in found.items() if means}


def _beside(table, row):
    if row.published is None:
        return {}
    return {
        "published": row.published.top1,
        "published_source": row.published.source,
        "reproduced": published.reproduced(table, row),
    }
