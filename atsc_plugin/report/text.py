"""The report for a terminal: aligned columns, plain ASCII signs.

What is wider than the terminal is cut between columns, and the rows' names stand before each piece.
"""

import shutil
import textwrap

from atsc_plugin.report.layout import MINUS, TESTS, Cell, Grid, Section, results

ASCII = str.maketrans({"±": "+-", "→": "->", "−": "-"})
GAP = "  "


def lines(sections: list[Section], leftovers: list[str], width: int | None = None) -> list[str]:
    """The report for a terminal of so many columns (default: this one's; 80 where there is none)."""
    width = max(40, width or shutil.get_terminal_size().columns)
    page, notes = [], []
    for section in sections:
        pairs = zip(section.results.rows, results(section.table, front=True).rows, strict=True)
        grid = Grid("", [row | judged for row, judged in pairs])
        differences = {MINUS.format(other.label) for other in section.table.references}
        minus = [name for name in grid.columns if name in differences]
        page += [*filled(section.heading, width), ""]
        page += aligned(grid, [name for name in grid.columns if name not in minus], width)
        page += aligned(grid, ["method", *minus], width) if minus else []
        page += [line for warning in section.warnings for line in filled(warning, width)]
        page += [""] if section.warnings else []
        notes += section.notes
    if max(len(row.runs) for section in sections for row in section.table.rows) == 1:
        notes.append("One seed a row: differences of a point or two mean nothing yet. Run more with EXPERIMENT.SEED.")
    elif any(section.table.references for section in sections):
        notes.append(TESTS)
    else:
        notes.append("Name rows to compare the others with: --against ROW ...")
    page += [line for note in dict.fromkeys(notes) for line in filled(note, width, "- ")]
    return [*page, *leftovers]


def filled(text: str, width: int, mark: str = "") -> list[str]:
    """A sentence as lines of at most `width`, the later ones indented like the first one's text."""
    wrapper = textwrap.TextWrapper(width, initial_indent=mark, subsequent_indent=" " * len(mark))
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    return wrapper.wrap(text.translate(ASCII))


def aligned(grid: Grid, names: list[str], width: int) -> list[str]:
    """Some columns of a grid, in as many blocks as it takes, each with the rows' names and a rule below its heads."""
    first, *others = [_column(grid, name) for name in names]
    blocks = [[first]]
    for column in others:
        if len(blocks[-1]) > 1 and sum(len(one[0]) + len(GAP) for one in [*blocks[-1], column]) > width + len(GAP):
            blocks.append([first])
        blocks[-1].append(column)
    return [line for block in blocks for line in _block(block, len(grid.rows))]


def _column(grid, name):
    """The head, broken to the width of the cells, and the cells of a column: lines of one width."""
    cells = [row.get(name, Cell()).text.translate(ASCII) for row in grid.rows]
    head = filled(name.replace(" %", "\xa0%"), max(12, *map(len, cells)))
    lines = [*(line.replace("\xa0", " ") for line in head), *cells]
    width, adjusted = max(map(len, lines)), str.ljust if name == "method" else str.rjust
    return [adjusted(line, width) for line in lines]


def _block(columns, rows):
    """The lines of columns side by side, the last `rows` of each below a rule, and an empty line."""
    height = max(map(len, columns))
    padded = [[" " * len(column[0])] * (height - len(column)) + column for column in columns]
    made = [GAP.join(parts).rstrip() for parts in zip(*padded, strict=True)]
    return [*made[:-rows], "-" * max(map(len, made)), *made[-rows:], ""]
