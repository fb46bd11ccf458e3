"""Run directories side by side: a table for the terminal, and with --out a page, Markdown, CSV and plots.

Reads the text files of the runs only: no torch, no host, nothing is run. The headline is the last epoch.
"""

import argparse
import json
from pathlib import Path

from atsc_plugin.errors import PluginError
from atsc_plugin.untrusted import printable

EXAMPLES = """examples:
  report output/quickstart
  report output/leaderboard_quick --out output/page
  report output/leaderboard_quick --collect docs/results/quick
  report docs/results/cifar10_small docs/results/quick --readme README.md
  report docs/results/multi_quick --against simkd_1_teacher atsc_1_teacher
"""


def parser():
    words = argparse.ArgumentParser(
        "report",
        description="Compare finished runs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    words.add_argument("folders", nargs="+", metavar="RUNS", help="run directories, or folders that hold some")
    words.add_argument("--out", metavar="DIR", help="also write leaderboard.md, .csv, .html and plots there")
    words.add_argument("--collect", metavar="DIR", help="copy the runs' text files there, to be committed")
    words.add_argument("--readme", metavar="FILE", help="put the table between the marks of that page")
    words.add_argument(
        "--against", nargs="+", metavar="ROW", help="rows to compare the others with (default: vanilla, KD and SimKD)"
    )
    words.add_argument("--check", action="store_true", help="with --readme: only compare, exit status 1 if it differs")
    words.add_argument("--json", action="store_true", help="print the results as a JSON list instead")
    return words


def run(args):
    from atsc_plugin.reporting import text

    tables, skipped, lost = gather(args.folders, args.against)
    if args.json:
        runs = {run.folder: run for table in tables for run in table.runs}.values()
        print(json.dumps([{**run.result, "run": str(run.folder)} for run in runs], indent=2))
        return 0
    print(printable("\n".join(text.page(tables, skipped, lost)), keep="\n"))
    if args.collect:
        from atsc_plugin.reporting import kept

        runs = {run.folder: run for table in tables for row in table.rows for run in (*row.runs, *row.missing)}
        print(f"collected: {kept.collect(list(runs.values()), args.collect)} runs in {args.collect}")
    if args.readme:
        from atsc_plugin.reporting import kept

        same = kept.put_into(args.readme, tables, args.check)
        if args.check and not same:
            against = f" --against {' '.join(args.against)}" if args.against else ""
            print(f"{args.readme} differs; run: report {' '.join(args.folders)}{against} --readme {args.readme}")
            return 1
    if args.out:
        _write(tables, skipped, lost, Path(args.out))
    return 0


def gather(folders, against=None):
    """(tables with all their comparisons, skipped folders, runs in no table); nothing finished is an error."""
    from atsc_plugin.reporting import comparisons, published, runs, tables

    found, skipped = runs.read_runs(folders)
    made, lost = tables.build_tables(found)
    if not made:
        told = "".join(f"\n  {folder}: {why}" for folder, why in skipped)
        told += "".join(f"\n  {run.folder}: {run.trouble}" for run in lost)
        raise PluginError(
            f"No result.json under {', '.join(map(str, folders))}; expected finished runs (train writes it last).{told}"
        )
    rows = [row for table in made for row in table.rows]
    if unknown := [name for name in against or () if not any(name in row.names for row in rows)]:
        labels = ", ".join(sorted({row.label for row in rows}))
        raise PluginError(f"--against {', '.join(unknown)}: no such row; expected of {labels}.")
    comparisons.compare(made, against)
    for table in made:
        for row in table.rows:
            row.published = published.beside(table, row)
    return made, skipped, lost


def _write(tables, skipped, lost, out):
    from atsc_plugin.files import whole_file
    from atsc_plugin.reporting import markdown, page, plots, sheet

    out.mkdir(parents=True, exist_ok=True)
    hint = None if plots.available() else plots.HOW_TO
    drawn = [] if hint else plots.draw(tables)
    names = {id(plot): f"leaderboard_{plot.table + 1}_{plot.kind}.png" for plot in drawn}
    for plot in drawn:
        with whole_file(out / names[id(plot)]) as file:
            file.write(plot.png)
    pictures = [(plot.table, plot.title, names[id(plot)]) for plot in drawn]
    markdown.write(tables, skipped, lost, out / "leaderboard.md", pictures)
    sheet.write(tables, out / "leaderboard.csv")
    page.write(tables, skipped, lost, out / "leaderboard.html", drawn, hint)
    print(f"written: {out}/leaderboard.html, .md, .csv" + (f", {len(drawn)} plots" if drawn else f". {hint}"))
