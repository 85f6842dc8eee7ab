"""Statistics over a few seeds: means with Student-t confidence intervals, and tests of differences."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

LEVEL = 0.95
"""Coverage of every confidence interval."""

FINAL_EVALUATIONS = 5
"""A run's final value is its mean over this many last evaluations: one evaluation alone is mostly noise."""

LAST_EVALUATIONS = f"last {FINAL_EVALUATIONS} evaluations (of fewer than {4 * FINAL_EVALUATIONS} the last quarter)"
"""Which evaluations those are, in words."""


def t_cdf(t: float, dof: int) -> float:
    """P(T <= t) of Student's t with ``dof`` >= 1 degrees of freedom.

    The finite series for integer degrees of freedom: Abramowitz & Stegun 26.7.3 and 26.7.4.

    Raises:
        ValueError: ``dof`` is below 1.
    """
    if dof < 1:
        raise ValueError(f"dof is {dof}; accepted is 1 or more")
    angle = math.atan(t / math.sqrt(dof))
    cos2 = math.cos(angle) ** 2
    odd = dof % 2
    term = total = math.cos(angle) if odd else 1.0
    for k in range(3 if odd else 2, dof - 1, 2):
        term *= cos2 * (k - 1) / k
        total += term
    if dof == 1:
        total = 0.0
    inside = math.sin(angle) * total
    return 0.5 + (0.5 * inside if not odd else (angle + inside) / math.pi)


@functools.cache
def t_quantile(p: float, dof: int) -> float:
    """The t with P(T <= t) = p, by bisection of :func:`t_cdf`; 0.5 <= p < 1.

    Raises:
        ValueError: ``p`` or ``dof`` is out of range.
    """
    if not 0.5 <= p < 1.0:
        raise ValueError(f"p is {p}; accepted is 0.5 or more, below 1")
    low, high = 0.0, 1.0
    while t_cdf(high, dof) < p:
        high *= 2.0
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if t_cdf(middle, dof) < p else (low, middle)
    return high


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` seeds with its 95% confidence interval."""

    mean: float
    """NaN if there is no value."""
    half: float
    """Half-width; of a geometric mean the factor (``mean / half`` to ``mean * half``). NaN below two values: one seed
    says nothing about another."""
    n: int
    """Number of values."""
    geometric: bool = False
    """Whether mean and interval were taken of the logarithm."""
    ends: tuple[float, float] | None = None
    """Lower and upper end where they are not the same distance away."""

    @property
    def low(self) -> float:
        """Lower end."""
        if self.ends is not None:
            return self.ends[0]
        return self.mean / self.half if self.geometric else self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        if self.ends is not None:
            return self.ends[1]
        return self.mean * self.half if self.geometric else self.mean + self.half

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return self.ends is not None or not math.isnan(self.half)


def interval(values: Iterable[float | int | None], *, geometric: bool = False) -> Interval:
    """Mean and confidence interval; None and NaN (an undefined metric) are left out and not counted.

    Args:
        values: one per seed.
        geometric: take both of the logarithm, as fits positive numbers that differ by orders of magnitude; numbers
            without a logarithm are left out too.
    """
    x = [float(v) for v in values if v is not None and not math.isnan(v)]
    if geometric:
        logs = interval(math.log(v) if v < math.inf else v for v in x if v > 0.0)
        return Interval(math.exp(logs.mean), math.exp(min(logs.half, 600.0)), logs.n, geometric=True)  # no overflow
    n = len(x)
    if n == 0:
        return Interval(math.nan, math.nan, 0)
    mean = math.fsum(x) / n
    if n == 1:
        return Interval(mean, math.nan, 1)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in x) / (n - 1))
    return Interval(mean, t_quantile(0.5 + 0.5 * LEVEL, n - 1) * deviation / math.sqrt(n), n)


def middle(values: Iterable[float | int | None]) -> Interval:
    """The median with the narrowest pair of order statistics that covers it in 95% of samples of any distribution.

    Of fewer than six values that is their range, which covers it in 1 - 2^(1 - n): 94% for 5, 75% for 3. None and NaN
    are left out.
    """
    x = sorted(float(v) for v in values if v is not None and not math.isnan(v))
    n = len(x)
    if n < 2:
        return Interval(x[0] if x else math.nan, math.nan, n)
    cut = below = 0  # values cut off at each end, and 2^n P(more than that lie on one side of the median)
    while 2 * (below := below + math.comb(n, cut)) <= (1.0 - LEVEL) * 2**n:
        cut += 1
    cut = max(cut - 1, 0)
    return Interval(statistics.median(x), math.nan, n, ends=(x[cut], x[n - 1 - cut]))


Verdict = Literal["above", "below", "not told apart", "unknown"]


def side_of(effect: Interval) -> Verdict:
    """On which side of no effect a difference (0) or a ratio (1, of a geometric mean) lies with its whole interval;
    ``unknown`` where there is none."""
    none = 1.0 if effect.geometric else 0.0
    if not effect.known:
        return "unknown"
    if effect.low > none:
        return "above"
    return "below" if effect.high < none else "not told apart"


def final_value(rows: Sequence[Mapping[str, Any]], column: str, *, geometric: bool = False) -> float:
    """Mean of a column over one run's last FINAL_EVALUATIONS evaluations, or its last quarter if that is fewer (the
    untrained one at step 0 never counts).

    Args:
        rows: one run's rows of eval.csv.
        column: which number; its None and NaN values are left out.
        geometric: take the geometric mean.

    Returns:
        the mean, NaN if no value is left.
    """
    trained = sorted((r for r in rows if r["env_step"] > 0), key=lambda r: r["env_step"])
    window = max(1, min(FINAL_EVALUATIONS, len(trained) // 4))
    return interval((r[column] for r in trained[-window:]), geometric=geometric).mean


def steps_to_threshold(rows: Sequence[Mapping[str, Any]], threshold: float | None) -> int | None:
    """Environment step of one run's first evaluation whose mean return reaches the threshold; None if none does."""
    if threshold is None:
        return None
    return min((r["env_step"] for r in rows if r["return_mean"] >= threshold), default=None)


PERMUTATIONS = 100_000
"""Ways to divide the runs that :func:`rank_test` counts; of more it draws so many."""


def rank_test(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided p-value of the Mann-Whitney test that runs of the one are larger than of the other, exact with ties.

    It assumes no distribution, which fits returns that are bounded or fall apart into solved and not. With n runs each
    it cannot be smaller than 2 n! n! / (2n)!: 0.1 for 3, 0.029 for 4, 0.008 for 5.

    Args:
        ours, theirs: finite scores of independent runs.

    Returns:
        the share of all divisions of the runs into groups of these sizes that are as unequal as this one or more.
    """
    x, y = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    pooled = np.concatenate([x, y])
    apart = pooled[:, None] - pooled[None, :]
    rank = ((apart > 0.0) + 0.5 * (apart == 0.0)).sum(1)
    n, total = x.size, pooled.size
    if math.comb(total, n) <= PERMUTATIONS:
        groups = np.array(list(itertools.combinations(range(total), n)))
    else:
        groups = np.random.default_rng(0).permuted(np.tile(np.arange(total), (PERMUTATIONS, 1)), axis=1)[:, :n]
    distance = np.abs(rank[groups].sum(1) - n * rank.mean())
    return float((distance >= abs(rank[:n].sum() - n * rank.mean()) - 1e-9).mean())
