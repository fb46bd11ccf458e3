"""The tables of one comparison as columns and cells: what Markdown and the page both show.

A cell is (text, number to sort by or None).
"""

from atsc_plugin.reporting import cells, published


def _number(value, text):
    return (text, value)


def _spread(found):
    return ("", None) if found is None else (cells.spread(found), found.mean)


def _difference(found):
    return ("", None) if found is None else (cells.difference(found), found.mean)


def accuracy(table):
    """(columns, {row label: cells}) of the headline table."""
    names = cells.reference_names(table)
    with_published = any(row.published for row in table.rows)
    columns = ["method", "n", "top-1 last", "top-1 best"]
    columns += [f"minus {name} [95 %]" for name in names]
    columns += ["teacher before → after"] + (["published", "reproduced"] if with_published else [])
    rows = []
    for row in table.rows:
        line = [(row.label, None), (cells.count(row), len(row.runs))]
        line += [_spread(row.spread("top1_last")), _spread(row.spread("top1_best"))]
        line += [_difference(row.differences[name].last if name in row.differences else None) for name in names]
        line += [(cells.teacher(row), None)]
        if with_published:
            line += [_published(row), (published.reproduced(table, row), None)]
        rows.append(line)
    return columns, rows


def short(table):
    """(columns, rows) for a front page: the headline with its verdicts, what is deployed and what training took."""
    names = [name for name in cells.reference_names(table) if name != "vanilla"]
    columns = ["method", "n", "top-1 last", *(f"minus {name} [95 %]" for name in names)]
    columns += ["teacher before → after", "deployed", "seconds"]
    rows = []
    for row in table.rows:
        line = [(row.label, None), (cells.count(row), len(row.runs)), _spread(row.spread("top1_last"))]
        line += [_judged(row.differences.get(name)) for name in names]
        sizes = (f"{cells.sizes(row)[1]:,}", f"{row.median('seconds'):.0f}") if row.runs else ("", "")
        rows.append([*line, (cells.teacher(row), None), *((text, None) for text in sizes)])
    return columns, rows


def _judged(compared):
    return ("", None) if compared is None else (f"{_difference(compared.last)[0]} {compared.verdict}", None)


def _published(row):
    return ("", None) if row.published is None else (f"{row.published.top1:.2f}", row.published.top1)


def tests(table):
    """The comparisons with their tests: last with last (primary), best with best."""
    columns = ["method", "against", "n", "last − last [95 %]", "p (Holm)", "p (Welch)", "verdict", "best − best [95 %]"]
    rows = []
    for row in table.rows:
        for name, compared in row.differences.items():
            if compared.last.n < 2:
                continue
            rows.append(
                [
                    (row.label, None),
                    (name, None),
                    (str(compared.last.n), compared.last.n),
                    _difference(compared.last),
                    (cells.p_value(compared.p_holm), compared.p_holm),
                    (cells.p_value(compared.last.p_welch), compared.last.p_welch),
                    (compared.verdict, None),
                    _difference(compared.best),
                ]
            )
    return columns, rows


def bill(table):
    """What a row costs: sizes, time, memory."""
    columns = ["method", "epochs", "trained", "deployed", "extra when deployed", "s / epoch", "images/s", "peak MB"]
    rows = []
    for row in table.rows:
        if not row.runs:
            continue
        trained, deployed, extra = cells.sizes(row)
        seconds, rate = cells.seconds_per_epoch(row), row.median("images_per_second")
        memory = [run.result.get("peak_memory_mb") for run in row.runs]
        known = [value for value in memory if isinstance(value, (int, float))]
        rows.append(
            [
                (row.label, None),
                _number(row.runs[0].result["epochs"], str(row.runs[0].result["epochs"])),
                _number(trained, f"{trained:,}"),
                _number(deployed, f"{deployed:,}"),
                _number(extra, f"{extra:+,}"),
                _number(seconds, f"{seconds:.1f}"),
                _number(rate, f"{rate:,.0f}"),
                (f"{max(known):,.0f}", max(known)) if known else ("", None),
            ]
        )
    return columns, rows


BILL_NOTE = (
    "trained: what the optimizer moves; deployed: what inference needs; extra: deployed minus the bare student; time "
    "is training alone, without evaluation, median over runs; memory is the device's, or the process's on a CPU."
)
TEST_NOTE = (
    "Primary test, fixed beforehand: last epoch, paired t by seed (two-sided), Holm over the pairs of networks of the "
    "same comparison; Welch's t as a check. Intervals are those of the paired differences, not corrected. No verdict "
    "below five seeds."
)
