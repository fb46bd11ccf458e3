"""The report as Markdown, the table inside another page, and the CSV of all figures."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atsc_plugin.errors import PluginError
from atsc_plugin.files import write_text
from atsc_plugin.report.layout import TESTS, Grid, Section, results
from atsc_plugin.report.runs import cell

BEGIN, END = "<!-- results: written by report --readme -->", "<!-- end of results -->"


def lines(sections: list[Section], leftovers: list[str], picture: str) -> list[str]:
    """Everything below a page's title; `picture` is the file with the plots of all sections, or nothing."""
    page = [f"![Accuracy over epochs and against training time]({picture})", ""] if picture else []
    for section in sections:
        page += [f"## {escaped(section.heading)}", "", *table(section.results), ""]
        page += bullets([*section.warnings, *section.notes])
        for grid in section.more:
            page += [
                f"### {grid.title}",
                "",
                *table(grid),
                "",
                *(line for note in grid.notes for line in (escaped(note), "")),
            ]
    return page + (["## Not in the tables", "", *bullets(leftovers)] if leftovers else [])


def table(grid: Grid) -> list[str]:
    columns = {name: number for name, number in grid.columns.items() if name != "files"}  # links are the HTML page's
    body = [
        [f"`{row[name].text.replace('`', '')}`" if name == "again" else escaped(row[name].text) for name in columns]
        for row in grid.rows
    ]
    rule = ["---:" if number else "---" for number in columns.values()]
    return ["| " + " | ".join(line) + " |" for line in (map(escaped, columns), rule, *body)]


def bullets(notes: list[str]) -> list[str]:
    return [*(f"- {escaped(note)}" for note in notes), ""]


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: names of runs and keys are not ours."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{sign}" if sign in "\\`*_|[]~" else sign for sign in text)


def put_into(path: Path, sections: list[Section], check: bool = False) -> bool:
    """The table between the two marks of a page; with `check` only say whether it is the one there."""
    block = [""]
    for section in sections:
        block += [f"**{escaped(section.heading)}**", "", *table(results(section.table, front=True)), ""]
        block += bullets([*section.warnings, *section.notes])
    block += [f"Seconds of training, median over the runs. {TESTS}"]
    return write_or_compare(between_marks(path, block), path, check)


def between_marks(path: Path, block: list[str]) -> str:
    """The text of a page with other lines between its two marks."""
    before, found, rest = Path(path).read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise PluginError(f"{path} has no place for the table; put these two lines where it belongs:\n{BEGIN}\n{END}")
    return before + "\n".join([BEGIN, *block, END]) + after


def write_or_compare(wanted: str, path: Path, check: bool = False) -> bool:
    """Whether a file holds a text; unless `check`, it does afterwards."""
    same = Path(path).is_file() and Path(path).read_text(encoding="utf-8") == wanted
    if not (same or check):
        write_text(wanted, path)
    return same


def write_rows(sections: list[Section], path: Path) -> None:
    """A CSV with a line per row of every table: the unrounded figures of every grid that has a line per row."""
    lines = []
    for section in sections:
        grids = [section.results, *(grid for grid in section.more if len(grid.rows) <= len(section.table.rows))]
        for row in section.table.rows:
            line = {"images": section.table.images, "pair": section.table.pair, "trial": section.table.trial or None}
            for grid in grids:
                for name, found in next((one for one in grid.rows if one["method"].text == row.label), {}).items():
                    line[name] = (found.text or None) if found.value is None else found.value
                    line |= {f"{name} {more}": value for more, value in found.more.items()}
            lines.append(line)
    write_csv(lines, path)


def write_csv(lines: list[dict[str, Any]], path: Path, first: Iterable[str] = ()) -> None:
    """Dicts as a CSV file; `first` names columns that come first, and columns without a value are left out."""
    names = dict.fromkeys([*first, *(name for line in lines for name in line)])
    names = [name for name in names if any(line.get(name) is not None for line in lines)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([names, *([cell(line.get(name)) for name in names] for line in lines)])
    write_text(file.getvalue(), path)
