"""The statistics of the tables against cases worked out by hand."""

import math

import pytest
from run_folders import make_run, row, tables_of

from atsc_plugin import report
from atsc_plugin.errors import PluginError
from atsc_plugin.report import layout
from atsc_plugin.report.compare import Difference, difference, holm, verdict


def test_a_paired_difference_has_students_interval_and_p():
    """d = 1, 2, 3, 4, 5: mean 3, std sqrt(10 / 4) = 1.5811, error std / sqrt(5) = .7071, t(.975, 4) = 2.7764."""
    found = difference([11.0, 22.0, 33.0, 44.0, 55.0], [10.0, 20.0, 30.0, 40.0, 50.0])
    assert (found.mean, found.n) == (3.0, 5)
    assert found.low == pytest.approx(3 - 2.7764451 * math.sqrt(0.5))
    assert found.high == pytest.approx(3 + 2.7764451 * math.sqrt(0.5))
    # t = 3 / .7071 = 4.2426; with 4 degrees of freedom p has a closed form in sin = t / sqrt(4 + t^2)
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


def test_one_pair_has_a_difference_and_nothing_else_and_unequal_lengths_are_refused():
    assert difference([5.0], [3.0]) == Difference(2.0, 1)
    with pytest.raises(ValueError, match="argument"):
        difference([1.0, 2.0], [1.0])


def test_welch_does_not_know_the_pairs():
    """1, 2, 3 against 4, 6, 5: t = -3 / sqrt(1/3 + 1/3) = -3.6742 on 4 degrees of freedom."""
    sine = 3.6742346 / math.sqrt(4 + 3.6742346**2)
    found = difference([1.0, 2.0, 3.0], [4.0, 6.0, 5.0])
    assert found.p_welch == pytest.approx(1 - sine * (1 + (1 - sine**2) / 2), rel=1e-5)
    assert difference([70.0, 70.0, 70.0], [1.0, 2.0, 3.0]).p_welch < 0.001  # one side without spread


def test_holm_steps_down_from_the_smallest():
    """Sorted .01, .02, .03, .5: times 4, 3, 2, 1 = .04, .06, .06 (never below the one before), .5; in the old order."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("found", "missing", "said"),
    [
        (Difference(3.0, 4, 2.0, 4.0, 0.001, 0.001, p_holm=0.001), 0, "no verdict: 4 seeds < 5"),
        (Difference(3.0, 5, 2.0, 4.0, 0.001, 0.001, p_holm=0.001), 0, "higher"),
        (Difference(-3.0, 5, -4.0, -2.0, 0.001, 0.001, p_holm=0.001), 0, "lower"),
        (Difference(3.0, 5, 2.0, 4.0, 0.001, 0.2, p_holm=0.001), 0, "higher (Welch disagrees)"),
        (Difference(3.0, 5, -1.0, 7.0, 0.03, 0.03, p_holm=0.06), 0, "no difference shown"),
        (Difference(3.0, 9, 2.0, 4.0, 0.001, 0.001, p_holm=0.001), 1, "no verdict: 1 run missing"),
        (Difference(3.0, 5), 0, "no verdict: no spread"),
    ],
)
def test_a_verdict_needs_five_pairs_and_every_run(found, missing, said):
    assert verdict(found, missing) == said


def arms(root, gains, job=None, **changes):
    """SimKD of five seeds and arms that are ahead of it by their gain, +- a spread of 1."""
    for seed in range(1, 6):
        for arm, gain in {"simkd": 0.0, **gains}.items():
            facts = {"suite": "s", "arm": arm, **(job or {})}
            top1 = 50.0 + 5 * seed + gain + (seed - 3 if gain else 0.0)
            make_run(root, arm, seed, top1, "ATSC" if gain else "SIMKD", job=facts, **changes)


def test_rows_are_compared_by_seed_last_with_last_and_best_with_best(tmp_path):
    for seed in range(1, 6):
        make_run(tmp_path, "kd", seed, 20.0 + 10 * seed, best=60.0)
        make_run(tmp_path, "simkd", seed, 20.0 + 11 * seed, "SIMKD", best=61.0 + seed % 2)
    (table,) = tables_of(tmp_path)
    found = row(table, "SIMKD").differences["KD"]
    assert (found.mean, found.n, found.verdict) == (3.0, 5, "higher (Welch disagrees)")
    assert found.best.mean == pytest.approx(1.6)  # 2, 1, 2, 1, 2
    assert found.p_holm == found.p  # a family of one


def test_holm_runs_over_the_arms_of_a_table(tmp_path):
    """d = gain - 2 .. gain + 2: std 1.58. Three arms: the largest gain times 3, then 2, then 1."""
    arms(tmp_path, {"a": 2.0, "b": 3.0, "c": 4.0})
    (table,) = report.compared([tmp_path], ["simkd"])[0]
    a, b, c = (row(table, name).differences["simkd"] for name in "abc")
    assert (a.family, b.family, c.family) == (3, 3, 3)
    assert (c.p_holm, b.p_holm, a.p_holm) == pytest.approx((3 * c.p, 2 * b.p, a.p))
    assert (a.p < 0.05, 3 * b.p < 0.05) == (True, True)


def test_a_difference_that_was_significant_alone_is_not_among_twelve(tmp_path):
    arms(tmp_path, {"x": 2.2, **{f"a{k}": 0.1 for k in range(11)}})
    (table,) = report.compared([tmp_path], ["simkd"])[0]
    found = row(table, "x").differences["simkd"]
    assert found.p < 0.05
    assert found.p_holm == pytest.approx(12 * found.p)
    assert found.verdict == "no difference shown"


def test_two_rows_that_are_each_others_reference_have_one_verdict(tmp_path):
    """a - simkd is one of three tests; simkd - a, the same test, would be corrected less among more extreme ones."""
    arms(tmp_path, {"a": 2.2, "b": 40.0, "c": 2.2})
    (table,) = report.compared([tmp_path], ["simkd", "a"])[0]
    there, back = row(table, "a").differences["simkd"], row(table, "simkd").differences["a"]
    assert there.p == back.p
    assert there.p_holm == back.p_holm == pytest.approx(2 * there.p)  # b first, then a and c


def test_holm_runs_over_the_pairs_of_networks_too(tmp_path):
    arms(tmp_path / "p", {"a": 2.0}, job={"pair": "p"})
    arms(tmp_path / "q", {"a": 2.0}, job={"pair": "q"}, student="resnet14")
    first, second = (row(table, "a").differences["simkd"] for table in report.compared([tmp_path], ["simkd"])[0])
    assert first.p == second.p
    assert first.p_holm == second.p_holm == pytest.approx(2 * first.p)
    assert first.family == 2


def test_the_primary_comparison_of_a_suite_is_corrected_over_the_pairs_alone(tmp_path):
    for pair in "pq":
        job = {"pair": pair, "primary": ["a", "simkd"], "against": ["simkd"]}
        arms(tmp_path / pair, {"a": 2.0, "b": 2.0, "c": 2.0}, job=job)
    for table in tables_of(tmp_path):
        a, b = (row(table, name).differences["simkd"] for name in "ab")
        assert (a.primary, a.family, b.primary, b.family) == (True, 2, False, 4)
        assert a.p_holm == pytest.approx(2 * a.p)
        assert b.p_holm == pytest.approx(4 * b.p)
        assert any("(primary)" in line["verdict"].text for line in layout.tests(table).rows)


def test_references_are_named_ones_then_the_suites_then_all_of_a_few_then_students_alone(tmp_path):
    def references(root, against=None):
        return [one.label for one in report.compared([root], against)[0][0].references]

    make_run(tmp_path / "few", "vanilla", 1, 50.0, "NONE")
    make_run(tmp_path / "few", "kd", 1, 50.0)
    assert references(tmp_path / "few") == ["vanilla", "KD"]
    assert references(tmp_path / "few", ["kd"]) == ["KD"]
    for method in ("KD", "DKD", "SIMKD", "ATSC"):
        make_run(tmp_path / "many", method, 1, 50.0, method)
    make_run(tmp_path / "many", "vanilla", 1, 50.0, "NONE")
    assert references(tmp_path / "many") == ["vanilla"]
    arms(tmp_path / "suite", {"a": 1.0, "b": 1.0}, job={"against": ["b", "gone"]})
    assert references(tmp_path / "suite") == ["b"]
    with pytest.raises(PluginError, match="--against kdd: no such row; expected of KD, vanilla"):
        references(tmp_path / "few", ["kdd"])


def test_several_teachers_of_one_seed_are_averaged_before_the_test(tmp_path):
    for teacher in (1, 2):
        for seed in (1, 2, 3):
            cfg = {"TEACHER": {"SEED": teacher, "EPOCHS": 10}}
            make_run(tmp_path / f"t{teacher}", "kd", seed, 50.0, cfg=cfg)
            make_run(tmp_path / f"t{teacher}", "simkd", seed, 50.0 + seed + 10 * teacher, "SIMKD", cfg=cfg)
    found = row(tables_of(tmp_path)[0], "SIMKD").differences["KD"]
    half = 4.302652729911275 / 3**0.5  # t(.975, 2), spread 1
    assert (found.n, found.mean) == (3, 17.0)  # 11, 12, 13 and 21, 22, 23: the seeds have 16, 17, 18
    assert (found.low, found.high) == pytest.approx((17 - half, 17 + half))
    assert found.verdict == "no verdict: 3 seeds < 5"


def test_no_p_is_shown_below_five_seeds(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path, "kd", seed, 50.0)
        make_run(tmp_path, "simkd", seed, 60.0 + seed, "SIMKD")
    lines = layout.tests(tables_of(tmp_path)[0]).rows
    assert [line["p"].text for line in lines] == ["", ""]
    assert lines[0]["verdict"].text == "no verdict: 2 seeds < 5"
