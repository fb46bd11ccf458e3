"""Published figures beside ours: only for the same images, networks, length and family of baselines.

published.csv has top-1 figures of the suites' pairs, each with where it was read. `family` keeps apart what must not be
mixed: `mdistiller` (CRD's teachers and mdistiller's recipe), `simkd` (the SimKD repository's own recipe, KD and CE
weighted 1 + 1, WRNs with extra BNs), `sskd` (other teachers), `quoted` (a mixture of the two), `own` (teachers or
recipes of their own).
"""

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FAMILY = "mdistiller"  # the recipe and teachers that our configs share
RESOLUTION = {"cifar100": 32, "tiny_imagenet": 64, "imagenet": 224}
EPOCHS = {"cifar100": 240, "tiny_imagenet": 200, "imagenet": 100}
RULE = (
    "Reproduced: the published figure lies within two standard deviations of our mean, of the same epoch (last or "
    "best; the last where the source does not say), n >= 3, with as many epochs as the source's recipe."
)
READ_FIRST = ("megvii-research/mdistiller", "RepDistiller")


@dataclass(frozen=True)
class Published:
    """One figure with its source; `others` are differing figures of the same family."""

    top1: float
    source: str
    note: str
    epoch: str
    others: tuple = ()


@lru_cache
def rows():
    with open(Path(__file__).with_name("published.csv"), encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def comparable(run):
    """Whether a run saw exactly the published images: a named data set, whole, at its own resolution."""
    dataset = run.result["dataset"]
    if dataset not in RESOLUTION or run.cfg.get("DATASET.VAL_SPLIT", 0) or run.cfg.get("DATASET.IMAGE_SIZE", 0):
        return False
    return run.result.get("image_size") in (None, RESOLUTION[dataset])


def figure(dataset, teacher, student, method, family=FAMILY):
    """The published figure of one family, None where there is none."""
    found = [
        row
        for row in rows()
        if (row["dataset"], row["student"], row["method"], row["family"]) == (dataset, student, method, family)
        and row["teacher"] == teacher
    ]
    found.sort(key=lambda row: next((k for k, name in enumerate(READ_FIRST) if name in row["source"]), len(READ_FIRST)))
    if not found:
        return None
    first = found[0]
    others = sorted({f"{row['top1']} ({row['source']})" for row in found if row["top1"] != first["top1"]})
    return Published(float(first["top1"]), first["source"], first["note"], first["epoch"], tuple(others))


def beside(table, row):
    """The published figure of a row of a table, or None: another data set, pair, method, length or settings."""
    if not row.runs or not row.plain or len(table.teachers) > 1 or not all(comparable(run) for run in row.runs):
        return None
    teacher = table.teachers[0] if table.teachers else None
    if teacher is None:  # without a teacher any pair of the same student will do
        same = [r["teacher"] for r in rows() if (r["dataset"], r["student"]) == (table.data[0], table.student)]
        teacher = same[0] if same else None
    return figure(table.data[0], teacher, table.student, row.method)


def elsewhere(table):
    """Figures of another family for the table's methods: named below it, never beside ours."""
    if len(table.teachers) != 1 or not table.runs or not comparable(table.runs[0]):
        return []
    told = []
    for row in table.rows:
        found = row.plain and figure(table.data[0], table.teachers[0], table.student, row.method, "simkd")
        if found and row.published is None:
            told.append(f"{row.label} {found.top1:.2f} ({found.source})")
    return told


def reproduced(table, row):
    """yes / no / why it cannot be said, by RULE."""
    found = row.published
    if found is None:
        return ""
    if table.epochs < EPOCHS[table.data[0]]:
        return f"not tried: {table.epochs} of {EPOCHS[table.data[0]]} epochs"
    ours = row.spread("top1_best" if found.epoch == "best" else "top1_last")
    if ours.n < 3:
        return f"not said: n = {ours.n} < 3"
    return "yes" if abs(found.top1 - ours.mean) <= 2 * ours.std else "no"
