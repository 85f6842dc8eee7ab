"""Whether two variants differ, by an exact rank test, and whether that is what the paper says."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mage_diffsim.experiments.aggregates import Aggregate, probability_of_improvement
from mage_diffsim.experiments.statistics import rank_test
from mage_diffsim.experiments.tables import decimals

Relation = Literal["better", "no worse"]
"""What the paper says of the first of two variants."""

Scores = Mapping[tuple[str, str], Sequence[float]]
"""(task, variant) to one number per run."""

NOT_TOLD, TOO_FEW = "not told apart", "too few seeds"

PAIRS_HEADER = (
    "task", "first", "second", "first wins", "p", "first is", "paper", "claim", "first solved", "second solved",
    "p of steps", "first solves",
)  # fmt: skip
"""Columns of :func:`pair_rows`."""


@dataclass(frozen=True)
class Claim:
    """Two variants that the paper compares."""

    first: str
    second: str
    relation: Relation | None = None
    """What the paper says of the first; None where only the paper's numbers for a task say."""


def told(ours: Sequence[float], theirs: Sequence[float], more: str, less: str) -> str:
    """Returns ``more`` or ``less`` where a rank test tells ours from theirs at 5%, else why it does not."""
    if rank_test(ours, theirs) <= 0.05:
        return more if probability_of_improvement([ours], [theirs]).value > 0.5 else less
    smallest = 2.0 / math.comb(len(ours) + len(theirs), len(ours))  # no outcome of so few runs has a smaller p
    return NOT_TOLD if smallest <= 0.05 else TOO_FEW


def relation_of(claim: Claim, first: float | None, second: float | None) -> Relation | None:
    """Returns what the paper says of the first variant, in words or by its numbers of the two."""
    if claim.relation is not None or first is None or second is None:
        return claim.relation
    return "better" if first > second else "no worse" if first == second else None


def judged(found: str, relation: Relation | None) -> str:
    """Returns whether what was found agrees with the paper's claim; ``-`` where there is none.

    Args:
        found: ``higher``, ``lower`` or why it is not told.
        relation: what the paper says of the first variant.
    """
    if relation is None:
        return "-"
    return {"higher": "agrees", "lower": "disagrees"}.get(found, "undecided")


def pair_rows(
    scores: Scores, steps: Scores, claims: Sequence[Claim], paper: Mapping[tuple[str, str], float]
) -> list[tuple[str, ...]]:
    """Returns a row under PAIRS_HEADER for every claim and task, and one for all tasks of a claim.

    Args:
        scores: of every run; more is better.
        steps: when every run first solved its task, infinite where it did not.
        claims: pairs of variants.
        paper: (task, variant) to the paper's number.
    """
    rows = []
    for claim in claims:
        tasks = [task for task, name in scores if name == claim.first and (task, claim.second) in scores]
        pairs = [(scores[task, claim.first], scores[task, claim.second]) for task in tasks]
        for task, (a, b) in zip(tasks, pairs, strict=True):
            numbers = paper.get((task, claim.first)), paper.get((task, claim.second))
            relation, found = relation_of(claim, *numbers), told(a, b, "higher", "lower")
            said = [relation or ""] + ([f"{numbers[0]:g} against {numbers[1]:g}"] if None not in numbers else [])
            rows.append(
                (
                    task, claim.first, claim.second, f"{probability_of_improvement([a], [b]).value:.0%}",
                    f"{rank_test(a, b):.2g}", found, ", ".join(filter(None, said)) or "-", judged(found, relation),
                    *speed_columns(steps[task, claim.first], steps[task, claim.second]),
                )
            )  # fmt: skip
        if len(pairs) > 1:
            chance = probability_of_improvement([a for a, _ in pairs], [b for _, b in pairs])
            rows.append(("all", claim.first, claim.second, aggregate_text(chance), *["-"] * 8))
    return rows


def pair_verdict(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns what :func:`pair_rows` come to, in at most two lines."""
    claims, solved = ([row[PAIRS_HEADER.index(name)] for row in rows] for name in ("claim", "first solves"))
    found = []
    if judgements := [claim for claim in claims if claim != "-"]:
        words = {"agrees": "agree", "disagrees": "disagree", "undecided": "undecided"}
        counts = ", ".join(f"{judgements.count(one)} {many}" for one, many in words.items())
        found.append(f"Claims of the paper: {counts}, of {len(judgements)}.")
    if speeds := [word for word in solved if word != "-"]:
        counts = ", ".join(f"{speeds.count(word)} {word}" for word in ("earlier", "later"))
        found.append(f"First variant solves its task: {counts}, of {len(speeds)} pairs.")
    return found


def steps_of(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Returns (task, variant) to the step at which each run first solved its task, infinite where it did not."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in runs:
        step = row["steps_to_threshold"]
        found.setdefault((row["task"], row["variant"]), []).append(math.inf if step is None else float(step))
    return found


def speed_columns(ours: Sequence[float], theirs: Sequence[float]) -> tuple[str, str, str, str]:
    """Returns when two variants solved their task, the p value and which was earlier; unsolved runs rank last."""
    finite = [step for step in (*ours, *theirs) if math.isfinite(step)]
    if not finite:
        return ("-", "-", "-", "-")
    last = 1.0 + max(finite)  # the rank test needs finite numbers
    a, b = ([min(step, last) for step in side] for side in (ours, theirs))
    return step_text(ours), step_text(theirs), f"{rank_test(a, b):.2g}", told(a, b, "later", "earlier")


def step_text(steps: Sequence[float]) -> str:
    """Returns the median step, if more than half of the runs solved the task, and how many did."""
    solved, median = sum(map(math.isfinite, steps)), statistics.median(steps)
    return (f"{median:g}, " if math.isfinite(median) else "") + f"{solved} of {len(steps)}"


def aggregate_text(found: Aggregate) -> str:
    """Returns ``value [low, high]`` of a bootstrap."""
    if math.isnan(found.value):
        return "-"
    digits = decimals(found.value)
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
