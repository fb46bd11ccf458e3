"""The flat table's runs as tables and rows: which runs share a comparison, and which differ in nothing but their seed.

A table holds runs over the same images, student, teacher (or pair of a suite) and length. A row holds runs of one arm
whose configurations differ only in seeds and places and that trained in the same number format; anything else gets a
row of its own, named after what differs.
"""

import statistics
from dataclasses import dataclass, field
from typing import Any

from atsc_plugin.engine.run_dir import PLACES
from atsc_plugin.report.runs import Run

# Keys that may differ within a row. SOLVER.AMP is what was asked for; what it came to (Run.precision) is compared.
FREE = (*PLACES, "EXPERIMENT.", "SOLVER.AMP", "DATASET.TEST.BATCH_SIZE", "DISTILLER.TEACHER_CKPT", "TEACHER.SEED",
        "TEACHER.TRAIN_IF_MISSING")  # fmt: skip


@dataclass(eq=False)
class Row:
    """Runs that differ only in their seeds, finished ones in `runs`; `missing` failed or were stopped."""

    label: str
    runs: list[Run]
    missing: list[Run]
    unfinished: list[Run]
    differences: dict[str, Any] = field(default_factory=dict)  # {label of the reference: compare.Difference}
    published: dict[str, Any] | None = None

    @property
    def first(self) -> Run:
        return (self.runs or self.missing or self.unfinished)[0]

    @property
    def plain(self) -> bool:
        """The method as its config file has it."""
        return as_configured(self.first) and "=" not in self.first.name

    def is_called(self, name: str) -> bool:
        """By its label, or by its arm's name where the label says more than that."""
        return name.casefold() in (self.label.casefold(), str(self.first.get("arm")).casefold())

    def naming(self, run: Run) -> str:
        """A run by its seed, and by its teacher where the row has several."""
        several = len({one.teacher_id for one in self.runs}) > 1
        return f"teacher {run.teacher_id}, seed {run.get('seed')}" if several else f"seed {run.get('seed')}"

    def figures(self, name: str) -> list[Any]:
        return [run.get(name) for run in self.runs if run.get(name) is not None]

    def any(self, name: str) -> Any:
        """A figure that all runs of the row share."""
        return next(iter(self.figures(name)), None)

    def median(self, name: str) -> float | None:
        """For times: one run beside a busy process must not speak for the others."""
        return statistics.median(self.figures(name)) if self.runs else None


@dataclass(eq=False)
class Table:
    """One comparison."""

    data: tuple
    student: str
    teachers: list[str]
    epochs: float
    rows: list[Row]
    references: list[Row] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    @property
    def suite(self) -> dict[str, Any]:
        return {name: value for run in self.runs for name, value in run.suite.items()}

    @property
    def images(self) -> str:
        """The data set's name, or the suite's words for a user's own images."""
        return (self.suite.get("images") if self.data[0] in ("npz", "folder") else None) or self.data[0]

    @property
    def pair(self) -> str:
        return f"{', '.join(self.teachers)} -> {self.student}" if self.teachers else self.student

    @property
    def trial(self) -> str:
        """Keys given at the suite runner's command line: such a table is a trial of the suite, not the suite."""
        return next(filter(None, map(trial, self.runs)), "")


def stretch(run: Run | dict[str, Any]) -> float:
    """How many times longer than the others of its table a run was meant to be (an arm of equal cost)."""
    return run.get("stretch", 1)


def as_configured(said: Run | dict[str, Any]) -> bool:
    """Whether a suite took an arm's config file as it is: no keys, no teacher of another run, no other length.

    `said` is a run, or what a suite records of one.
    """
    return not (said.get("set") or said.get("adapted_by") or stretch(said) != 1)


def trial(run: Run) -> str:
    overrides = [str(part) for part in run.get("overrides", [])]
    pairs = zip(overrides[::2], overrides[1::2], strict=False)
    return ", ".join(f"{key} {value}" for key, value in pairs if not key.startswith(PLACES))


def build_tables(runs: list[Run]) -> tuple[list[Table], list[Run]]:
    """(tables, runs without a place in one: nothing finished stands beside them)."""
    groups, lengths, lost = {}, {}, []
    finished = [run for run in runs if run.finished]
    for run in finished:
        lengths.setdefault(_comparison(run), []).append(_length(run))
    tested = _test_images(finished)
    for run in finished:
        # An arm of a suite may train longer than the others of its table, whose length is the most frequent one.
        length = statistics.mode(lengths[_comparison(run)]) if run.get("suite") else _length(run)
        data = (*_training(run), run.get("test_data") or tested.get(_training(run)), run.get("selected_on"))
        suite, pair = run.get("suite"), run.get("pair") if run.get("suite") else tuple(run.teachers)
        key = (data, run.get("student"), length, suite, trial(run), pair)
        groups.setdefault(key, []).append(run)
    for run in runs:
        if not run.finished:
            groups.get(_home(run, groups), lost).append(run)
    _share_students_alone(groups)
    return [_table(key, members) for key, members in groups.items()], lost


def _training(run):
    return run.get("dataset"), run.get("data"), run.get("image_size")


def _test_images(runs):
    """{training images: the test images recorded with them}, where that is one set: older runs recorded none."""
    found = {}
    for run in runs:
        found.setdefault(_training(run), set()).update({run.get("test_data")} - {None})
    return {training: next(iter(test)) for training, test in found.items() if len(test) == 1}


def _comparison(run):
    """What a suite itself compares: its arms on one pair, under the keys of a trial; None outside a suite."""
    return (run.get("suite"), run.get("pair"), trial(run)) if run.get("suite") else None


def _length(run):
    length = run.get("epochs") / stretch(run)
    return int(length) if length == int(length) else round(length, 2)


def _home(run, groups):
    """The table that a run without a result was meant for: its arm's, its suite's, or that of the same plan."""
    same = (
        lambda one: (one.path.parent, one.name) == (run.path.parent, run.name),
        lambda one: run.get("suite") and _comparison(one) == _comparison(run),
        lambda one: all(one.get(name) == run.get(name) for name in ("dataset", "student", "teacher", "epochs")),
    )
    return next((key for test in same for key, members in groups.items() if any(map(test, members))), None)


def _share_students_alone(groups):
    """A student trained without a teacher stands beside every teacher that taught the same student as long."""
    alone, used = {key: _alone(members) for key, members in groups.items()}, set()
    for key, members in groups.items():
        giver = next((other for other in groups if other[:-1] == key[:-1] and alone[other]), None)
        if giver and not alone[key]:
            members.extend(alone[giver])
            used.add(giver)
    for key in used:
        if len(alone[key]) == len(groups[key]):
            del groups[key]


def _alone(members):
    """The runs of the arms that train a student without a teacher, missing ones too."""
    arms = {_arm(run) for run in members if run.finished and not run.teachers}
    return [run for run in members if _arm(run) in arms and not (run.finished and run.teachers)]


def _arm(run):
    return run.get("arm", run.name)


def _table(key, members):
    data, student, epochs, *_ = key
    rows = _rows(members)
    for row in rows:
        if row.runs and _length(row.first) != epochs:
            row.label += f" ({_length(row.first)} epochs)"
    rows.sort(key=lambda row: (_kind(row), row.label))
    teachers = [_counted(run.teachers) for run in members if run.teachers and run.finished]
    return Table(data, student, list(dict.fromkeys(teachers)), epochs, rows)


def _kind(row):
    """The order of rows: students alone, then teachers that stay as they are, then teachers that go on learning."""
    if not row.first.teachers:
        return 0
    return 2 if any(run.get("teacher_top1_before") != run.get("teacher_top1_after") for run in row.runs) else 1


def _counted(names):
    """resnet20 + vgg13, or resnet20 x 2."""
    return " + ".join(f"{name} x {names.count(name)}".removesuffix(" x 1") for name in dict.fromkeys(names))


def _rows(members):
    """Rows by arm, method and number format, split again where configurations differ. Finished runs come first."""
    clusters = []
    for run in members:
        what = (_arm(run), run.get("method"), run.precision)
        for known, runs in clusters:
            said = 3 if run.finished else 2 if run.get("method") else 1  # what failed early says no more than its arm
            if known[:said] == what[:said] and not _differing(runs[0], run):
                runs.append(run)
                break
        else:
            clusters.append((what, [run]))
    rows = []
    for what, runs in clusters:
        once = {(run.teacher_id, run.get("seed")): run for run in reversed(runs) if run.finished}
        unfinished = [run for run in runs if not run.finished and not run.missing]
        missing = [run for run in runs if run.missing]
        rows.append(Row(_label(what, runs[0], clusters), list(once.values())[::-1], missing, unfinished))
    return rows


def _label(what, run, clusters):
    if run.get("arm") or [other[1] for other, _ in clusters].count(what[1]) > 1:
        text = run.get("display") or what[0]
    else:
        text = run.get("method_name") or (what[1] if run.teachers else "vanilla")
    twins = [(other, runs[0]) for other, runs in clusters if other[0] == what[0] and runs[0] is not run]
    if twins:  # one name over two configurations: never averaged, and told apart by what differs
        (_, method, precision), twin = twins[0]
        named = [
            *([str(what[1])] if method != what[1] else []),
            *([f"precision={what[2]}"] if precision != what[2] else []),
        ]
        text += f" [{', '.join([*named, *_differing(twin, run)][:2])}]"
    return text + (f" (x{stretch(run):g} epochs)" if stretch(run) != 1 else "")


def _differing(a, b):
    """`KEY=value of b` for keys that both runs have, that belong to the method, and whose values differ."""
    shared = sorted(key for key in a.keys.keys() & b.keys.keys() if not key.startswith(FREE))
    return [f"{key}={b.keys[key]}" for key in shared if a.keys[key] != b.keys[key]]
