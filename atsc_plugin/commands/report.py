"""`report`: finished runs side by side in the terminal; as a page, a README's table, or a record to commit."""

import json
from pathlib import Path

from atsc_plugin import report
from atsc_plugin.commands import Parser
from atsc_plugin.errors import PluginError
from atsc_plugin.report import layout, markdown, plots, record, text

EXAMPLES = """
  report output/quickstart
  report output/leaderboard_quick --out output/page
  report output/leaderboard_quick --record docs/results/quick   runs.csv, curves.csv and a page, to commit
  report --record docs/results/quick   the page again, from those files
  report docs/results/cifar10_small docs/results/quick --readme README.md
  report docs/results/multi_quick --against simkd_1_teacher atsc_1_teacher
"""


def parser():
    options = Parser("report", "Compare finished runs.", EXAMPLES)
    add = options.add_argument
    add("folders", nargs="*", metavar="RUNS", help="run directories, recorded suites, or folders that hold some")
    add("--out", metavar="DIR", help="also write leaderboard.html, .md, .csv and plots there")
    add("--record", metavar="DIR", help="add the runs to the tables of that folder and write its README.md")
    add("--readme", metavar="FILE", help="put the table between the marks of that page")
    add("--against", nargs="+", metavar="ROW", help="rows to compare the others with (default: those of the suite)")
    add("--check", action="store_true", help="write nothing; exit status 1 if --readme or --record would change a page")
    add("--json", action="store_true", help="print the flat table as a JSON list instead")
    return options


def run(args):
    folders = args.folders or ([args.record] if args.record else [])
    if not folders:
        raise PluginError("report wants folders with runs, or --record DIR to write a recorded suite's page again.")
    if args.record and not args.check and (args.folders or args.against):
        print(record.record(report.read_runs(args.folders)[0], Path(args.record), args.against))
    tables, leftovers = report.compared(folders, args.against)
    if args.json:
        runs = dict.fromkeys(run for table in tables for run in table.runs)
        print(json.dumps([{**run.values, "path": str(run.path)} for run in runs], indent=2))
        return 0
    sections = layout.sections(tables)
    print("\n".join(text.lines(sections, leftovers)))
    differs = []
    if args.readme and not markdown.put_into(args.readme, sections, args.check):
        against = ["--against", *args.against] if args.against else []
        differs.append((args.readme, " ".join(["report", *folders, *against, "--readme", args.readme])))
    if args.record:
        recorded, left = report.compared([args.record])
        if not record.write_page(Path(args.record), layout.sections(recorded), left, args.check):
            differs.append((f"{args.record}/README.md", f"report --record {args.record}"))
    if args.out and not args.check:
        written = report.write(folders, args.out, args.against)
        print(f"written: {', '.join(map(str, written))}" + ("" if plots.available() else f". {plots.HOW_TO}"))
    if args.check and differs:
        print("\n".join(f"{page} differs; run: {command}" for page, command in differs))
        return 1
    return 0
