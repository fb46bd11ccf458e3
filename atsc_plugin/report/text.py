"""The report for a terminal: aligned columns, plain ASCII signs."""

from atsc_plugin.report.layout import MINUS, TESTS, Cell, Grid, Section, results

ASCII = str.maketrans({"±": "+-", "→": ">", "−": "-"})


def lines(sections: list[Section], leftovers: list[str]) -> list[str]:
    page, notes = [], []
    for section in sections:
        pairs = zip(section.results.rows, results(section.table, front=True).rows, strict=True)
        grid = Grid("", [row | judged for row, judged in pairs])
        minus = [MINUS.format(other.label) for other in section.table.references]
        page += [section.heading, "", *aligned(grid, [name for name in grid.columns if name not in minus]), ""]
        page += [*aligned(grid, ["method", *minus]), ""] if minus else []
        page += [*section.warnings, ""] if section.warnings else []
        notes += section.notes
    if max(len(row.runs) for section in sections for row in section.table.rows) == 1:
        notes.append("One seed a row: differences of a point or two mean nothing yet. Run more with EXPERIMENT.SEED.")
    elif any(section.table.references for section in sections):
        notes.append(TESTS)
    else:
        notes.append("Name rows to compare the others with: --against ROW ...")
    return [line.translate(ASCII) for line in [*page, *dict.fromkeys(notes), *leftovers]]


def aligned(grid, names: list[str]) -> list[str]:
    """Some columns of a grid, a rule below their heads."""
    columns = [
        [text.translate(ASCII) for text in (name, *(row.get(name, Cell()).text for row in grid.rows))] for name in names
    ]
    widths = [max(map(len, column)) for column in columns]
    made = []
    for row in zip(*columns, strict=True):
        parts = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
        made.append("  ".join([row[0].ljust(widths[0]), *parts[1:]]).rstrip())
    return [made[0], "-" * max(map(len, made)), *made[1:]]
