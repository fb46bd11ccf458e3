"""What `gpu-check` shows at its end: the verdicts of its parts, and one page with all figures. Loads no torch."""

from html import escape
from pathlib import Path
from typing import Any

from atsc_plugin.report.layout import Cell, Grid
from atsc_plugin.report.page import document, listed, table_of

VERDICTS = {True: "ok", False: "FAILED", None: "skipped"}


def verdict(part: dict[str, Any]) -> str:
    """One line on a part."""
    rows = part["rows"]
    counts = {text: sum(row["passed"] is passed for row in rows) for passed, text in VERDICTS.items()}
    said = [f"{count} {text}" for text, count in counts.items() if count]
    return ", ".join([*said, *([part["ended"]] if part["ended"] != "done" else [])]) or "nothing ran"


def facts_of(part: dict[str, Any]) -> dict[str, Any]:
    """What its items say of the machine."""
    return {key: value for row in part["rows"] for key, value in row.get("facts", {}).items()}


def failures(found: dict[str, Any]) -> list[str]:
    """What went wrong, by name: items that failed, and parts whose process did."""
    lines = []
    for name, part in found["parts"].items():
        lines += [f"{name}: {row['name']}: {row['text']}" for row in part["rows"] if row["passed"] is False]
        if part["ended"] not in ("done", "out of time"):
            lines.append(f"{name}: {part['ended']}")
    return lines


def html(found: dict[str, Any], folder: Path) -> str:
    """The page of a check's JSON."""
    failed = failures(found)
    body = [f"<h1>GPU check: {escape(found['device'])}</h1>"]
    late = [name for name, part in found["parts"].items() if part["ended"] == "out of time"]
    body += [f"<p>{'All that ran passed.' if not failed else f'{len(failed)} failed.'} {escape(found['when'])}</p>"]
    body += [listed(failed, "warn")]
    if late:
        body.append(f"<p class=warn>Out of time, so not whole: {escape(', '.join(late))}. Give more --minutes.</p>")
    for name, part in found["parts"].items():
        body.append(f"<h2>{escape(name.capitalize())}: {escape(verdict(part))}</h2>")
        tables: dict[str, list[dict]] = {}
        for row in part["rows"]:
            if row["passed"] is not True or not row.get("minor"):
                tables.setdefault(row.get("table", ""), []).append(row)
        for title, rows in tables.items():
            body += [f"<h3>{escape(title.capitalize())}</h3>"] if title else []
            body.append(table_of(_grid(rows), folder, "{1}"))
        facts = [{"fact": Cell(key), "value": _cell(value)} for key, value in facts_of(part).items()]
        body += [table_of(Grid("", facts), folder, "{1}")] if facts else []
    body.append(listed(list(found["notes"])))
    return document("GPU check", body)


def _grid(rows: list[dict[str, Any]]) -> Grid:
    """A column for every figure that some row has; the text of a row that passed would only repeat them."""
    shown = {"name", "passed", "text", "seconds", "table", "minor", "facts"}
    figures = [key for row in rows for key in row if key not in shown]
    columns = list(dict.fromkeys(figures))
    lines = []
    for row in rows:
        line = {"item": Cell(row["name"]), "verdict": Cell(VERDICTS[row["passed"]])}
        line |= {key.replace("_", " "): _cell(row.get(key)) for key in columns}
        repeats = row["passed"] is True and "table" in row
        line |= {"seconds": _cell(row["seconds"]), "note": Cell("" if repeats else row["text"])}
        lines.append(line)
    return Grid("", lines)


def _cell(value: Any) -> Cell:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Cell("" if value is None else str(value))
    if isinstance(value, int):
        return Cell(f"{value:,}", value)
    return Cell(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}", value)
