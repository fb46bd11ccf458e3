"""leaderboard.html: one file with style, script and pictures inside; nothing is fetched, all text is escaped."""

from html import escape
from pathlib import Path

from atsc_plugin.files import write_text
from atsc_plugin.reporting import adapting, cells, grid, provenance, text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
PROSE = {"config", "commit", "again", "note", "source", "teachers"}
WORDS = {"method", "against", "verdict", "reproduced", "files", "host", "device", "torch", "seeds"} | PROSE


def write(tables, skipped, lost, path, plots=(), hint=None):
    write_text(html(tables, skipped, lost, path.parent, plots, hint), path)


def html(tables, skipped, lost, folder, plots=(), hint=None):
    """The whole page."""
    here = Path(__file__).parent
    body = ["<h1>Leaderboard</h1>", "<p class=soft>A click on a column's head sorts by it.</p>"]
    body += [_paragraph(hint)] if hint else []
    for number, (table, heading) in enumerate(zip(tables, cells.headings(tables), strict=True)):
        body += _section(table, heading, folder, [plot for plot in plots if plot.table == number], f"t{number + 1}r")
    leftovers = text.leftovers(tables, skipped, lost)
    body += ["<h2>Not in the tables</h2>", _list(leftovers)] if leftovers else []
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Leaderboard</title>\n'
        f"<style>\n{(here / 'page.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>\n{(here / 'page.js').read_text(encoding='utf-8')}</script>\n</body>\n</html>\n"
    )


def _section(table, heading, folder, plots, place):
    """`place` begins the addresses of the table's rows on the page."""
    told = [f"<h2>{escape(heading)}</h2>"]
    trial = cells.overrides(table)
    told += [_paragraph(f"A trial, not the suite: {trial}.")] if trial else []
    troubles = cells.troubles(table)
    told += [_list(troubles, "warn")] if troubles else []
    told += [_headline(table, place), _list(cells.notes(table))]
    columns, rows = grid.tests(table)
    if rows:
        told += ["<h3>Differences and their tests</h3>", _table(columns, rows), _list([grid.TEST_NOTE])]
    columns, rows = adapting.table_of(table)
    if rows:
        told += ["<h3>What the teachers did</h3>", _table(columns, rows), _list([adapting.NOTE])]
    told += ["<h3>The bill</h3>", _table(*grid.bill(table)), _list([grid.BILL_NOTE])]
    if plots:
        figures = [f"<figure><figcaption>{escape(p.title)}</figcaption>{p.svg}</figure>" for p in plots]
        told += ["<h3>Plots</h3>", f'<div class="plots">{"".join(figures)}</div>']
    published = _published(table)
    told += ["<h3>Published figures</h3>", published] if published else []
    return [*told, "<h3>Where the rows come from</h3>", _provenance(table, folder, place)]


def _headline(table, place):
    """The accuracies; a row's name leads to its logs and configurations."""
    columns, rows = grid.accuracy(table)
    cells_of = [[(escape(text), number) for text, number in row] for row in rows]
    for number, row in enumerate(cells_of):
        row[0] = (f'<a href="#{place}{number}">{row[0][0]}</a>', row[0][1])
    return _grid(columns, cells_of)


def _paragraph(words):
    return f"<p class=warn>{escape(words)}</p>"


def _list(lines, kind="notes"):
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(columns, rows):
    """Cells are (text, number to sort by or None); the text is escaped here."""
    return _grid(columns, [[(escape(text), number) for text, number in row] for row in rows])


def _grid(columns, rows):
    """Cells are (ready HTML, number or None)."""
    kinds = ["prose" if name in PROSE else "text" if name in WORDS else "" for name in columns]
    head = "".join(
        f'<th scope="col"{_class(kind and "text")}><button type="button">{escape(name)}</button></th>'
        for name, kind in zip(columns, kinds, strict=True)
    )
    lines = [
        "<tr>" + "".join(_cell(*cell, kind) for cell, kind in zip(row, kinds, strict=True)) + "</tr>" for row in rows
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _class(kind):
    return f' class="{kind}"' if kind else ""


def _cell(content, number, kind):
    sort = "" if number is None else f' data-sort="{number}"'
    return f"<td{_class(kind)}{sort}>{content}</td>"


def _published(table):
    rows = [
        [(row.label, None), (f"{row.published.top1:.2f}", row.published.top1), (row.published.source, None),
         ("; also ".join([row.published.note, *row.published.others]), None)]
        for row in table.rows if row.published
    ]  # fmt: skip
    return _table(["method", "published", "source", "note"], rows) if rows else ""


def _provenance(table, folder, place):
    """Every row with links to its logs and configurations, and the command that makes it again."""
    names = ("config", "seeds", "commit", "host", "device", "torch")
    rows = []
    for number, row in enumerate(table.rows):
        facts = provenance.facts(row)
        config = f"{facts['config']} {facts['keys set']}".strip()
        links = [
            f"{escape(title)}: "
            + " ".join(f'<a href="{escape(address)}">{_short(name)}</a>' for name, address in there.items())
            for title, there in provenance.files(row, folder)
        ]
        rows.append(
            [
                (f'<span id="{place}{number}">{escape(row.label)}</span>', None),
                ("<br>".join(links), None),
                (escape(config), None),
                *((escape(facts[name]), None) for name in names[1:]),
                (f"<code>{escape(facts['again'])}</code>", None),
            ]
        )
    return _grid(["method", "files", *names, "again"], rows)


def _short(name):
    return {"log.jsonl": "log", "cfg.yaml": "config", "result.json": "result", "about.json": "about"}[name]
