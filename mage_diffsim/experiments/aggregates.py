"""Aggregates over the runs of several tasks, with bootstrap intervals.

They are those of Agarwal et al., "Deep RL at the Edge of the Statistical Precipice", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mage_diffsim.experiments.statistics import LEVEL

RESAMPLES = 2000
"""Bootstrap samples of every aggregate."""


@dataclass(frozen=True)
class Aggregate:
    """A point estimate with its bootstrap interval; all NaN where there is nothing to estimate from.

    The percentiles are those of 95%; of fewer than about ten runs a task, a bootstrap covers the truth less often.
    """

    value: float
    low: float
    high: float


def interquartile_mean(values: np.ndarray) -> Any:
    """The mean of the middle half over the last axis; a quarter of the mass is cut at each end, parts of values too.

    Args:
        values: shape [..., n].
    """
    ordered = np.sort(values, axis=-1)
    n = ordered.shape[-1]
    # How much of each value lies in the middle half of n equal pieces.
    edges = np.arange(n + 1) / n
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return (ordered * weight).sum(-1) / weight.sum()


def aggregate(scores: Sequence[Sequence[float]], seed: int = 0) -> Aggregate:
    """Interquartile mean over all runs of all tasks, with a stratified bootstrap: runs are redrawn within their task.

    Args:
        scores: the runs' scores, one sequence per task.
        seed: of the bootstrap.
    """
    strata = [np.asarray(task, dtype=np.float64) for task in scores]
    return _bootstrap(strata, lambda drawn: interquartile_mean(np.concatenate(drawn, axis=-1)), seed)


def probability_of_improvement(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], seed: int = 0
) -> Aggregate:
    """How often a run of ours beats one of theirs on the same task, ties half, averaged over tasks.

    Args:
        ours, theirs: scores of two algorithms, one sequence of runs per task, the same tasks in the same order.
        seed: of the bootstrap.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} tasks are compared with {len(theirs)}; accepted are the same tasks")
    strata = [np.asarray(task, dtype=np.float64) for task in (*ours, *theirs)]

    def mean_over_tasks(drawn: Sequence[np.ndarray]) -> Any:
        half = len(drawn) // 2
        return np.mean([_wins(x, y) for x, y in zip(drawn[:half], drawn[half:], strict=True)], axis=0)

    return _bootstrap(strata, mean_over_tasks, seed)


def _wins(ours: np.ndarray, theirs: np.ndarray) -> Any:
    """The share of pairs of runs that ours win, ties half, over the last axis; shapes [..., n] and [..., m]."""
    n, m = ours.shape[-1], theirs.shape[-1]
    # Twice the wins of a value: how many of theirs lie below it, and how many do not lie above it.
    twice = [
        (y.searchsorted(x) + y.searchsorted(x, "right")).sum()
        for x, y in zip(ours.reshape(-1, n), np.sort(theirs, axis=-1).reshape(-1, m), strict=True)
    ]
    return np.reshape(twice, ours.shape[:-1]) / (2 * n * m)


def _bootstrap(strata: Sequence[np.ndarray], statistic: Callable[[Sequence[np.ndarray]], Any], seed: int) -> Aggregate:
    """The statistic of the strata, and its 95% percentile interval when each is redrawn with replacement."""
    if not strata or any(x.size == 0 or not np.isfinite(x).all() for x in strata):
        return Aggregate(math.nan, math.nan, math.nan)
    generator = np.random.default_rng(seed)
    drawn = [x[generator.integers(x.size, size=(RESAMPLES, x.size))] for x in strata]
    low, high = np.quantile(statistic(drawn), (0.5 - 0.5 * LEVEL, 0.5 + 0.5 * LEVEL))
    return Aggregate(float(statistic(strata)), float(low), float(high))
