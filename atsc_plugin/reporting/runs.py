"""Run directories as a report sees them: what is finished, what failed and why, what is not one of ours.

Reads the text files of a run only (result.json, cfg.yaml, about.json, log.jsonl, stopped.json, and job.json of the
suite runner). Nothing that cannot be read ends a report: it is listed with its reason and skipped.
"""

import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from atsc_plugin.collapse import collapsed, figures_of
from atsc_plugin.engine.run_dir import FIELDS, log_lines, read_json
from atsc_plugin.errors import PluginError
from atsc_plugin.keys import flatten
from atsc_plugin.schema import problems
from atsc_plugin.untrusted import printable, read_yaml

NUMBERS = ("epochs", "top1_last", "top1_best", "seconds", "images_per_second", "params_deployed", "params_trained")
TEXTS = ("method", "student", "dataset", "device", "host", "host_version", "selected_on")
MARKS = ("cfg.yaml", "result.json", "job.json")  # any of these makes a folder one to look at


@dataclass
class Run:
    """One run directory that can be read; `result` is None where the run is not complete."""

    folder: Path
    cfg: dict
    result: dict | None = None
    about: dict = field(default_factory=dict)
    job: dict = field(default_factory=dict)
    stopped: dict | None = None

    @property
    def name(self):
        return printable(self.folder.parent.name)

    @property
    def seed(self):
        folder_seed = self.folder.name.removeprefix("seed_")
        return (self.result or {}).get("seed", int(folder_seed) if folder_seed.isdecimal() else printable(folder_seed))

    @property
    def suite(self):
        return self.job.get("suite")

    @cached_property
    def log(self):
        """The lines of log.jsonl; a line cut off by a crash is left out."""
        return log_lines(self.folder)

    @property
    def teacher_id(self):
        """Which teacher: a file's name or the seed it is trained with; None without a teacher."""
        if self.result and self.result.get("teacher") is None:
            return None
        adapted = self.job.get("adapted_by")  # the same teacher as its source's, which adapted it further
        files = self.cfg.get("DISTILLER.TEACHER_CKPTS") or [self.cfg.get("DISTILLER.TEACHER_CKPT")]
        given = self.job.get("teacher_file") if adapted else files[0]  # several teachers go by their first
        return f"file {Path(str(given)).name}" if given else f"seed {self.cfg.get('TEACHER.SEED', 1)}"

    @property
    def collapsed(self):
        """The first epoch after which a teacher was lost, by the logged figures, whatever the guard was told."""
        return next((line["epoch"] for line in self.log if any(map(collapsed, figures_of(line)))), None)

    @property
    def trouble(self):
        """Why there is no result, in words; None for a finished run."""
        if self.result is not None:
            return None
        if self.stopped:
            return f"stopped in epoch {self.stopped.get('epoch', '?')}: {self.stopped.get('reason', 'no reason kept')}"
        if self.job.get("status") == "failed":
            return f"failed: {self.job.get('reason', 'no reason kept')}"
        return "unfinished"

    @property
    def counts_as_missing(self):
        """A failed or stopped run was meant to be in the table; one that is only unfinished may still come."""
        return self.result is None and self.trouble != "unfinished"


def of_teachers(line, name):
    """A figure of one line of log.jsonl, teacher by teacher: a single one has the plain name, several t1_, t2_, ..."""
    found = [line[name]] if name in line else [line[key] for key in line if re.fullmatch(rf"t\d+_{name}", key)]
    return [value for value in found if isinstance(value, int | float)]


def read_runs(folders):
    """(runs, [(folder, why it is skipped)]) of all run directories in and below the folders."""
    runs, skipped, seen = [], [], set()
    for folder in folders:
        if not Path(folder).is_dir():
            raise PluginError(f"{folder} is no directory; expected a run directory or a folder of some.")
        places = sorted({mark.parent for name in MARKS for mark in Path(folder).rglob(name)})
        for place in places:
            if place.resolve() in seen:
                continue
            seen.add(place.resolve())
            try:
                runs.append(read_run(place))
            except PluginError as error:
                skipped.append((place, str(error)))
    return runs, skipped


def read_run(folder):
    """One Run; a PluginError says what is wrong with a folder that is half-written or not one of ours."""
    job, result = read_json(folder, "job.json") or {}, read_json(folder, "result.json")
    if not (folder / "cfg.yaml").is_file() and "suite" not in job:
        raise PluginError("no cfg.yaml: no run directory of ours, or cut off while it was made")
    if result is not None:
        wrong = _problems(result)
        if wrong:
            raise PluginError(f"result.json is none of ours: {'; '.join(wrong)}")
    about, stopped = read_json(folder, "about.json") or {}, read_json(folder, "stopped.json")
    run = Run(folder, _read_cfg(folder), result, about, job, stopped)
    _ = run.log  # a log that cannot be read is this run's trouble, and ends no report
    return run


def _read_cfg(folder):
    path = folder / "cfg.yaml"
    if not path.is_file():
        return {}
    tree = read_yaml(path, "The configuration")
    if tree is not None and not isinstance(tree, dict):
        raise PluginError("cfg.yaml holds no keys")
    keys = flatten(tree or {})
    if wrong := problems(keys, FIELDS["cfg.yaml"]):
        raise PluginError(f"cfg.yaml is none of ours: {'; '.join(wrong[:3])}")
    return keys


def _problems(result):
    if not isinstance(result, dict):
        return [f"it holds a {type(result).__name__}"]
    wrong = [
        name
        for name in NUMBERS
        if not isinstance(result.get(name), (int, float)) or isinstance(result[name], bool) or math.isnan(result[name])
    ]
    wrong += [name for name in TEXTS if not isinstance(result.get(name), str)]
    return [f"{name} is {result[name]!r}" if name in result else f"it has no {name}" for name in wrong[:4]]
