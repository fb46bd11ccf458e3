"""Published figures beside ours: only for the same images, networks, length and family of baselines.

published.csv has top-1 figures with the place where each was read. Its column `family` keeps apart what must not be
mixed: `mdistiller` (CRD's teachers and mdistiller's recipe), `simkd` (the SimKD repository's own recipe, KD and CE
weighted 1 + 1, WRNs with extra BNs), `sskd` (other teachers), `quoted` (a mixture of the two), `own` (teachers or
recipes of their own).
"""

import csv
from functools import lru_cache
from pathlib import Path
from typing import Any

from atsc_plugin.engine.run_dir import PLACES
from atsc_plugin.report.runs import Run
from atsc_plugin.report.table import Row, Table

OURS, NAMED_BELOW = "mdistiller", ("simkd", "own")  # families: our configs' recipe; those that are told apart from it
RESOLUTION = {"cifar100": 32, "tiny_imagenet": 64, "imagenet": 224}
EPOCHS = {"cifar100": 240, "tiny_imagenet": 200, "imagenet": 100}
NO_RECIPE = (*PLACES, "EXPERIMENT.", "DISTILLER.", "TEACHER.", "DATASET.TYPE", "SOLVER.EPOCHS")
MARGIN, FEWEST = 0.5, 3  # points; runs
RULE = (
    f"Reproduced: the 95 % interval of our mean lies within {MARGIN} points of the published figure (yes) or wholly "
    "outside (no); otherwise it is not shown. Compared at the same epoch (last or best; the last where the source does "
    f"not say), from {FEWEST} runs on, with as many epochs as the source's recipe."
)
READ_FIRST = ("megvii-research/mdistiller", "RepDistiller")


@lru_cache
def figures() -> tuple[dict[str, str], ...]:
    with open(Path(__file__).with_name("published.csv"), encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def figure(dataset: str, teacher: str, student: str, method: str, family: str = OURS) -> dict[str, Any] | None:
    """The published row of one family, with `others`: figures of the same family that differ. None if there is none."""
    asked = {"dataset": dataset, "teacher": teacher, "student": student, "method": method, "family": family}
    found = [row for row in figures() if asked.items() <= row.items()]
    found.sort(key=lambda row: next((k for k, name in enumerate(READ_FIRST) if name in row["source"]), len(READ_FIRST)))
    others = {f"{row['top1']} ({row['source']})" for row in found if row["top1"] != found[0]["top1"]}
    return {**found[0], "others": sorted(others)} if found else None


def of_pair(dataset: str, teachers: list[str], student: str, method: str) -> dict[str, Any] | None:
    """The figure of a pair; a student trained without a teacher has the same one in every pair that names it."""
    same = [one["teacher"] for one in figures() if (one["dataset"], one["student"]) == (dataset, student)]
    return figure(dataset, (teachers or same or [""])[0], student, method)


def comparable(run: Run) -> bool:
    """Whether a run saw exactly the published images: a named data set, whole, at its own resolution."""
    size = RESOLUTION.get(run.get("dataset"))
    own = run.keys.get("DATASET.VAL_SPLIT") or run.keys.get("DATASET.IMAGE_SIZE")
    whole = run.get("dataset") != "cifar100" or str(run.get("data", "cifar100-50000")).startswith("cifar100-50000")
    return size is not None and not own and whole and run.get("image_size", size) == size


def as_published(common: dict[str, Any]) -> bool:
    """Whether the keys that a suite gives to all arms leave the recipe alone. Length and images are looked at apart."""
    return all(key.startswith(NO_RECIPE) for key in common)


def beside(table: Table, row: Row) -> dict[str, Any] | None:
    """The published figure of a row, None for another data set, pair, method or settings."""
    if not row.runs or not row.plain or table.trial or len(table.teachers) > 1:
        return None
    if not all(comparable(run) and as_published(run.get("common", {})) for run in row.runs):
        return None
    return of_pair(table.data[0], table.teachers, table.student, row.any("method"))


def elsewhere(table: Table) -> list[str]:
    """Figures of other recipes for the table's methods: named below it, never beside ours."""
    elsewhere = []
    for row in table.rows if len(table.teachers) == 1 and comparable(table.runs[0]) else ():
        asked = table.data[0], table.teachers[0], table.student, row.any("method")
        found = [one for family in NAMED_BELOW if (one := figure(*asked, family))] if row.plain else []
        told = [", ".join([f"{one['top1']} ({one['source']})", *one["others"]]) for one in found[:1]]
        elsewhere += [f"{row.label} {text}" for text in told if not row.published]
    return elsewhere


def reproduced(table: Table, row: Row) -> str:
    """yes, no, or why it cannot be said, by RULE."""
    if row.published is None:
        return ""
    if table.epochs < EPOCHS[table.data[0]]:
        return f"not tried: {table.epochs} of {EPOCHS[table.data[0]]} epochs"
    top1, ours = float(row.published["top1"]), row.figures(f"top1_{row.published['epoch'] or 'last'}")
    if len(ours) < FEWEST:
        return f"not said: n = {len(ours)} < {FEWEST}"
    low, high = ours[0], ours[0]
    if max(ours) > min(ours):
        from scipy import stats  # two seconds that a plan or a table of single seeds does not wait for

        low, high = stats.ttest_1samp(ours, top1).confidence_interval(0.95)
    if top1 - MARGIN <= low and high <= top1 + MARGIN:
        return "yes"
    return "no" if high < top1 - MARGIN or low > top1 + MARGIN else f"not shown: [{low:.2f}, {high:.2f}]"
