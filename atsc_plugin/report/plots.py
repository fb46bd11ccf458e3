"""The plots of a table: accuracy over epochs, against time, and what the teacher did. Needs matplotlib.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; line style and marker say the same again. In the
SVG everything that is not a curve takes the page's text colour, so that one picture serves light and dark pages.
"""

import io
import math
import re
import statistics
import textwrap
from collections.abc import Callable

from atsc_plugin.report.layout import Section
from atsc_plugin.report.runs import of_teachers
from atsc_plugin.report.table import Row, Table

INK = "#1a1b1c"  # stands for the page's text colour
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#7F7F7F", INK)
STYLES, MARKERS = ("-", "--", ":", "-."), "osD^vPX*<>"
NAME_HEIGHT = 0.055  # of a name beside a point, as a share of the panel
NAMED = 12  # names for which there is room beside the points
WIDTH, HEIGHT = 4.6, 3.0  # inches of one panel: readable at the width of a phone
HOW_TO = 'No plots: matplotlib is not installed. pip install "atsc_plugin[plots]", then run report again.'


def available() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw(table: Table, number: int = 0) -> list[tuple[str, str]]:
    """(title, SVG) of every panel that the runs have figures for; `number` keeps the pictures of a page apart."""
    return [(panel[0], _svg(_figure([panel]), f"{number}{panel[0]}")) for panel in panels(table)]


def picture(sections: list[Section]) -> bytes:
    """One PNG: all panels of one table, or of each of several tables its two of accuracy below its heading."""
    from PIL import Image  # matplotlib needs it too

    several, images = len(sections) > 1, []
    for section in sections:
        png, shown = io.BytesIO(), panels(section.table)[: 2 if several else None]
        figure = _figure(shown, titles=True)
        if several:
            figure.suptitle("\n" + textwrap.fill(_plain(section.heading, 200), 60 * len(shown)), fontsize=9)
        figure.savefig(png, format="png", dpi=110, facecolor="white")
        images.append(Image.open(png))
    size = max(image.width for image in images), sum(image.height for image in images)
    column, y, small = Image.new("RGB", size, "white"), 0, io.BytesIO()
    for image in images:
        column.paste(image, (0, y))
        y += image.height
    column.quantize(256, dither=Image.Dither.NONE).save(small, format="PNG", optimize=True)  # a third of the bytes
    return small.getvalue()


def panels(table: Table) -> list[tuple[str, Callable]]:
    """(title, function that draws into axes) of everything that was logged."""
    rows = [row for row in table.rows if row.runs]
    looks = {row.label: (COLOURS[k % 9], STYLES[(k + k // 9) % 4], MARKERS[k % 10]) for k, row in enumerate(rows)}
    where = "validation images" if table.runs[0].get("selected_on") == "val" else "test images"
    over = (
        ("Accuracy over epochs", "top1", f"top-1 on {where}, %"),
        ("Teacher's accuracy over epochs", "teacher_top1", "teacher's top-1, %"),
        ("Teacher's drift over epochs", "drift", "‖θ − θ₀‖ / ‖θ₀‖"),
    )
    found = [
        (title, lambda axes, field=field, label=label: _curves(axes, rows, looks, field, label))
        for title, field, label in over
        if any(by_epoch(row, field) for row in rows)
    ]
    found.insert(1, ("Accuracy against training time", lambda axes: _points(axes, rows, looks)))
    return found


def by_epoch(row: Row, field: str) -> dict[int, list[float]]:
    """{epoch: the figure of every run that logged it}; several teachers (t1_drift, t2_drift, ...) give their mean."""
    points = {}
    for run in row.runs:
        for line in run.log:
            values = [value for value in of_teachers(line, field) if math.isfinite(value)]
            if values:
                points.setdefault(line["epoch"], []).append(statistics.fmean(values))
    return dict(sorted(points.items()))


def _curves(axes, rows, looks, field, label):
    """Mean over seeds and a band of one standard deviation."""
    axes.set(xlabel="epoch", ylabel=label)
    length = 1
    for row in rows:
        if points := by_epoch(row, field):
            colour, style, marker = looks[row.label]
            means, stds = zip(*map(_mean_and_std, points.values()), strict=True)
            axes.plot(list(points), means, color=colour, linestyle=style, marker=marker, markersize=4, linewidth=1.4,
                      markevery=max(1, len(points) // 6), label=_plain(row.label))  # fmt: skip
            low, high = ([m + sign * s for m, s in zip(means, stds, strict=True)] for sign in (-1, 1))
            axes.fill_between(list(points), low, high, color=colour, alpha=0.15, linewidth=0)
            length = max(length, *points)
    axes.locator_params(axis="x", integer=True)
    if length <= 12:
        axes.set_xticks(range(1, length + 1))


def _points(axes, rows, looks):
    """Last-epoch mean and spread against the time of a run; rows that lost their teacher are only named."""
    axes.set(xlabel="minutes of training, a run", ylabel="top-1 last epoch, %")
    points, tops = [], {row.label: _mean_and_std(row.figures("top1_last")) for row in rows}
    lost = [row for row in rows if any(run.collapsed for run in row.runs)]
    if 0 < len(lost) < len(rows):
        message = "; ".join(f"{_plain(row.label)} {tops[row.label][0]:.1f}" for row in lost)
        message = textwrap.fill(f"collapsed, not drawn: {message}", 66)
        axes.text(0.5, 0.02, message, transform=axes.transAxes, ha="center", fontsize=7, color=INK)
    for row in rows:
        if row not in lost or len(lost) == len(rows):
            (mean, std), (colour, _, marker) = tops[row.label], looks[row.label]
            points.append((row.median("seconds") / 60, mean, _plain(row.label, 30), colour))
            axes.errorbar(points[-1][0], [mean], yerr=[std], color=colour, marker=marker, markersize=7,
                          linestyle="none", elinewidth=1.2, capsize=3, label=_plain(row.label))  # fmt: skip
    axes.margins(x=0.12, y=0.12)
    named = points if len(points) <= NAMED else []
    before = [top1 for row in rows for top1 in row.figures("teacher_top1_before")]
    teachers = [top1 for top1 in before if not isinstance(top1, list)]  # several teachers have no one line
    if teachers and 2 * teachers.count(top1 := statistics.mode(teachers)) > len(teachers):
        axes.axhline(top1, color=INK, linewidth=0.8, linestyle=(0, (6, 4)))
        named.append((-math.inf, top1, "the teacher, before", INK))
    _name(axes, named)


def _name(axes, points):
    """Each name beside its point, where it touches no other point or name; without such a place the legend has it.

    A line has x -inf.
    """
    axes.autoscale_view()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    places = [((x - left) / (right - left), (y - bottom) / (top - bottom), *rest) for x, y, *rest in points]
    taken = [(height, place - 0.02, place + 0.02) for place, height, *_ in places]
    for place, height, name, colour in places:
        width = 0.0125 * len(name)
        middle = min(place - width / 2, 1 - width)
        starts = (0.01,) if place == -math.inf else (place + 0.03, place - 0.03 - width, middle)
        free = [
            (at, start)
            for at in (height + shift * NAME_HEIGHT for shift in (0.5, 0, 1.1, -1.1, 1.6, -1.6))
            for start in starts
            if 0 <= start <= 1 - width and not any(_touch(at, start, width, *other) for other in taken)
        ]
        if free:
            at, start = free[0]
            taken.append((at, start, start + width))
            side, x = ("right", start + width) if start < place else ("left", start)
            axes.text(x, at, name, transform=axes.transAxes, ha=side, va="center", fontsize=7, color=colour)


def _touch(height, start, width, other, first, last):
    return first < start + width and start < last and abs(height - other) < NAME_HEIGHT


def _mean_and_std(values):
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _figure(found, titles=False):
    """Panels, two a line, and below them the legend of the first."""
    import matplotlib
    from matplotlib.figure import Figure

    columns, lines = min(2, len(found)), math.ceil(len(found) / 2)
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * lines), layout="constrained")
        places = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, (title, fill) in zip(places, found, strict=False):
            fill(axes)
            for axis in (axes.xaxis, axes.yaxis):
                axis.label.set_color(INK)
            axes.set_title(title if titles else "", color=INK, fontsize=9)
            axes.tick_params(colors=INK)
            axes.grid(color=INK, alpha=0.15, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(INK)
            axes.set_axisbelow(True)
        for axes in places[len(found) :]:
            axes.set_visible(False)
        _legend(figure, *places[0].get_legend_handles_labels(), 2 * columns)
    return figure


def _legend(figure, handles, labels, columns):
    """Below everything, with as many columns as fit."""
    for count in range(columns, 0, -1):
        legend = figure.legend(
            handles, labels, loc="outside lower center", ncols=count, frameon=False, fontsize=8, labelcolor=INK,
            handlelength=2.6, columnspacing=1.5, labelspacing=0.3, borderaxespad=0.1,
        )  # fmt: skip
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.17 * math.ceil(len(labels) / count))


def _plain(label, longest=34):
    """A name as it is: matplotlib takes dollars for mathematics and hides a name with a leading underscore."""
    text = label if len(label) <= longest else f"{label[: longest - 1]}…"
    return (f" {text}" if text.startswith("_") else text).replace("$", r"\$")


def _svg(figure, salt):
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = svg.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", text))  # an id that nothing refers to would stand twice on a page
    text = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    return re.sub(r"font: ([^;\"]*?)'[^;\"]*", r"font: \1sans-serif", text)
