"""What a suite would run: its runs, the published figures to meet, and the hours they take.

A run takes as long an epoch as finished runs of its name did here; where there are none, as bench/estimate.py says.
"""

import statistics

from atsc_plugin.engine.run_dir import read_json
from atsc_plugin.errors import PluginError
from atsc_plugin.report import published
from atsc_plugin.report.table import as_configured


def states(runs: list) -> list:
    """A line a run: done, stopped or to do."""
    return [f"  {'done' if run.done else 'stopped' if run.stopped else 'to do':7}  {run.folder}" for run in runs]


def lines(runs: list, checked: dict, slots: int) -> list:
    """The plan as lines of text."""
    figures = {run.name: found for run in runs if (found := published_beside(run, checked[run.name]))}
    lines = ["published top-1 to meet:"] if figures else []
    lines += [f"  {name}: {float(found['top1']):.2f} ({found['source']})" for name, found in figures.items()]
    return [*states(runs), *lines, hours([run for run in runs if not (run.done or run.stopped)], checked, slots)]


def published_beside(run, facts: dict):
    """The published figure of the same images, networks, method and length; None where a setting differs."""
    keys, record = facts["keys"], run.record
    dataset, teachers = keys["DATASET.TYPE"], facts["teacher_names"]
    trial = run.folder.parents[1].name != record["suite"]
    cut = keys.get("DATASET.VAL_SPLIT") or keys.get("DATASET.IMAGE_SIZE")
    if trial or cut or len(teachers) > 1 or keys["SOLVER.EPOCHS"] != published.EPOCHS.get(dataset):
        return None
    if not (as_configured(record) and published.as_published(record["common"])):
        return None
    return published.of_pair(dataset, teachers, keys["DISTILLER.STUDENT"], keys["DISTILLER.TYPE"])


def hours(waiting: list, checked: dict, slots: int) -> str:
    """The hours of training left, added up by where they are known from."""
    if not waiting:
        return "nothing to do"
    rates = {run.name: _recorded(run) or checked[run.name]["epoch"] for run in waiting}
    seconds: dict[str, float] = {}
    for run in waiting:
        if rate := rates[run.name]:
            left = rate["seconds"] * (run.epochs - run.epochs_done())
            seconds[rate["how"]] = seconds.get(rate["how"], 0.0) + left
    unknown = sum(rates[run.name] is None for run in waiting)
    rest = f"unknown for {unknown} of {len(waiting)} runs, whose images cannot be counted or timed here"
    if not seconds:
        return f"expected hours: {rest}"
    whole = sum(seconds.values())
    share = f", {_hours(whole / slots)} with {slots} at a time" if slots > 1 else ""
    in_order = sorted(seconds.items())  # "as recorded" before "estimated"
    parts = list(seconds) if len(seconds) == 1 else [f"{_hours(part)} {how}" for how, part in in_order]
    known = ", ".join([f"expected hours: {_hours(whole)} of training{share}", *parts])
    return f"{known}; {rest}" if unknown else known


def _hours(seconds):
    return f"{seconds / 3600:,.{0 if seconds > 360_000 else 1}f} h"


def _recorded(run):
    """{"seconds", "how"} of an epoch of the finished runs of a name, in the suite's folder or one of its trials."""
    rates, devices = [], set()
    for path in run.folder.parents[2].glob(f"{run.record['suite']}*/{run.name}/seed_*/result.json"):
        if path.parents[2].name.partition(",")[0] != run.record["suite"]:
            continue
        try:
            result = read_json(path.parent, path.name)
        except PluginError:
            continue
        if isinstance(result, dict):
            seconds, epochs = result.get("seconds"), result.get("epochs")
            if isinstance(seconds, int | float) and type(epochs) is int and epochs > 0:
                rates.append(seconds / epochs)
                devices.add(str(result.get("device")))
    how = f"as recorded here on {', '.join(sorted(devices))}"
    return {"seconds": statistics.fmean(rates), "how": how} if rates else None
