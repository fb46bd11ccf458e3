"""What a suite would run: its runs, the published figures to meet, the hours that recorded runs suggest."""

import statistics

from atsc_plugin.engine.run_dir import read_json
from atsc_plugin.errors import PluginError
from atsc_plugin.report import published


def states(runs: list) -> list:
    """A line a run: done, stopped or to do."""
    return [f"  {'done' if run.done else 'stopped' if run.stopped else 'to do':7}  {run.folder}" for run in runs]


def lines(runs: list, checked: dict, slots: int) -> list:
    """The plan as lines of text."""
    figures = {run.name: found for run in runs if (found := published_beside(run, checked[run.name]))}
    lines = ["published top-1 to meet:"] if figures else []
    lines += [f"  {name}: {float(found['top1']):.2f} ({found['source']})" for name, found in figures.items()]
    return [*states(runs), *lines, hours([run for run in runs if not (run.done or run.stopped)], slots)]


def published_beside(run, facts: dict):
    """The published figure of the same images, networks, method and length; None where a setting differs."""
    keys, record = facts["keys"], run.record
    dataset, teachers = keys["DATASET.TYPE"], facts["teacher_names"]
    trial = run.folder.parents[1].name != record["suite"]
    changed = trial or record["set"] or record["adapted_by"] or record["stretch"] != 1
    cut = keys.get("DATASET.VAL_SPLIT") or keys.get("DATASET.IMAGE_SIZE")
    if changed or cut or len(teachers) > 1 or keys["SOLVER.EPOCHS"] != published.EPOCHS.get(dataset):
        return None
    return published.of_pair(dataset, teachers, keys["DISTILLER.STUDENT"], keys["DISTILLER.TYPE"])


def hours(waiting: list, slots: int) -> str:
    """The hours of training left, by the seconds an epoch of finished runs of the same names."""
    rates = {run.name: _rate(run) for run in waiting}
    known = [run for run in waiting if rates[run.name]]
    if not known:
        return "expected hours: unknown (no run of these names has finished here)" if waiting else "nothing to do"
    seconds = sum(rates[run.name][0] * (run.epochs - run.epochs_done()) for run in known)
    devices = ", ".join(sorted({rates[run.name][1] for run in known}))
    rest = f"; unknown for {len(waiting) - len(known)} of {len(waiting)} runs" if len(known) < len(waiting) else ""
    share = f", {seconds / 3600 / slots:.1f} h with {slots} at a time" if slots > 1 else ""
    return f"expected hours: {seconds / 3600:.1f} h of training{share}, as recorded here on {devices}{rest}"


def _rate(run):
    """(seconds an epoch, device) of the finished runs of a name, in the suite's folder or one of its trials."""
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
    return (statistics.fmean(rates), ", ".join(sorted(devices))) if rates else None
