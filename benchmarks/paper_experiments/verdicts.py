"""Whether two variants differ, by an exact rank test, and whether the paper says so."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mage_diffsim.experiments.statistics import Aggregate, probability_of_improvement, rank_test
from mage_diffsim.experiments.tables import decimals


@dataclass(frozen=True)
class Claim:
    """What the paper says of two variants where it prints no numbers of both."""

    first: str
    second: str
    relation: Literal["better", "no worse"] | None = None
    """Of the first; None where only the paper's numbers for a task say."""


def speed_findings(runs: Sequence[Mapping[str, Any]], claims: Sequence[Claim]) -> list[str]:
    """When the variants of each claim first solved their task, in sentences.

    Args:
        runs: rows of SUMMARY_FIELDS with the names of their variants; a run that solved nothing ranks last.
        claims: pairs of variants to compare.
    """
    steps: dict[tuple[str, str], list[float]] = {}
    for row in runs:
        step = row["steps_to_threshold"]
        steps.setdefault((row["task"], row["variant"]), []).append(math.inf if step is None else float(step))
    found = []
    for task, claim in itertools.product(dict.fromkeys(task for task, _ in steps), claims):
        a, b = steps.get((task, claim.first), []), steps.get((task, claim.second), [])
        if not a or not b or not any(map(math.isfinite, a + b)):
            continue
        last = 1.0 + max(x for x in a + b if math.isfinite(x))  # unsolved runs, in arithmetic that needs finite ranks
        ours, theirs = ([min(x, last) for x in side] for side in (a, b))
        p, earlier = rank_test(ours, theirs), probability_of_improvement([theirs], [ours]).value
        verdict = ("earlier" if earlier > 0.5 else "later") if p <= 0.05 else undecided(a, b)
        found.append(
            f"{task} is first solved by {claim.first} {step_text(a)} and by {claim.second} {step_text(b)}: {verdict} "
            f"(rank test, p = {p:.2g})."
        )
    return found


def step_text(steps: Sequence[float]) -> str:
    """In how many runs, and the median over all if that is a step."""
    solved, median = sum(map(math.isfinite, steps)), statistics.median(steps)
    at = f"at step {median:g} (median), " if math.isfinite(median) else ""
    return f"{at}in {solved} of {len(steps)} runs"


def undecided(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """What a rank test says that tells nothing apart: with too few runs it never could."""
    smallest = 2.0 / math.comb(len(ours) + len(theirs), len(ours))
    return "not told apart" if smallest <= 0.05 else "too few seeds to be told apart"


def verdict_of(
    ours: Sequence[float],
    theirs: Sequence[float],
    relation: Literal["better", "no worse"] | None,
    paper: tuple[float | None, ...],
) -> str:
    """Whether the scores differ, in words, and whether that is what the paper has.

    Args:
        ours, theirs: scores of two variants, one per run.
        relation: what the paper says of the first; None where only its numbers say.
        paper: the paper's numbers of the two, or None.
    """
    a, b = paper
    if relation is None and a is not None and b is not None:
        relation = "better" if a > b else "no worse" if a == b else None
    if rank_test(ours, theirs) <= 0.05:
        higher = probability_of_improvement([ours], [theirs]).value > 0.5
        agrees = {"better": ", as in the paper", "no worse": ", where the paper has no difference", None: ""}
        against = {"better": ", the reverse of the paper", "no worse": ", where the paper has no harm", None: ""}
        said = "higher" + agrees[relation] if higher else "lower" + against[relation]
    elif (said := undecided(ours, theirs)) == "not told apart":
        said += {
            "better": ", where the paper has the first higher",
            "no worse": ": no harm seen, as in the paper",
            None: "",
        }[relation]
    if a is None or b is None:
        return said
    return f"{said} ({'' if 'paper' in said else 'the paper: '}{a:g} against {b:g})"


def aggregate_text(found: Aggregate) -> str:
    """``value [low, high]`` of a bootstrap."""
    if math.isnan(found.value):
        return "-"
    digits = decimals(found.value)
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"
