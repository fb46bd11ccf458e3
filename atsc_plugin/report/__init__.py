"""Finished runs side by side: runs -> one flat table -> comparison -> text, Markdown, CSV, an HTML page, plots.

runs.py reads run directories and recorded suites; table.py groups them; compare.py has the statistics; layout.py says
what is shown; text.py, markdown.py, page.py and plots.py show it; record.py keeps results for a repository. No torch.
"""

from collections.abc import Iterable
from pathlib import Path

from atsc_plugin.errors import PluginError
from atsc_plugin.files import whole_file, write_text
from atsc_plugin.report import compare, layout, markdown, page, plots, published, table, text
from atsc_plugin.report.runs import Run, clean, read_runs

__all__ = ["Run", "compared", "read_runs", "summary", "write"]


def compared(paths: Iterable[str | Path], against: list[str] | None = None):
    """(tables with all comparisons, what is in no table and why); nothing finished is an error."""
    paths = list(paths)
    runs, skipped = read_runs(paths)
    tables, lost = table.build_tables(runs)
    lost += [run for one in tables for row in one.rows for run in row.unfinished]
    leftovers = [f"{run.trouble}: {clean(run.path)}" for run in dict.fromkeys(lost)]
    leftovers += [f"skipped: {line}" for line in skipped]
    if not tables:
        more = [f"... and {len(leftovers) - 10} more"] if len(leftovers) > 10 else []
        message = "".join(f"\n  {line}" for line in [*leftovers[:10], *more])
        where = ", ".join(map(clean, map(str, paths)))
        raise PluginError(f"No finished run under {where}; expected a result.json (train writes it last).{message}")
    compare.compare(tables, against)
    for one in tables:
        for row in one.rows:
            row.published = published.beside(one, row)
    return tables, leftovers


def summary(paths: Iterable[str | Path], against: list[str] | None = None) -> list[str]:
    """The lines that the command prints."""
    tables, leftovers = compared(paths, against)
    return text.lines(layout.sections(tables), leftovers)


def write(paths: Iterable[str | Path], out: str | Path, against: list[str] | None = None) -> list[Path]:
    """leaderboard.html, .md, .csv and a picture of the runs in and below `paths`; returns their paths."""
    tables, leftovers = compared(paths, against)
    sections, out = layout.sections(tables), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    picture, drawn = "", [[] for _ in tables]
    if plots.available():
        drawn = [plots.draw(table, number) for number, table in enumerate(tables)]
        picture = "leaderboard.png"
        with whole_file(out / picture) as file:
            file.write(plots.picture(sections))
    hint = "" if picture else plots.HOW_TO
    write_text(page.html(sections, leftovers, out, drawn, hint), out / "leaderboard.html")
    write_text("\n".join(["# Results", "", *markdown.lines(sections, leftovers, picture)]), out / "leaderboard.md")
    markdown.write_rows(sections, out / "leaderboard.csv")
    return [out / name for name in ("leaderboard.html", "leaderboard.md", "leaderboard.csv", picture) if name]
