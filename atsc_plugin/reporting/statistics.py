"""The statistics of the tables: mean and spread, paired differences with an interval, Holm's correction.

Fixed beforehand: the primary test is Student's t on differences paired by student seed (two-sided), Holm over the pairs
of networks that the same comparison is made on, Welch's t (unpaired) as a check. Below VERDICT_FROM pairs there is no
verdict. Several teachers of one seed are averaged first.
"""

import math
from dataclasses import dataclass

from scipy import stats

VERDICT_FROM = 5
LEVEL = 0.05


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for one value) and number of the values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, its 95 % interval, the two p-values; None where they are not defined."""

    mean: float
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_welch: float | None = None


def spread(values):
    """mean = sum x / n;  std = sqrt(sum (x - mean)^2 / (n - 1))"""
    values = list(values)
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    return Spread(mean, math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)), len(values))


def difference(ours, theirs):
    """Paired: d_k = ours_k - theirs_k, interval = mean(d) +- t(.975, n - 1) * std(d) / sqrt(n).

    Differences that are all the same have no spread: no interval and no p-value, whatever their mean.
    """
    both = [a - b for a, b in zip(ours, theirs, strict=True)]
    found = spread(both)
    if found.std is None or found.std < 1e-9:
        return Difference(found.mean, found.n)
    error = found.std / math.sqrt(found.n)
    half = float(stats.t.ppf(1 - LEVEL / 2, found.n - 1)) * error
    p = 2 * float(stats.t.sf(abs(found.mean) / error, found.n - 1))
    return Difference(found.mean, found.n, found.mean - half, found.mean + half, p, welch(ours, theirs))


def welch(ours, theirs):
    """t = (a - b) / sqrt(v_a + v_b), v = std^2 / n; degrees (v_a + v_b)^2 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1)).

    The two-sided p of unpaired samples; None where neither has any spread.
    """
    a, b = spread(ours), spread(theirs)
    v_a, v_b = a.std**2 / a.n, b.std**2 / b.n
    if v_a + v_b < 1e-18:
        return None
    degrees = (v_a + v_b) ** 2 / (v_a**2 / (a.n - 1) + v_b**2 / (b.n - 1))
    return 2 * float(stats.t.sf(abs(a.mean - b.mean) / math.sqrt(v_a + v_b), degrees))


def holm(p_values):
    """Holm's step-down: the i-th smallest of m is multiplied by m - i + 1, never below the one before, at most 1."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, floor = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = floor
    return adjusted


def verdict(found, p_adjusted, missing):
    """What may be said of a difference, in words; `missing` names runs that ought to be there and are not."""
    if missing:
        return f"no verdict: {len(missing)} run{'s' if len(missing) > 1 else ''} missing"
    if found.n < VERDICT_FROM:
        return f"no verdict: {found.n} seed{'s' if found.n > 1 else ''} < {VERDICT_FROM}"
    if p_adjusted is None:
        return "no verdict: no spread"
    if p_adjusted >= LEVEL:
        return "no difference shown"
    said = "higher" if found.mean > 0 else "lower"
    return said if found.p_welch is not None and found.p_welch < LEVEL else f"{said} (Welch disagrees)"
