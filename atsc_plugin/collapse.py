"""When a teacher that keeps learning counts as lost: the rule of the guard, and of a report that reads its figures.

Needs neither torch nor a host.
"""

import re

COLLAPSED = 0.5  # accuracy against theta_0's, agreement or scale below this share: the teacher is lost
NAMES = ("teacher_top1", "start_top1", "teacher_agreement", "feature_scale")
LOGGED = re.compile(rf"(t\d+_)?({'|'.join(NAMES)})")


def accuracy_share(figures):
    """The teacher's top-1 as a share of theta_0's."""
    return figures["teacher_top1"] / figures["start_top1"] if figures["start_top1"] else 1.0


def collapsed(figures):
    """Whether one teacher's figures of an epoch are those of a lost one; nan is.

    A teacher that is more accurate than theta_0 may disagree with it: one that began at chance must.
    """
    shares = [accuracy_share(figures), figures["feature_scale"]]
    if not figures["teacher_top1"] > figures["start_top1"]:
        shares.append(figures["teacher_agreement"])
    return not all(value >= COLLAPSED for value in shares)


def figures_of(line):
    """The figures of every teacher that a line of log.jsonl has: one without a number, or t1_, t2_, ..."""
    found = {}
    for name, value in line.items():
        named = LOGGED.fullmatch(name)
        if named and isinstance(value, int | float):
            found.setdefault(named[1], {})[named[2]] = value
    return [figures for figures in found.values() if len(figures) == len(NAMES)]
