"""Which runs belong into one table: those of the same images, student, teacher (or pair of a suite) and length."""

import statistics
from dataclasses import dataclass, field

from atsc_plugin.reporting.rows import LOADING, rows_of, stretch_of, trial_of

RECIPE = ("EPOCHS", "BATCH_SIZE", "LR", "LR_DECAY_STAGES", "LR_DECAY_RATE", "WEIGHT_DECAY")
ORDER = ("NONE", "PROJECTED_VANILLA", "KD", "PROJECTED_KD", "DKD", "REVIEWKD", "SIMKD", "ATSC")


@dataclass
class Table:
    """One comparison: rows over the same images, student and teacher."""

    data: tuple
    student: str
    teachers: list
    epochs: object
    pair: str | None
    suite: str | None
    rows: list
    references: list = field(default_factory=list)  # names of what the rows are compared with, in order

    @property
    def runs(self):
        return [run for row in self.rows for run in row.runs]

    @property
    def images(self):
        """What the images are called: the suite's words for a user's own, else the data set's name."""
        own = next((run.job["images"] for run in self.runs if run.job.get("images")), None)
        return own if own and self.data[0] in ("npz", "folder") else self.data[0]

    def row_of(self, method):
        """The row that stands for a method as a reference: its plain one, or the only one of the table's length."""
        rows = [row for row in self.rows if row.method == method and row.runs]
        plain = [row for row in rows if row.plain]
        own = [row for row in rows if stretch_of(row.first) == 1] if len(rows) > 1 else rows
        return plain[0] if plain else (own[0] if len(own) == 1 else None)

    def row_called(self, name):
        """By its label, or by its arm's name where the label says more than that."""
        return next((row for row in self.rows if name in row.names), None)

    @property
    def pair_text(self):
        return f"{', '.join(self.teachers)} -> {self.student}" if self.teachers else self.student


def data_of(run, known):
    """Which images a run saw (recorded identities, or the keys of DATASET) and which chose its best epoch.

    `known`: the test images of those training images where only one set of them is recorded; older runs named none.
    """
    result = run.result or {}
    dataset = result.get("dataset", run.cfg.get("DATASET.TYPE", "?"))
    if result.get("data"):
        training = dataset, result["data"], result.get("image_size")
        return (*training, result.get("test_data") or known.get(training), result.get("selected_on"))
    keys = {name: value for name, value in run.cfg.items() if name.startswith("DATASET.") and name not in LOADING}
    if dataset in ("npz", "folder"):
        keys["DATASET.ROOT"] = run.cfg.get("DATASET.ROOT")
    return (dataset, ", ".join(f"{name}={value}" for name, value in sorted(keys.items())), None)


def teachers_of(run):
    planned = run.cfg.get("DISTILLER.TEACHERS") or run.cfg.get("DISTILLER.TEACHER")
    named = run.result.get("teacher") if run.result else planned
    if run.result is None and run.cfg.get("DISTILLER.TYPE") == "NONE":
        named = None
    return [] if named is None else list(named) if isinstance(named, list) else [named]


def _several(names):
    """resnet20 + vgg13, or resnet20 x 2."""
    counts = {name: names.count(name) for name in names}
    return " + ".join(name if count == 1 else f"{name} x {count}" for name, count in counts.items())


def _recipe(run):
    """The recipe of a teacher trained here; a named file needs none."""
    if run.cfg.get("DISTILLER.TEACHER_CKPT"):
        return "file"
    return ",".join(str(run.cfg.get(f"TEACHER.{name}")) for name in RECIPE)


def _schedule(run):
    epochs = run.result["epochs"] if run.result else run.cfg.get("SOLVER.EPOCHS", 0)
    length = epochs / stretch_of(run)
    return int(length) if length == int(length) else round(length, 2)


def _comparison(run):
    """What a suite itself compares: its arms on a pair, under the keys of a trial; None outside of one."""
    return run.suite and (run.suite, run.job.get("pair"), trial_of(run))


def _lengths(runs):
    """{comparison of a suite: the length that most of its runs have}: an arm may train longer than the others."""
    found = {}
    for run in runs:
        if _comparison(run):
            found.setdefault(_comparison(run), []).append(_schedule(run))
    return {which: statistics.mode(lengths) for which, lengths in found.items()}


def _test_images(runs):
    """{training images: the test images recorded with them}, where that is one set."""
    found = {}
    for run in runs:
        if run.result.get("test_data"):
            training = tuple(run.result.get(name) for name in ("dataset", "data", "image_size"))
            found.setdefault(training, set()).add(run.result["test_data"])
    return {training: test.pop() for training, test in found.items() if len(test) == 1}


def _table_key(run, lengths, known):
    suite = _comparison(run)
    who = suite or " + ".join(teachers_of(run))
    student = run.cfg.get("DISTILLER.STUDENT") or run.result["student"]
    recipe = _recipe(run) if teachers_of(run) and not suite else None
    return (data_of(run, known), student, lengths.get(suite, _schedule(run)), who, run.suite, recipe)


def build_tables(runs):
    """(tables, runs that have no place in one: nothing finished beside them)."""
    groups, lost = {}, []
    finished = [run for run in runs if run.result]
    lengths, known = _lengths(finished), _test_images(finished)
    for run in finished:
        groups.setdefault(_table_key(run, lengths, known), []).append(run)
    for run in runs:
        if not run.result:
            groups.get(_home(run, groups), lost).append(run)
    _share_vanilla(groups)
    return [_table(key, members) for key, members in groups.items()], lost


def _home(run, groups):
    """The table a run without a result was meant for: that of its own arm, of its suite's pair, of the same keys."""

    def planned(one):
        dataset = tuple(sorted((k, str(v)) for k, v in one.cfg.items() if k.startswith("DATASET.")))
        return dataset, one.cfg.get("DISTILLER.STUDENT"), _schedule(one), teachers_of(one) or None

    same = (
        lambda one: one.folder.parent == run.folder.parent,
        lambda one: run.suite and (one.suite, one.job.get("pair")) == (run.suite, run.job.get("pair")),
        lambda one: run.cfg and planned(one) == planned(run),
    )
    return next((key for test in same for key, members in groups.items() if any(map(test, members))), None)


def _share_vanilla(groups):
    """A student trained without a teacher belongs beside every teacher that taught the same student as long."""
    alone = {key: [run for run in members if not teachers_of(run)] for key, members in groups.items()}
    used = set()
    for key, members in groups.items():
        givers = [k for k in groups if k[:3] == key[:3] and alone[k]]
        if alone[key] or not givers:
            continue
        giver = next((k for k in givers if k[4] == key[4]), givers[0])  # of the same suite, if it has one
        members.extend(alone[giver])
        used.add(giver)
    for key in used:
        if len(alone[key]) == len(groups[key]):
            del groups[key]


def _table(key, members):
    data, student, epochs, _, suite, _ = key
    teachers = list(dict.fromkeys(_several(teachers_of(run)) for run in members if teachers_of(run)))
    rows = rows_of(members)
    for row in rows:
        own = _schedule(row.first)
        row.label += f" ({own} epochs)" if own != epochs and row.runs else ""
    rows.sort(key=lambda row: (ORDER.index(row.method) if row.method in ORDER else len(ORDER), row.label))
    return Table(data, student, teachers, epochs, members[0].job.get("pair"), suite, rows)
