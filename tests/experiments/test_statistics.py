"""Student's t against closed forms, intervals against their definition and their coverage."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from mage_diffsim.experiments.aggregates import aggregate, interquartile_mean, probability_of_improvement
from mage_diffsim.experiments.statistics import (
    Interval,
    final_value,
    interval,
    middle,
    rank_test,
    side_of,
    steps_to_threshold,
    t_cdf,
    t_quantile,
)

POINTS = (-7.0, -1.3, 0.0, 0.4, 1.0, 2.5, 30.0)


@pytest.mark.parametrize("t", POINTS)
def test_t_with_one_and_two_degrees_of_freedom_has_its_closed_form(t):
    assert t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-14)
    assert t_cdf(t, 2) == pytest.approx(0.5 + t / (2.0 * math.sqrt(2.0 + t * t)), abs=1e-14)


@pytest.mark.parametrize("dof", [3, 4, 5, 6, 9, 10, 24, 29])
def test_t_cdf_is_the_integral_of_the_density(dof):
    for t in (-1.7, 0.3, 2.2):
        x = np.linspace(0.0, t, 20001)
        log_constant = math.lgamma((dof + 1) / 2) - math.lgamma(dof / 2) - 0.5 * math.log(dof * math.pi)
        density = np.exp(log_constant - (dof + 1) / 2 * np.log1p(x**2 / dof))
        assert t_cdf(t, dof) == pytest.approx(0.5 + np.trapezoid(density, x), abs=1e-8)  # step^2 = 1e-8


def test_t_with_many_degrees_of_freedom_is_normal():
    assert t_cdf(1.5, 20000) == pytest.approx(0.5 * (1.0 + math.erf(1.5 / math.sqrt(2.0))), abs=1e-5)


@pytest.mark.parametrize(
    ("dof", "value"), [(1, 12.7062047), (2, 4.30265273), (4, 2.77644511), (9, 2.26215716), (29, 2.04522964)]
)
def test_t_quantile_is_the_tabulated_one(dof, value):
    assert t_quantile(0.975, dof) == pytest.approx(value, rel=1e-8)


def test_t_quantile_inverts_the_cdf_and_is_zero_in_the_middle():
    assert t_quantile(0.5, 3) == pytest.approx(0.0, abs=1e-9)
    assert t_cdf(t_quantile(0.9, 7), 7) == pytest.approx(0.9, abs=1e-11)


@pytest.mark.parametrize(("p", "dof"), [(1.0, 3), (0.2, 3), (0.9, 0)])
def test_t_quantile_refuses_what_it_cannot_invert(p, dof):
    with pytest.raises(ValueError, match="accepted is"):
        t_quantile(p, dof)


def test_interval_of_three_values_is_t_times_the_standard_error():
    found = interval([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.half == pytest.approx(4.30265273 * np.std([1, 2, 6], ddof=1) / math.sqrt(3), rel=1e-8)
    assert (found.low, found.high) == (found.mean - found.half, found.mean + found.half)


def test_interval_covers_the_truth_in_95_percent_of_samples():
    samples = np.random.default_rng(0).normal(3.0, 2.0, (4000, 4))
    covered = np.mean([found.low <= 3.0 <= found.high for found in map(interval, samples.tolist())])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_interval_leaves_out_undefined_values_and_knows_nothing_from_one():
    assert interval([1.0, None, 3.0, math.nan]).n == 2
    one = interval([5.0])
    assert (one.mean, one.n, one.known) == (5.0, 1, False)
    assert interval([]).n == 0 and math.isnan(interval([]).mean)


def test_geometric_interval_is_the_interval_of_the_logarithm():
    found = interval([1.0, 10.0, 100.0, 0.0, math.nan], geometric=True)
    logs = interval([0.0, 1.0, 2.0])
    assert (found.n, found.mean) == (3, pytest.approx(10.0))
    assert math.log10(found.low) == pytest.approx(logs.low) and math.log10(found.high) == pytest.approx(logs.high)
    assert not interval([3.0], geometric=True).known and interval([], geometric=True).n == 0


def test_an_effect_lies_above_or_below_none_or_is_not_told_apart_from_it():
    assert side_of(Interval(3.0, 2.9, 3)) == "above" and side_of(Interval(-3.0, 2.9, 3)) == "below"
    assert side_of(Interval(3.0, 3.1, 3)) == side_of(Interval(0.0, 0.0, 3)) == "not told apart"
    assert side_of(Interval(2.0, 1.9, 3, geometric=True)) == "above"
    assert side_of(Interval(0.5, 1.9, 3, geometric=True)) == "below"
    assert side_of(Interval(0.5, 2.1, 3, geometric=True)) == "not told apart"
    assert side_of(Interval(3.0, math.nan, 1)) == "unknown"


def test_final_value_is_the_mean_of_the_last_evaluations_without_the_untrained_one():
    rows = [{"env_step": s, "x": float(s)} for s in (30, 0, 10, 20)]  # any order
    assert final_value(rows, "x") == 30.0
    rows = [{"env_step": s, "x": float(s)} for s in range(41)]
    assert final_value(rows[:11], "x") == 9.5, "two of ten: the last quarter"
    assert final_value(rows, "x") == 38.0, "never more than five"
    doubling = [{"env_step": s, "x": 2.0**s} for s in range(9)]
    assert final_value(doubling, "x", geometric=True) == pytest.approx(2.0**7.5)
    assert math.isnan(final_value([{"env_step": 10, "x": math.nan}], "x"))


def test_steps_to_threshold_is_the_first_evaluation_that_reaches_it():
    rows = [{"env_step": s, "return_mean": r} for s, r in ((0, -9.0), (10, -2.0), (20, -1.0), (30, -5.0), (40, 0.0))]
    assert steps_to_threshold(rows, -1.0) == 20
    assert steps_to_threshold(rows, 1.0) is None
    assert steps_to_threshold(rows, None) is None


def test_the_interquartile_mean_cuts_a_quarter_of_the_mass_at_each_end():
    assert interquartile_mean(np.array([9.0, 1.0, 2.0, -50.0])) == 1.5
    assert interquartile_mean(np.arange(8.0)[::-1]) == np.mean([2.0, 3.0, 4.0, 5.0])
    # Of five equal pieces the middle half holds the third whole, and three quarters of its neighbours.
    assert interquartile_mean(np.array([-9.0, 1.0, 2.0, 4.0, 99.0])) == pytest.approx((0.75 + 2.0 + 3.0) / 2.5)
    assert interquartile_mean(np.array([7.0])) == 7.0
    shifted = np.random.default_rng(0).normal(size=(3, 12))
    np.testing.assert_allclose(interquartile_mean(2.0 * shifted + 1.0), 2.0 * interquartile_mean(shifted) + 1.0)


def test_a_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        found = aggregate(generator.normal(size=(4, 10)).tolist(), seed=trial)
        assert found.low <= found.value <= found.high
        covered += found.low <= 0.0 <= found.high
    assert 0.86 <= covered / 100 <= 1.0


def test_strata_are_redrawn_within_their_tasks():
    """Were runs redrawn across tasks, the two levels would mix and the interval would be wide."""
    found = aggregate([[0.0, 0.0, 0.0, 0.0], [10.0, 10.0, 10.0, 10.0]])
    assert (found.value, found.low, found.high) == (5.0, 5.0, 5.0)


def test_the_probability_of_improvement_counts_pairs():
    found = probability_of_improvement([[1.0, 3.0], [5.0, 5.0]], [[2.0, 0.0], [5.0, 5.0]])
    assert found.value == pytest.approx((0.75 + 0.5) / 2)
    assert probability_of_improvement([[3.0, 4.0]], [[1.0, 2.0]]).low == 1.0
    x, y = [[1.0, 4.0, 2.5]], [[2.0, 3.0]]
    assert probability_of_improvement(x, y).value + probability_of_improvement(y, x).value == pytest.approx(1.0)
    normal = np.random.default_rng(2).normal(size=(2, 400))
    # P(X + 1 > Y) for independent standard normals is Phi(1 / sqrt 2).
    assert probability_of_improvement([(normal[0] + 1.0).tolist()], [normal[1].tolist()]).value == pytest.approx(
        0.5 * (1.0 + math.erf(0.5)), abs=0.03
    )
    # Ties by hand: 1 beats none of {1, 2, 2} and ties one; 2 beats one and ties two.
    assert probability_of_improvement([[1.0, 2.0]], [[2.0, 1.0, 2.0]]).value == pytest.approx((0.5 + 2.0) / 6)
    with pytest.raises(ValueError, match="1 tasks are compared with 2"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])


def test_the_probability_of_improvement_never_holds_all_pairs_of_all_samples():
    x, y = np.random.default_rng(0).normal(size=(2, 200)).tolist()
    tracemalloc.start()
    try:
        probability_of_improvement([x], [y])
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20  # the pairs are 80 million
    finally:
        tracemalloc.stop()


def test_aggregates_of_nothing_and_of_broken_runs_are_undefined():
    assert math.isnan(aggregate([]).value) and math.isnan(aggregate([[1.0, math.nan]]).value)


def test_the_median_is_covered_by_order_statistics():
    assert (middle([5.0, 1.0, 3.0]).low, middle([5.0, 1.0, 3.0]).mean, middle([5.0, 1.0, 3.0]).high) == (1.0, 3.0, 5.0)
    nine = middle(range(9))
    assert (nine.low, nine.mean, nine.high) == (1.0, 4.0, 7.0)  # 1 - 20 / 512 = 96%
    assert (middle(range(8)).low, middle(range(8)).high) == (0.0, 7.0)  # one less each side would be 93%
    assert not middle([2.0]).known and middle([None, math.nan]).n == 0
    samples = np.random.default_rng(0).exponential(size=(4000, 12))
    covered = np.mean([found.low <= math.log(2.0) <= found.high for found in map(middle, samples.tolist())])
    assert 0.95 - 0.012 <= covered <= 0.975


def test_the_rank_test_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(3)
    for n, m in ((3, 3), (5, 5), (4, 7)):
        x, y = generator.normal(size=n), generator.normal(0.8, size=m)
        expected = stats.mannwhitneyu(x, y, method="exact").pvalue
        assert rank_test(x.tolist(), y.tolist()) == pytest.approx(expected, rel=1e-9)
    assert rank_test([1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 8.0, 9.0, 10.0]) == pytest.approx(2 / 252)
    assert rank_test([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]) == 1.0
    # Ties by hand: of the 6 divisions of {0, 0, 1, 1} two are as unequal as (0, 0) against (1, 1).
    assert rank_test([0.0, 0.0], [1.0, 1.0]) == pytest.approx(2 / 6)
    x, y = generator.normal(size=15), generator.normal(0.8, size=15)  # too many divisions to count: drawn
    assert rank_test(x.tolist(), y.tolist()) == pytest.approx(stats.mannwhitneyu(x, y, method="exact").pvalue, abs=0.01)


def test_a_bootstrap_of_five_runs_is_narrower_than_it_says():
    """What the reports warn of."""
    generator = np.random.default_rng(4)
    covered = [
        (found := aggregate([generator.normal(size=5).tolist()], seed=trial)).low <= 0.0 <= found.high
        for trial in range(200)
    ]
    assert 0.8 <= np.mean(covered) <= 0.94
