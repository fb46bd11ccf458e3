"""What the teachers did meanwhile: the monitor's figures of the last epoch, for rows whose teachers keep learning."""

import statistics

from atsc_plugin.reporting.runs import of_teachers

# column: (name in log.jsonl, how it is written); the drifts are shares of the start's norm
FIGURES = {
    "agreement": ("teacher_agreement", "{:.3f}"),
    "scale": ("feature_scale", "{:.3f}"),
    "motion": ("feature_motion", "{:.3f}"),
    "drift of kernels": ("drift_kernels", "{:.2%}"),
    "of scales, shifts, biases": ("drift_vectors", "{:.2%}"),
    "kappa": ("kappa", "{:.2f}"),
}
NOTE = (
    "Last epoch, on the images that choose the best one, mean over runs, one teacher beside the other. Agreement: "
    "how often it predicts what it predicted at the start; scale: std of its map against the start's; motion: how far "
    "the map moved, as a share of its norm, and so for its weights; kappa: DRIFT / (FEAT var F_t); lost: runs that "
    "collapsed. Batch statistics alone move a map: measure motion against that of a still trunk."
)


def table_of(table):
    """(columns, rows of cells) of a comparison; no rows where no teacher kept learning. A cell is (text, number)."""
    rows = []
    for row in table.rows:
        found = figures(row.runs)
        if not found["agreement"]:
            continue
        lost = sum(run.collapsed is not None for run in row.runs)
        cells = [(written(name, means), means[0] if means else None) for name, means in found.items()]
        rows.append([(row.label, None), (str(len(row.runs)), len(row.runs)), *cells, (str(lost), lost)])
    return ["method", "n", *FIGURES, "lost"], rows


def written(name, means):
    return " / ".join(FIGURES[name][1].format(mean) for mean in means)


def figures(runs):
    """{column: [mean over the runs, a teacher each]}."""
    lines = [last_of(run) for run in runs]
    return {column: _by_teacher(lines, logged) for column, (logged, _) in FIGURES.items()}


def last_of(run):
    """The last epoch's line; an empty one where nothing was kept."""
    return run.log[-1] if run.log else {}


def _by_teacher(lines, logged):
    """The figure's mean over the lines that have it, for each teacher."""
    each = [found for line in lines if (found := of_teachers(line, logged))]
    return [statistics.mean(values) for values in zip(*each, strict=True)]
