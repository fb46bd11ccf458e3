"""The report as one HTML file with style, script and plots inside: nothing is fetched, all text is escaped."""

import os
from html import escape
from pathlib import Path
from urllib.parse import quote

from atsc_plugin.report.layout import Cell, Grid, Section

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
PROSE = {"config", "source", "note", "teachers", "files", "again", "commit"}  # columns whose text wraps


def html(
    sections: list[Section], leftovers: list[str], folder: Path, plots: list[list[tuple[str, str]]], hint: str
) -> str:
    """The whole page; `plots` has (title, SVG) of each section, `hint` says why there are none."""
    body = ["<h1>Results</h1>", "<p class=soft>A click on a column's head sorts by it.</p>"]
    body += [f"<p class=warn>{escape(hint)}</p>"] if hint else []
    headings = [escape(section.heading) for section in sections]
    if len(sections) > 1:
        body += [f'<p><a href="#s{number}">{heading}</a></p>' for number, heading in enumerate(headings)]
    for number, section in enumerate(sections):
        body += [f'<h2 id="s{number}">{headings[number]}</h2>', listed(section.warnings, "warn")]
        body += [table_of(section.results, folder, f'<a href="#s{number}r{{}}">{{}}</a>'), listed(section.notes)]
        figures = [f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>" for title, svg in plots[number]]
        body += [f'<h3>Plots</h3><div class="plots">{"".join(figures)}</div>'] if figures else []
        for grid in section.more:
            name = f'<span id="s{number}r{{}}">{{}}</span>' if grid is section.more[-1] else "{1}"  # the sources
            body += [f"<h3>{escape(grid.title)}</h3>", table_of(grid, folder, name), listed(list(grid.notes))]
    body += ["<h2>Not in the tables</h2>", listed(leftovers)] if leftovers else []
    return document("Results", body)


def document(title: str, body: list[str]) -> str:
    """A whole page around its body's elements, with our style and the tables' sorting."""
    style, script = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{chr(10).join(body)}\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def listed(lines: list[str], kind: str = "notes") -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def table_of(grid: Grid, folder: Path, name: str) -> str:
    """A table; `name` is how its first column is written, from the row's number and the escaped name."""
    columns = grid.columns
    kinds = {column: "" if number else ' class="text"' for column, number in columns.items()}
    titles = {column: escape(column).replace(" %", "&nbsp;%") for column in columns}
    head = "".join(
        f'<th scope="col"{kinds[column]}><button type="button">{titles[column]}</button></th>' for column in columns
    )
    rows = []
    for number, row in enumerate(grid.rows):
        first, *rest = columns
        cells = [f"<td{kinds[first]}>{name.format(number, escape(row[first].text))}</td>"]
        cells += [_cell(row[column], ' class="prose"' if column in PROSE else kinds[column], folder) for column in rest]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(cell: Cell, kind: str, folder: Path) -> str:
    sort = "" if cell.value is None else f' data-sort="{cell.value}"'
    lines = []
    for name, files in cell.links:
        links = (f'<a href="{escape(_address(path, folder))}">{escape(text)}</a>' for text, path in files.items())
        lines.append(f"{escape(name)}: {' '.join(links)}")
    return f"<td{kind}{sort}>{escape(cell.text)}{'<br>'.join(lines)}</td>"


def _address(path, folder):
    """A relative link with forward slashes and no character that ends an address."""
    return quote(os.fsencode(os.path.relpath(path, folder).replace(os.sep, "/")))
