"""The runs of a sweep that differ in nothing but their seed, and their names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mage_diffsim.experiments.cells import Cell
from mage_diffsim.experiments.rows import CELL_FIELDS, identity
from mage_diffsim.experiments.statistics import Interval, interval

METHOD_NAMES = {
    "mage-td3": "MAGE-TD3",
    "mage-ddpg": "MAGE-DDPG",
    "dyna-td3": "Dyna-TD3",
    "dyna-ddpg": "Dyna-DDPG",
    "td3": "TD3",
    "ddpg": "DDPG",
    "data-efficient-td3": "Data-Efficient TD3",
}
"""Method names as the paper writes them."""

HYBRID_NAMES = {
    "hybrid-oracle-gradients": "learned values, oracle gradients",
    "hybrid-learned-gradients": "oracle values, learned gradients",
}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    task: str
    method: str
    dynamics: str
    backend: str
    variant: str
    lam: float
    rows: tuple[Mapping[str, Any], ...]
    """Their summary rows."""

    def value(self, column: str) -> Interval:
        """Mean over seeds of a column of SUMMARY_FIELDS; the geometric mean of the gradient error."""
        return interval((row[column] for row in self.rows), geometric=column == "gradient_error")

    @property
    def solved(self) -> list[int]:
        """Environment steps at which the seeds that solved the task did so."""
        return [row["steps_to_threshold"] for row in self.rows if row["steps_to_threshold"] is not None]

    @property
    def source(self) -> str:
        """Where its transitions come from, in words."""
        return source_name(self.dynamics, self.backend)

    @property
    def name(self) -> str:
        """Method and dynamics, in words."""
        return _in_words(self.method, self.dynamics, self.backend, self.variant)


def cell_name(cell: Cell) -> str:
    """Method and dynamics of a cell, in words."""
    who = identity(cell)
    return _in_words(who["method"], who["dynamics"], who["backend"], who["variant"])


def _in_words(method: str, dynamics: str, backend: str, variant: str) -> str:
    return f"{METHOD_NAMES[method]}, {source_name(dynamics, backend)}" + (f", {variant}" if variant else "")


def source_name(dynamics: str, backend: str) -> str:
    """What the learner imagines with, in words."""
    if not dynamics:
        return "model-free"
    if dynamics == "oracle":
        return f"oracle ({backend})"
    return HYBRID_NAMES.get(dynamics, dynamics) + (f" ({backend})" if dynamics in HYBRID_NAMES else "")


def groups_of(rows: Iterable[Mapping[str, Any]]) -> list[Group]:
    """Summary rows by everything but the seed, in order of first appearance."""
    found: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[f] for f in (*CELL_FIELDS, "lambda")), []).append(row)
    return [Group(*key, rows=tuple(value)) for key, value in found.items()]


def label(group: Group, groups: Sequence[Group]) -> str:
    """The group's name, with its lambda where the groups differ in lambda."""
    several = len({g.lam for g in groups}) > 1
    return f"{group.name}, λ = {group.lam:g}" if several else group.name


def paired(ours: Group, theirs: Group, column: str) -> Interval:
    """The difference of a column of SUMMARY_FIELDS, ours less theirs, over pairs of runs with the same seed.

    Of the gradient error it is the ratio. Runs of one seed share their first networks and random streams.
    """
    other = {row["seed"]: row[column] for row in theirs.rows}
    pairs = [(row[column], other[row["seed"]]) for row in ours.rows if row["seed"] in other]
    if column == "gradient_error":
        return interval((x / y if y else math.nan for x, y in pairs), geometric=True)
    return interval(x - y for x, y in pairs)
