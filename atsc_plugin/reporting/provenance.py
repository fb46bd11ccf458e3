"""Where a row comes from: configuration, seeds, commit, host, device, torch, and the command that makes it again."""

import os
import shlex


def facts(row):
    """{label: text} of a row; several values where its runs differ in one."""
    runs = row.runs or row.missing or row.unfinished

    def every(read):
        return ", ".join(dict.fromkeys(str(value) for value in map(read, runs) if value))

    def fact(name):
        return lambda run: (run.result or {}).get(name) or run.about.get(name)

    return {
        "config": every(lambda run: run.job.get("cfg") or _named_config(run)) or "cfg.yaml of the run",
        "keys set": ", ".join(f"{key} {value}" for key, value in (row.first.job.get("set") or {}).items()),
        "seeds": ", ".join(dict.fromkeys(str(run.seed) for run in runs)),
        "teachers": every(lambda run: run.about.get("teacher_from") or run.teacher_id),
        "commit": every(lambda run: run.about.get("commit")) or "unknown",
        "host": every(lambda run: f"{fact('host')(run)} {fact('host_version')(run)}"),
        "device": every(fact("device")),
        "torch": every(fact("torch")),
        "again": again(row),
    }


def _named_config(run):
    words = str(run.about.get("command", "")).split(" --cfg ")
    return words[1].split()[0] if len(words) > 1 else None


def again(row):
    """A command that trains the row's first run anew, elsewhere; other seeds by EXPERIMENT.SEED.

    A run that starts from what another one left is made by the suite, which makes that other one first.
    """
    run = row.first
    if run.job.get("adapted_by"):
        suite, arms = shlex.quote(run.job["suite_file"]), shlex.join([run.job["adapted_by"], run.job["arm"]])
        pair = f" --pairs {shlex.quote(run.job['pair'])}" if run.job.get("pair") else ""
        words = shlex.join(run.job.get("overrides") or [])
        return f"python tools/leaderboard.py --suite {suite} --arms {arms}{pair} --output ./again {words}".rstrip()
    config = shlex.quote(shown(run.folder / "cfg.yaml"))
    return f"python tools/train.py --cfg {config} LOG.PREFIX ./again EXPERIMENT.SEED {run.seed}"


def shown(path):
    """A path as a person here would type it: relative where it lies below the working directory."""
    text = os.path.relpath(path)
    return str(path) if text.startswith("..") else text


def link(path, page_folder):
    """A relative link from the page's folder, with forward slashes and no character that ends an address."""
    from urllib.parse import quote

    return quote(os.fsencode(os.path.relpath(path, page_folder).replace(os.sep, "/")))  # names need not be UTF-8


def files(row, page_folder):
    """[(what the row calls a run, {name: link})] of what its runs left that a reader may want to open."""
    found = []
    for run in (*row.runs, *row.missing):
        there = [
            name for name in ("log.jsonl", "cfg.yaml", "result.json", "about.json") if (run.folder / name).is_file()
        ]
        found.append((row.called(run), {name: link(run.folder / name, page_folder) for name in there}))
    return found
