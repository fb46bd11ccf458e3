"""Which runs belong into one table and into one row of it.

A table holds runs of the same images, student, teacher (or pair of a suite) and length. A row holds runs whose
configurations differ in nothing but seeds, teachers and places; what differs otherwise gets a row of its own.
"""

from dataclasses import dataclass, field

from atsc_plugin.reporting.runs import Run
from atsc_plugin.reporting.statistics import spread

# Keys that may differ between the runs of one row: places, seeds, names.
FREE = ("EXPERIMENT.", "LOG.", "DATASET.", "DISTILLER.TEACHER_CKPT", "TEACHER.SEED", "TEACHER.CACHE",
        "TEACHER.TRAIN_IF_MISSING")  # fmt: skip
RECIPE = ("EPOCHS", "BATCH_SIZE", "LR", "LR_DECAY_STAGES", "LR_DECAY_RATE", "WEIGHT_DECAY")
ORDER = ("NONE", "PROJECTED_VANILLA", "KD", "PROJECTED_KD", "DKD", "REVIEWKD", "SIMKD", "ATSC")


@dataclass
class Row:
    """Runs that differ only in their seeds. `runs` are finished; `missing` failed or were stopped."""

    label: str
    method: str
    runs: list
    missing: list = field(default_factory=list)
    unfinished: list = field(default_factory=list)
    differences: dict = field(default_factory=dict)  # reference -> comparisons.Compared
    published: object = None

    @property
    def first(self) -> Run:
        return (self.runs or self.missing or self.unfinished)[0]

    def figures(self, name):
        return [run.result[name] for run in self.runs]

    def mean(self, name):
        return sum(self.figures(name)) / len(self.runs)

    def spread(self, name):
        return spread(self.figures(name)) if self.runs else None

    @property
    def plain(self):
        """The method as its config file has it: no keys of the suite's own, no longer schedule."""
        changed = self.first.job.get("set") or self.first.job.get("adapted_by") or stretch_of(self.first) != 1
        return not changed and "=" not in self.first.name


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

    @property
    def runs(self):
        return [run for row in self.rows for run in row.runs]

    @property
    def images(self):
        """What the images are called: the suite's words for a user's own, else the data set's name."""
        own = next((run.job["images"] for run in self.runs if run.job.get("images")), None)
        return own if own and self.data[0] in ("npz", "folder") else self.data[0]

    def row_of(self, method):
        """The row that stands for a method as a reference: its plain one, or the only one there is."""
        rows = [row for row in self.rows if row.method == method and row.runs]
        plain = [row for row in rows if row.plain]
        return plain[0] if plain else (rows[0] if len(rows) == 1 else None)

    @property
    def pair_text(self):
        return f"{', '.join(self.teachers)} -> {self.student}" if self.teachers else self.student


def stretch_of(run):
    """How many times longer than the others of its table a run was meant to be (an arm of equal cost)."""
    return run.job.get("stretch", 1)


def method_of(run):
    return run.result["method"] if run.result else run.cfg.get("DISTILLER.TYPE", run.job.get("arm", run.name))


def data_of(run):
    """Everything that decides which images a run saw: the recorded identity, or the keys of DATASET."""
    result = run.result or {}
    dataset = result.get("dataset", run.cfg.get("DATASET.TYPE", "?"))
    if result.get("data"):
        return (dataset, result["data"], result.get("image_size"))
    left_out = ("DATASET.NUM_WORKERS", "DATASET.TEST.BATCH_SIZE", "DATASET.DOWNLOAD", "DATASET.ROOT")
    keys = {name: value for name, value in run.cfg.items() if name.startswith("DATASET.") and name not in left_out}
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
    return int(length) if length == int(length) else length


def _table_key(run):
    pair, suite = run.job.get("pair"), run.suite
    who = pair if suite else " + ".join(teachers_of(run))  # a suite says itself what is compared
    return (data_of(run), run.cfg.get("DISTILLER.STUDENT") or run.result["student"], _schedule(run), who, suite,
            _recipe(run) if teachers_of(run) and not suite else None)  # fmt: skip


def build_tables(runs):
    """(tables, runs that have no place in one: nothing finished beside them)."""
    groups, lost = {}, []
    for run in runs:
        if run.result:
            groups.setdefault(_table_key(run), []).append(run)
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
    rows = _rows(members)
    rows.sort(key=lambda row: (ORDER.index(row.method) if row.method in ORDER else len(ORDER), row.label))
    return Table(data, student, teachers, epochs, members[0].job.get("pair"), suite, rows)


def _rows(members):
    """Rows by name and method, split again where their configurations differ."""
    clusters = []
    for run in members:
        arm = run.job.get("arm", run.name)
        for known in clusters:
            if known["arm"] == (arm, method_of(run)) and not differing(known["runs"][0], run):
                known["runs"].append(run)
                break
        else:
            clusters.append({"arm": (arm, method_of(run)), "runs": [run]})
    rows = []
    for cluster in clusters:
        label = _label(cluster, clusters)
        kept, seen = [], set()
        for run in cluster["runs"]:
            unit = (run.teacher_id, run.seed)
            if run.result is None or unit not in seen:
                kept.append(run)
            seen |= {unit} if run.result else set()
        done = [run for run in kept if run.result]
        rows.append(
            Row(label, cluster["arm"][1], done, [run for run in kept if run.counts_as_missing],
                [run for run in kept if run.trouble == "unfinished"])
        )  # fmt: skip
    return rows


def _label(cluster, clusters):
    arm, method = cluster["arm"]
    run = cluster["runs"][0]
    if run.job.get("arm"):
        text = arm
    else:
        methods = [known["arm"][1] for known in clusters]
        text = ({"NONE": "vanilla"}.get(method, method)) if methods.count(method) == 1 else arm
    twins = [known for known in clusters if known["arm"] == cluster["arm"]]
    if len(twins) > 1:  # the same name over two configurations: never averaged, and told apart by what differs
        others = twins[0]["runs"][0] if cluster is not twins[0] else twins[1]["runs"][0]
        text += f" [{', '.join(differing(others, run)[:2])}]"
    if stretch_of(run) != 1:
        text += f" (x{stretch_of(run):g} epochs)"
    return text


def differing(a, b):
    """`KEY=value of b` for keys that both runs have, that belong to the method, and whose values differ."""
    shared = a.cfg.keys() & b.cfg.keys()
    return [
        f"{name}={b.cfg[name]}" for name in sorted(shared) if not name.startswith(FREE) and a.cfg[name] != b.cfg[name]
    ]
