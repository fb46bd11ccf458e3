"""leaderboard.md: the same tables as the page, for a repository."""

from atsc_plugin.files import write_text
from atsc_plugin.reporting import adapting, cells, grid, provenance, text


def write(tables, skipped, lost, path, plots=()):
    write_text("\n".join(lines(tables, skipped, lost, path.parent, plots)) + "\n", path)


def lines(tables, skipped, lost, folder, plots=()):
    """The whole file as lines."""
    told = ["# Leaderboard", ""]
    for number, (table, heading) in enumerate(zip(tables, cells.headings(tables), strict=True)):
        told += [f"## {escaped(heading)}", "", *block(table)]
        told += [f"![{title}]({name})" for place, title, name in plots if place == number]
        columns, rows = adapting.table_of(table)
        if rows:
            told += ["", "### What the teachers did", "", *_table(columns, rows), "", adapting.NOTE]
        told += ["", "### The bill", "", *_table(*grid.bill(table)), "", grid.BILL_NOTE, ""]
        told += ["### Where the rows come from", ""]
        for row in table.rows:
            told += [f"- **{escaped(row.label)}**: {_provenance(row, folder)}"]
        told += [""]
    leftovers = text.leftovers(tables, skipped, lost)
    return told + (["## Not in the tables", "", *(f"- {escaped(line)}" for line in leftovers)] if leftovers else [])


def block(table):
    """The headline table with its tests, troubles and notes."""
    told = [*_table(*grid.accuracy(table)), ""]
    columns, rows = grid.tests(table)
    if rows:
        told += [*_table(columns, rows), "", grid.TEST_NOTE, ""]
    return told + _below(table)


def front(table):
    """The short table for a front page, with the same troubles and notes."""
    return [*_table(*grid.short(table)), "", *_below(table)]


def _below(table):
    told = [f"- {escaped(trouble)}" for trouble in cells.troubles(table)]
    sources = [
        f"- published {escaped(row.label)} {row.published.top1:.2f}: {escaped(row.published.source)}"
        f"{f' ({escaped(row.published.note)})' if row.published.note else ''}"
        f"{f'; also {escaped(chr(44).join(row.published.others))}' if row.published.others else ''}"
        for row in table.rows
        if row.published
    ]
    return told + sources + [f"- {escaped(note)}" for note in cells.notes(table)] + [""]


def _table(columns, rows):
    rule = ["---" if column in ("method", "against", "verdict") else "---:" for column in columns]
    body = [[escaped(content) for content, _ in row] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in ([escaped(column) for column in columns], rule, *body)]


def _provenance(row, folder):
    facts = provenance.facts(row)
    told = "; ".join(f"{name} {escaped(value)}" for name, value in facts.items() if value and name != "again")
    logs = ", ".join(
        " ".join(f"[{name}]({address})" for name, address in there.items() if name in ("log.jsonl", "cfg.yaml"))
        for _, there in provenance.files(row, folder)
    )
    return f"{told}; {logs}; again: `{facts['again'].replace('`', '')}`"


def escaped(value):
    """Text that Markdown shows as it is: names of folders and keys are not ours."""
    text = " ".join(str(value).split())
    for sign in "\\`*_|[]<>":
        text = text.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return text
