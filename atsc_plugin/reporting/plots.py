"""The plots of a table: accuracy over epochs, against size and cost, and what the teacher did. Needs matplotlib.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; line style and marker say the same again. In the
SVG everything that is not a curve has the page's own text colour, so that one picture serves light and dark pages.
"""

import io
import math
import re
from dataclasses import dataclass

from atsc_plugin.reporting import cells
from atsc_plugin.reporting.runs import of_teachers
from atsc_plugin.reporting.statistics import spread

INK = "#1a1b1c"  # stands for the text colour of the page
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F", INK)
STYLES, MARKERS = ("-", "--", ":", "-."), "osD^vPX*<>"
WIDTH, HEIGHT = 4.6, 3.0  # inches, without the legend: readable at the width of a phone
HOW_TO = 'No plots: matplotlib is not installed. pip install "atsc_plugin[plots]", then run report again.'


@dataclass(frozen=True)
class Plot:
    """One picture of one table: which, what it shows, and its two forms."""

    table: int
    kind: str
    title: str
    png: bytes
    svg: str


def available():
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(tables):
    """Every plot that the runs have figures for."""
    made = []
    for number, table in enumerate(tables):
        rows = [row for row in table.rows if row.runs]
        looks = {
            row.label: (COLOURS[k % len(COLOURS)], STYLES[k // 2 % 4], MARKERS[k % 10]) for k, row in enumerate(rows)
        }
        where = "validation images" if table.runs[0].result["selected_on"] == "val" else "test images"
        curves = (
            ("curves", "Accuracy over epochs", "top1", f"top-1 on {where}, %"),
            ("teacher", "Teacher's accuracy over epochs", "teacher_top1", "teacher's top-1, %"),
            ("drift", "Teacher's drift over epochs", "drift", "‖θ − θ₀‖ / ‖θ₀‖"),
        )
        panels = [(kind, title, _curves(rows, looks, field, label)) for kind, title, field, label in curves]
        panels[1:1] = [
            (
                "size",
                "Accuracy against what is deployed",
                _points(rows, looks, _deployed, "deployed parameters, thousands"),
            ),
            ("cost", "Accuracy against training time", _points(rows, looks, _minutes, "minutes of training, a run")),
        ]
        made += [
            Plot(number, kind, title, *_forms(figure, f"{number}{kind}")) for kind, title, figure in panels if figure
        ]
    return made


def _deployed(row):
    return cells.sizes(row)[1] / 1000


def _minutes(row):
    return row.median("seconds") / 60


def _figure(label_x, label_y):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(label_x, color=INK)
    axes.set_ylabel(label_y, color=INK)
    axes.tick_params(colors=INK)
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.set_axisbelow(True)
    return figure, axes


def _curves(rows, looks, field, label):
    """Mean over seeds and a band of one standard deviation; None where no run logged the figure."""
    figure, axes = _figure("epoch", label)
    drawn, length = 0, 1
    for row in rows:
        points = _by_epoch(row, field)
        if not points:
            continue
        colour, style, marker = looks[row.label]
        epochs, found = list(points), [spread(values) for values in points.values()]
        means, widths = [one.mean for one in found], [one.std or 0.0 for one in found]
        every = max(1, len(epochs) // 6)
        axes.plot(epochs, means, color=colour, linestyle=style, marker=marker, markevery=every, markersize=4,
                  linewidth=1.4, label=_plain(row.label))  # fmt: skip
        low, high = ([m + sign * w for m, w in zip(means, widths, strict=True)] for sign in (-1, 1))
        axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
        drawn, length = drawn + 1, max(length, *epochs)
    if length <= 12:
        axes.set_xticks(range(1, length + 1))
    return _with_legend(figure, axes, drawn)


def _by_epoch(row, field):
    """{epoch: the figure of every run that logged it}; several teachers (t1_drift, t2_drift, ...) give their mean."""
    points = {}
    for run in row.runs:
        for line in run.log:
            values = [value for value in of_teachers(line, field) if math.isfinite(value)]
            if values:
                points.setdefault(line["epoch"], []).append(sum(values) / len(values))
    return dict(sorted(points.items()))


def _points(rows, looks, of, label):
    """Last-epoch mean and spread of every row against a figure of its own."""
    figure, axes = _figure(label, "top-1 last epoch, %")
    for row in rows:
        found, (colour, _, marker) = row.spread("top1_last"), looks[row.label]
        axes.errorbar([of(row)], [found.mean], yerr=[found.std or 0.0], color=colour, marker=marker, markersize=7,
                      linestyle="none", elinewidth=1.2, capsize=3, label=_plain(row.label))  # fmt: skip
    axes.margins(x=0.12, y=0.12)
    return _with_legend(figure, axes, len(rows))


def _with_legend(figure, axes, drawn):
    if not drawn:
        return None
    for columns in (2, 1):  # long names want a line each
        legend = figure.legend(
            loc="outside lower center", ncols=columns, frameon=False, fontsize=8, labelcolor=INK, handlelength=2.6,
            columnspacing=1.5, labelspacing=0.3, borderaxespad=0.1,
        )  # fmt: skip
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    figure.set_size_inches(WIDTH, HEIGHT + 0.17 * math.ceil(drawn / columns))
    return figure


def _plain(label):
    """A name as it is: matplotlib takes dollars for mathematics and hides a name with a leading underscore."""
    text = label if len(label) <= 34 else f"{label[:33]}…"
    return text.replace("$", r"\$") if not text.startswith("_") else f" {text}".replace("$", r"\$")


def _forms(figure, salt):
    """(PNG on white, SVG that takes the page's text colour)."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none", "font.size": 9}):
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=160, facecolor="white", metadata={"Software": None})
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = svg.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", text))  # what nothing refers to would be twice on a page
    text = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    return png.getvalue(), re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1sans-serif", text)
