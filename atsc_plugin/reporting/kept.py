"""What of a comparison is kept in a repository: the runs' small text files, and the table inside another page."""

import re
from pathlib import Path

from atsc_plugin.errors import PluginError
from atsc_plugin.files import write_text
from atsc_plugin.reporting import cells, grid, markdown

FILES = ("result.json", "cfg.yaml", "log.jsonl", "about.json", "job.json", "stopped.json")
BEGIN, END = "<!-- results: written by tools/report.py --readme -->", "<!-- end of results -->"
PLACE = re.compile(r"/[^\s\"']*/(?=(?:atsc_plugin|tools)/\w+\.py\b)")  # of a checkout


def collect(runs, folder):
    """Copy the text files of every run to folder/NAME/seed_K, without the path of the checkout; how many runs."""
    places = {}
    for run in runs:
        place = Path(folder) / run.name / run.folder.name
        if place in places:
            raise PluginError(
                f"{run.folder} and {places[place]} would both be kept in {place}; collect one suite a folder."
            )
        places[place] = run.folder
    for place, source in places.items():
        if place.resolve() == source.resolve():
            raise PluginError(f"{place} is the run itself; collect into another folder.")
        place.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            if (source / name).is_file():
                text = (source / name).read_text(encoding="utf-8", errors="replace")
                write_text(PLACE.sub("", text), place / name)
    return len(runs)


def readme_block(tables):
    """The short tables and their notes between the two marks."""
    lines = [BEGIN, ""]
    for table, heading in zip(tables, cells.headings(tables), strict=True):
        lines += [f"**{markdown.escaped(heading)}**", "", *markdown.front(table)]
    return "\n".join([*lines, f"Seconds of training, median over the runs. {grid.TEST_NOTE}", END])


def put_into(path, tables, check=False):
    """Replace the block of a page; with `check` only say whether it is the one there."""
    text = Path(path).read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise PluginError(f"{path} has no place for the table; put these two lines where it belongs:\n{BEGIN}\n{END}")
    wanted = before + readme_block(tables) + after
    if not check and wanted != text:
        write_text(wanted, path)
    return wanted == text
