"""Statistics over a few seeds: means with Student-t confidence intervals, and what two intervals allow one to say."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

LEVEL = 0.95
"""Coverage of every confidence interval."""

FINAL_EVALUATIONS = 5
"""A run's final value is its mean over this many last evaluations: one evaluation alone is mostly noise."""


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

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean / self.half if self.geometric else self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean * self.half if self.geometric else self.mean + self.half

    @property
    def known(self) -> bool:
        """Whether there is an interval at all."""
        return not math.isnan(self.half)


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


Verdict = Literal["above", "below", "overlap", "unknown"]


def compare(a: Interval, b: Interval) -> Verdict:
    """Where ``a`` lies seen from ``b``; ``unknown`` where one of them is not an interval."""
    if not (a.known and b.known):
        return "unknown"
    if a.low > b.high:
        return "above"
    return "below" if a.high < b.low else "overlap"


def final_value(
    rows: Sequence[Mapping[str, Any]], column: str, evaluations: int = FINAL_EVALUATIONS, *, geometric: bool = False
) -> float:
    """Mean of a column over one run's last evaluations (the untrained one at step 0 never counts).

    Args:
        rows: one run's rows of eval.csv.
        column: which number; its None and NaN values are left out.
        evaluations: how many of the last evaluations.
        geometric: take the geometric mean.

    Returns:
        the mean, NaN if no value is left.
    """
    trained = sorted((r for r in rows if r["env_step"] > 0), key=lambda r: r["env_step"])
    return interval((r[column] for r in trained[-evaluations:]), geometric=geometric).mean


def steps_to_threshold(rows: Sequence[Mapping[str, Any]], threshold: float | None) -> int | None:
    """Environment step of one run's first evaluation whose mean return reaches the threshold; None if none does."""
    if threshold is None:
        return None
    return min((r["env_step"] for r in rows if r["return_mean"] >= threshold), default=None)
