"""The rows of a table: runs whose configurations differ in nothing but seeds, teachers and places.

What differs otherwise gets a row of its own, named after the difference.
"""

import statistics
from dataclasses import dataclass, field

from atsc_plugin.engine.run_dir import PLACES
from atsc_plugin.reporting.runs import Run
from atsc_plugin.reporting.statistics import spread

LOADING = ("DATASET.ROOT", "DATASET.NUM_WORKERS", "DATASET.DOWNLOAD", "DATASET.TEST.BATCH_SIZE")
# Keys that may differ between the runs of one row: places, seeds, names.
FREE = ("EXPERIMENT.", "LOG.", *LOADING, "DISTILLER.TEACHER_CKPT", "TEACHER.SEED", "TEACHER.CACHE",
        "TEACHER.TRAIN_IF_MISSING")  # fmt: skip


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

    @property
    def names(self):
        return (self.label, self.first.job.get("arm", self.label))

    @property
    def crossed(self):
        return len({run.teacher_id for run in self.runs}) > 1

    def called(self, run):
        """A run by its seed, behind its teacher where the row has several."""
        return f"teacher {run.teacher_id}, seed {run.seed}" if self.crossed else f"seed {run.seed}"

    def figures(self, name):
        return [run.result[name] for run in self.runs]

    def median(self, name):
        """For times: one run beside a busy process must not speak for the others."""
        return statistics.median(self.figures(name))

    def spread(self, name):
        return spread(self.figures(name)) if self.runs else None

    @property
    def plain(self):
        """The method as its config file has it: no keys of the suite's own, no longer schedule."""
        changed = self.first.job.get("set") or self.first.job.get("adapted_by") or stretch_of(self.first) != 1
        return not changed and "=" not in self.first.name


def stretch_of(run):
    """How many times longer than the others of its table a run was meant to be (an arm of equal cost)."""
    return run.job.get("stretch", 1)


def trial_of(run):
    """((key, value), ...) of the runner's command line, but for places: such a run is a trial of its suite."""
    words = run.job.get("overrides") or []
    return tuple(pair for pair in zip(words[::2], words[1::2], strict=False) if not pair[0].startswith(PLACES))


def method_of(run):
    return run.result["method"] if run.result else run.cfg.get("DISTILLER.TYPE", run.job.get("arm", run.name))


def rows_of(members):
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
