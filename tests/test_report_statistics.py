"""The statistics of the tables against cases reckoned by hand."""

import math

import pytest

from atsc_plugin.reporting import statistics
from atsc_plugin.reporting.statistics import Difference, difference, holm, spread, verdict, welch


def test_spread_is_the_sample_standard_deviation():
    found = spread([2.0, 4.0, 6.0])
    assert (found.mean, found.n) == (4.0, 3)
    assert found.std == pytest.approx(2.0)  # sqrt(((-2)^2 + 0 + 2^2) / 2)
    assert spread([3.0]) == statistics.Spread(3.0, None, 1)


def test_a_paired_difference_has_students_interval_and_p():
    """d = 1, 2, 3, 4, 5: mean 3, std sqrt(10 / 4) = 1.5811, error std / sqrt(5) = .7071, t(.975, 4) = 2.7764."""
    found = difference([11.0, 22.0, 33.0, 44.0, 55.0], [10.0, 20.0, 30.0, 40.0, 50.0])
    assert (found.mean, found.n) == (3.0, 5)
    assert found.low == pytest.approx(3 - 2.7764451 * math.sqrt(0.5))
    assert found.high == pytest.approx(3 + 2.7764451 * math.sqrt(0.5))
    # t = 3 / .7071 = 4.2426 on 4 degrees: F(t) = 1/2 + t/2 (1 + t^2/(4 + t^2)/2 ... ) = closed form of 4 degrees
    sine = 4.2426407 / math.sqrt(4 + 4.2426407**2)
    assert found.p == pytest.approx(1 - sine * (1 + (1 - sine**2) / 2), rel=1e-5)


def test_two_pairs_have_a_cauchy_p():
    """One degree of freedom: p = 1 - 2 atan(|t|) / pi; d = 1, 3: mean 2, std sqrt 2, error 1, t = 2."""
    assert difference([1.0, 3.0], [0.0, 0.0]).p == pytest.approx(1 - 2 * math.atan(2.0) / math.pi)


def test_pairing_is_by_place_and_not_by_size():
    """The same numbers paired otherwise: d = 0, 0, 0 has no spread; d = -2, 0, 2 has mean 0 and std 2."""
    assert difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == Difference(0.0, 3)
    crossed = difference([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    assert (crossed.mean, crossed.p) == (0.0, 1.0)


def test_one_pair_has_a_difference_and_nothing_else():
    assert difference([5.0], [3.0]) == Difference(2.0, 1)


def test_differences_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="argument"):
        difference([1.0, 2.0], [1.0])


def test_welch_does_not_know_the_pairs():
    """1, 2, 3 against 4, 5, 6: t = -3 / sqrt(1/3 + 1/3) = -3.6742 on 4 degrees of freedom."""
    sine = 3.6742346 / math.sqrt(4 + 3.6742346**2)
    assert welch([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]) == pytest.approx(1 - sine * (1 + (1 - sine**2) / 2), rel=1e-5)
    assert welch([1.0, 2.0, 3.0], [6.0, 4.0, 5.0]) == welch([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert welch([1.0, 1.0], [2.0, 2.0]) is None


def test_holm_steps_down_from_the_smallest():
    """Sorted .01, .02, .03, .5: times 4, 3, 2, 1 = .04, .06, .06 (never below the one before), .5; in the old order."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("found", "p", "missing", "said"),
    [
        (Difference(3.0, 4, 2.0, 4.0, 0.001, 0.001), 0.001, (), "no verdict: 4 seeds < 5"),
        (Difference(3.0, 5, 2.0, 4.0, 0.001, 0.001), 0.001, (), "higher"),
        (Difference(-3.0, 5, -4.0, -2.0, 0.001, 0.001), 0.001, (), "lower"),
        (Difference(3.0, 5, 2.0, 4.0, 0.001, 0.2), 0.001, (), "higher (Welch disagrees)"),
        (Difference(3.0, 5, -1.0, 7.0, 0.03, 0.03), 0.06, (), "no difference shown"),
        (Difference(3.0, 9, 2.0, 4.0, 0.001, 0.001), 0.001, ["a run"], "no verdict: 1 run missing"),
        (Difference(3.0, 5), None, (), "no verdict: no spread"),
    ],
)
def test_a_verdict_needs_five_pairs_and_every_run(found, p, missing, said):
    assert verdict(found, p, missing) == said


def test_two_teachers_do_not_make_five_seeds_of_three():
    assert verdict(Difference(3.0, 3, 2.0, 4.0, 0.001, 0.001), 0.001, ()) == "no verdict: 3 seeds < 5"
