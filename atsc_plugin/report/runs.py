"""Runs as one flat table, a dict of values per run: from run directories and from recorded suites alike.

A run directory holds result.json, cfg.yaml, about.json, log.jsonl, and stopped.json or the suite runner's job.json
where they apply. A recorded suite holds runs.csv, curves.csv and suite.json (record.py). Columns are the fields of
result.json, then those of about.json and job.json. Files are bounded and checked; what cannot be read is skipped with
its reason.
"""

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atsc_plugin import untrusted
from atsc_plugin.collapse import collapsed, figures_of
from atsc_plugin.engine import run_dir
from atsc_plugin.errors import PluginError
from atsc_plugin.keys import flatten
from atsc_plugin.schema import MAPPING, NULL, Rule, list_of, number, one_of, problems, text, whole

CSV_BYTES = 64 << 20
MARKS = ("runs.csv", "cfg.yaml", "result.json", "job.json")  # a folder with one of these is looked at
# A finished run has all of these.
TEXTS = ("method", "student", "dataset", "device", "host", "host_version", "selected_on")
NUMBERS = ("top1_last", "top1_best", "seconds", "images_per_second", "params_deployed", "params_trained")
OF_THE_SUITE = ("suite_file", "notes", "images", "against", "primary")  # what job.json says of all runs of a suite
RULES = {  # what values must be; anything else that is recorded passes through
    **dict.fromkeys((*TEXTS, "run", "method_name", "display", "data", "test_data", "precision", "suite", "suite_file",
                     "arm", "pair", "cfg", "adapted_by", "teacher_file", "images", "command"), text(100_000)),
    **dict.fromkeys((*NUMBERS, "image_size", "ece", "nll", "params_student", "peak_memory_mb", "trials", "at_once"),
                    number()),
    **dict.fromkeys(("epochs", "stretch"), number(1e-9)),
    **dict.fromkeys(("overrides", "notes", "against", "primary"), Rule(lambda v: isinstance(v, list), "a list")),
    **dict.fromkeys(("teacher_top1_before", "teacher_top1_after"),
                    one_of(number(), list_of(one_of(number(), NULL), 64))),
    "teacher": one_of(text(), list_of(one_of(text(), NULL), 64)),
    "seed": one_of(whole(0, 2**64), text()),
    **dict.fromkeys(("set", "common"), MAPPING),
}  # fmt: skip
KNOWN_BETTER = ("seed", "device", "status")  # of job.json: the run itself says it


@dataclass(eq=False)
class Run:
    """One row of the flat table, with its configuration, its log and what is known of its suite."""

    values: dict[str, Any]
    keys: dict[str, Any]  # {dotted name: value}
    log: list[dict[str, float]]  # an epoch each
    suite: dict[str, Any]
    path: Path

    def get(self, name: str, default: Any = None) -> Any:
        found = self.values.get(name)
        return default if found is None else found

    @property
    def finished(self) -> bool:
        return self.values["status"] == "finished"

    @property
    def missing(self) -> bool:
        """Failed or stopped: meant to be in the table. One that is only unfinished may still come."""
        return self.values["status"] in ("failed", "stopped")

    @property
    def trouble(self) -> str:
        """Why there is no result, in words."""
        said = {"failed": "failed: ", "stopped": "stopped "}.get(self.values["status"])
        return f"{said}{self.get('reason', 'and kept no reason')}" if said else "unfinished"

    @property
    def name(self) -> str:
        return self.values["run"].rpartition("/")[0]

    @property
    def teachers(self) -> list[str]:
        named = self.get("teacher", [])
        return named if isinstance(named, list) else [named]

    @property
    def teacher_id(self) -> str | None:
        """A file's name in its folders, or the seed that trained the teacher; several go by their first, none is None.

        Three names, PROJECT/seed_1/latest, tell files apart and are the same on another machine.
        """
        if not self.teachers:
            return None
        files = self.keys.get("DISTILLER.TEACHER_CKPTS") or self.keys.get("DISTILLER.TEACHER_CKPT")
        # A teacher that another run adapted further counts as the teacher that run began with.
        given = self.get("teacher_file") if self.get("adapted_by") else files[0] if isinstance(files, list) else files
        return f"file {'/'.join(Path(str(given)).parts[-3:])}" if given else f"seed {self.keys.get('TEACHER.SEED', 1)}"

    @property
    def precision(self) -> str:
        """The number format that training ran in. Older runs did not record it: a CPU's `auto` was always fp32."""
        asked = str(self.get("precision") or self.keys.get("SOLVER.AMP", "auto"))
        if asked == "auto":
            asked = "fp32" if str(self.get("device", "")).startswith("cpu") else "unknown"
        return "fp32" if asked == "none" else asked

    @property
    def lost(self) -> list[int]:
        """The epochs after which a teacher was lost, by the logged figures, whatever the guard was told to do."""
        return [line["epoch"] for line in self.log if any(map(collapsed, figures_of(line)))]

    @property
    def collapsed(self) -> int | None:
        """The first epoch after which a teacher was lost, where one still was in the end."""
        return self.lost[0] if self.lost and self.lost[-1] == self.log[-1]["epoch"] else None

    @property
    def came_back(self) -> int | None:
        """The first epoch after which a teacher was lost that was none in the end."""
        return self.lost[0] if self.lost and self.collapsed is None else None


def read_runs(paths) -> tuple[list[Run], list[str]]:
    """(runs, what was skipped and why) of all run directories and recorded suites in and below the paths."""
    runs, skipped, seen = [], [], set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise PluginError(f"{clean(path)} is no directory; expected one with runs, e.g. output/quickstart.")
        for place in sorted({mark.parent for mark in path.rglob("*") if mark.name in MARKS}):
            if place.resolve() not in seen:
                seen.add(place.resolve())
                try:
                    found, problems = read_suite(place) if (place / "runs.csv").is_file() else ([read_run(place)], [])
                except (PluginError, RecursionError) as error:  # the latter of what is nested too deeply
                    found, problems = [], [str(error)]
                runs += found
                skipped += [f"{clean(place)}: {clean(problem)}" for problem in problems]
    return runs, skipped


def read_run(folder: Path) -> Run:
    """The run of one directory; a PluginError says what is wrong with one that is half-written or not ours."""
    job, result = run_dir.read_json(folder, "job.json") or {}, run_dir.read_json(folder, "result.json")
    if not (folder / "cfg.yaml").is_file() and "suite" not in job:
        raise PluginError("no cfg.yaml: no run directory of ours, or cut off while it was made")
    here, configured = folder.absolute(), (folder / "cfg.yaml").is_file()
    keys = clean(flatten(run_dir.read_tree(folder / "cfg.yaml"))) if configured else {}
    about, stopped = run_dir.read_json(folder, "about.json") or {}, run_dir.read_json(folder, "stopped.json")
    own = about | {name: value for name, value in job.items() if name not in KNOWN_BETTER}
    values = {"run": f"{here.parent.name}/{here.name}", "seed": parsed(here.name.removeprefix("seed_")[:9])}
    if result is not None:
        values |= own | result | {"status": "finished"}
    else:
        planned = {
            "method": "DISTILLER.TYPE",
            "student": "DISTILLER.STUDENT",
            "dataset": "DATASET.TYPE",
            "epochs": "SOLVER.EPOCHS",
        }
        values |= {name: keys.get(key) for name, key in planned.items()}
        values["teacher"] = keys.get("DISTILLER.TEACHERS") or keys.get("DISTILLER.TEACHER")
        values |= own | {"status": "failed" if job.get("status") == "failed" else "unfinished"}
        if stopped:
            said = f"in epoch {stopped.get('epoch', '?')}: {stopped.get('reason', 'no reason kept')}"
            values |= {"status": "stopped", "reason": said}
    suite = {name: found for name in OF_THE_SUITE if (found := values.pop(name, None)) is not None}
    log = [epoch for line in run_dir.log_lines(folder) for epoch in _epoch(line)]
    return _checked(Run(clean(values), keys, log, clean(suite), folder))


def read_suite(folder: Path) -> tuple[list[Run], list[str]]:
    """(runs, problems) of a folder with runs.csv, curves.csv and suite.json."""
    found = clean(_json(folder / "suite.json"))
    suite = {name: value for name, value in found.items() if value is not None}
    shared, logs, runs, wrong = suite.pop("keys", None) or {}, {}, [], []
    for line in _csv(folder / "curves.csv"):
        logs.setdefault(str(line.pop("run", None)), []).extend(_epoch(line))
    for line_number, line in enumerate(_csv(folder / "runs.csv"), start=2):
        values = clean({name: value for name, value in line.items() if value is not None})
        keys = values.pop("keys", {})
        try:
            if not isinstance(keys, dict) or not isinstance(shared, dict) or {"run", "status"} - values.keys():
                raise PluginError("no run, no status, or keys that are no mapping")
            runs.append(_checked(Run(values, {**shared, **keys}, logs.get(values["run"], []), suite, folder)))
        except PluginError as error:
            wrong.append(f"runs.csv line {line_number}: {error}")
    return runs, wrong


def clean(value: Any) -> Any:
    """Without control characters and half-decoded bytes: names of folders and classes reach terminals and pages."""
    if isinstance(value, dict):
        return {clean(name): clean(content) for name, content in value.items()}
    if isinstance(value, list):
        return [clean(content) for content in value]
    if isinstance(value, str | Path):
        return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in str(value))
    return value


def parsed(cell: str) -> Any:
    """The value of a cell: JSON where it is JSON, None where it is empty, else the text itself."""
    try:
        return json.loads(cell) if cell else None
    except ValueError:
        return cell


def cell(value: Any) -> str:
    """A value as a cell that `parsed` reads back. Text that looks like JSON or a spreadsheet's formula is quoted."""
    if isinstance(value, str) and value and value[0] not in "=+-@" and parsed(value) == value:
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def of_teachers(line: dict, name: str) -> list[float]:
    """A figure of one epoch, teacher by teacher: a single one has the plain name, several are t1_, t2_, ..."""
    return [line[name]] if name in line else [line[key] for key in line if re.fullmatch(rf"t\d+_{name}", key)]


def _checked(run: Run) -> Run:
    """The run itself, or a PluginError that names what no run writes."""
    values = {name: value for name, value in {**run.suite, **run.values}.items() if value is not None}
    wrong = problems(values, RULES, ("seed", "epochs", *TEXTS, *NUMBERS) if run.finished else ("seed",))
    if wrong:
        raise PluginError(f"not what a run writes: {'; '.join(wrong[:4])}")
    return run


def _epoch(line):
    """[the numbers of one epoch], [] for a line without an epoch."""
    fits = number().test
    if not isinstance(line, dict) or type(line.get("epoch")) is not int or not fits(line["epoch"]):
        return []
    return [{clean(name): value for name, value in line.items() if isinstance(value, float) or fits(value)}]


def _json(path):
    """The mapping in a JSON file of a recorded suite; none where there is no file."""
    try:
        content = untrusted.read_json(path, "a mapping, as `report --record` writes it")
    except FileNotFoundError:
        return {}
    if not isinstance(content, dict):
        raise PluginError(f"{path} holds a {type(content).__name__}; expected a mapping.")
    return content


def _csv(path):
    """The rows of a CSV file as dicts of parsed cells; none where there is no file."""
    try:
        text = untrusted.read_bytes(path, CSV_BYTES).decode()
        lines = csv.DictReader(io.StringIO(text, newline=""))
        return [{name: parsed(cell) for name, cell in line.items() if name and isinstance(cell, str)} for line in lines]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PluginError(f"{path} cannot be read as CSV ({untrusted.first_line(error)}).") from error
