"""Experiments that compare variants of the learner on tasks under one budget."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mage_diffsim.envs.registry import make_task
from mage_diffsim.errors import InputError
from mage_diffsim.experiments.aggregates import aggregate
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.command import Experiment, Findings, Size
from mage_diffsim.experiments.figures import Dash, Panel, draw, line, styles
from mage_diffsim.experiments.rows import CELL_FIELDS, CURVE_FIELDS, SUMMARY_FIELDS, curve_rows, summary_rows
from mage_diffsim.experiments.statistics import LAST_EVALUATIONS, Interval, interval, middle
from mage_diffsim.experiments.tables import Table, enumeration, text, write_csv
from mage_diffsim.settings import make_config
from paper_experiments.gpu_hours import gpu_hours
from paper_experiments.verdicts import PAIRS_HEADER, Claim, aggregate_text, pair_rows, pair_verdict, steps_of

HEADER = (
    "task", "variant", "return", "interquartile mean", "best evaluation", "highest mean", "paper", "restarts", "seeds",
)  # fmt: skip
"""Columns of the table of returns."""

NOT_RUN_HEADER = ("task", "variants", "steps", "seeds", "GPU hours", "paper")
"""Columns of :meth:`Comparison.not_run`."""

SMOOTHED = 25
"""Number of evaluations over which the paper smooths its curves [D.2]; used at every size."""


@dataclass(frozen=True)
class Comparison(Experiment):
    """Trains variants on tasks under one budget and compares them with the paper's numbers. A subclass is data."""

    FILES: ClassVar[tuple[str, ...]] = ("summary.csv", "curves.csv", "figure.png")
    SOURCE: ClassVar[str]
    """Figure, table or equation of the paper."""
    VARIANTS: ClassVar[dict[str, dict[str, Any]]]
    """Name, which is part of the run folder's, to fields of TrainConfig."""
    TASKS: ClassVar[dict[Size, tuple[str, ...]]]
    """Tasks by size."""
    PAPER: ClassVar[dict[tuple[str, str], float]] = {}
    """(task, variant) to the return in the paper."""
    PAPER_BUDGET: ClassVar[str] = "after 100,000 steps, read off its figures, which are smoothed over 25 evaluations"
    """What the numbers of PAPER are."""
    CLAIMS: ClassVar[tuple[Claim, ...]] = ()
    """Pairs of variants to compare."""
    OF_VARIANT: ClassVar[dict[Size, dict[str, dict[str, Any]]]] = {}
    """Size to variant to what differs from the size's budget."""
    MEDIAN: ClassVar[bool] = False
    """Whether the paper shows medians instead of means."""
    BEST: ClassVar[bool] = False
    """Whether the paper compares the best evaluation of a run instead of its last ones."""

    tasks: tuple[str, ...] | None = None
    """Registered tasks, path/to/file.py:Class or module:Class; by default those of the size."""

    def cells(self) -> list[Cell]:
        own = self.OF_VARIANT.get(self.size, {})
        return [
            Cell(f"{name}_{variant}", make_config(task, shared=self.budget(task, own.get(variant)) | settings))
            for task, name in self.chosen()
            for variant, settings in self.VARIANTS.items()
        ]

    def chosen(self) -> list[tuple[str, str]]:
        """Returns the tasks as they were given, with their names.

        Raises:
            InputError: there are none.
        """
        given = self.TASKS[self.size] if self.tasks is None else self.tasks
        if not given:
            raise InputError("tasks is empty; accepted is one or more tasks")
        return [(task, make_task(task).name) for task in given]

    def report(self, outcomes: list[Outcome], out: Path) -> Findings:
        runs, curves = self.named(summary_rows, outcomes), self.named(curve_rows, outcomes)
        write_csv(out / "summary.csv", SUMMARY_FIELDS, runs)
        write_csv(out / "curves.csv", CURVE_FIELDS, curves)
        returns, best, absent = scores_of(runs), best_of(curves), self.not_run(runs)
        seeds = " to ".join(map(str, sorted({len(values) for values in returns.values()})))
        what = "median" if self.MEDIAN else "mean"
        title = f"{self.SOURCE}: return. Thick: {what} over {seeds} seeds. Thin: single seeds"
        draw(out / "figure.png", title, self._panels(curves))
        pairs = pair_rows(best if self.BEST else returns, steps_of(runs), self.CLAIMS, self.PAPER)
        verdict = pair_verdict(pairs)
        if absent:
            hours = sum(float(row[NOT_RUN_HEADER.index("GPU hours")]) for row in absent)
            verdict.append(f"Not run at the paper's size: {len(absent)} cells, {hours:.0f} GPU hours.")
        return Findings(
            Table(f"{self.SOURCE}: return by variant", HEADER, self._table(runs, curves)),
            verdict,
            [
                Table("Pairs of variants that the paper compares", PAIRS_HEADER, pairs),
                Table("Not run at the paper's size", NOT_RUN_HEADER, absent),
            ],
            self._notes(runs),
        )

    def _table(self, runs: Sequence[Mapping[str, Any]], curves: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
        best, peaks = best_of(curves), peaks_of(curves)
        return [
            (
                *key,
                text(self._interval(values)),
                aggregate_text(aggregate([values])),
                text(self._interval(best.get(key, []))),
                text(interval([peaks[key]])) if self.BEST and key in peaks else "-",
                self._paper_text(key),
                restarts_text(runs, *key),
                str(len(values)),
            )
            for key, values in scores_of(runs).items()
        ]

    def _paper_text(self, key: tuple[str, str]) -> str:
        return f"{self.PAPER[key]:g}" if key in self.PAPER else "-"

    def _notes(self, runs: Sequence[Mapping[str, Any]]) -> list[str]:
        of = "medians" if self.MEDIAN else "means"
        found = [
            f"A run's return is its mean over the {LAST_EVALUATIONS}. The table has {of} over runs and 95% intervals"
            + ("; of fewer than six runs the brackets are the range." if self.MEDIAN else "."),
            "Interquartile means and probabilities have bootstrap intervals, too narrow below about ten runs.",
            "Pairs are told apart by an exact rank test at 5%; a run that solved nothing ranks last.",
            "Pairs that are not told apart need not be equal.",
        ]
        if self.BEST:
            found.append("Pairs are compared by each run's best evaluation; step 0, before training, does not count.")
        if any((row["task"], row["variant"]) in self.PAPER for row in runs):
            steps = enumeration([f"{n:,}" for n in sorted({row["env_steps"] for row in runs})])
            found.append(f"The paper's numbers are {self.PAPER_BUDGET}; ours are after {steps} steps.")
        return found

    def not_run(self, runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
        """Returns a row under NOT_RUN_HEADER for every cell of the paper's size that is not among the runs."""
        if self.size == "smoke":
            return []
        whole = self.size == "paper" and self.preset in (None, "paper")
        done: dict[tuple[str, str], list[int]] = {}
        for row in runs if whole else ():
            done.setdefault((row["task"], row["variant"]), []).append(row["env_steps"])
        found = []
        for cell in type(self)(size="paper").cells():
            config, task = cell.config, cell.name.partition("_")[0]
            names = list(dict.fromkeys(self.variant_of(cell, {"lambda": lam}) for lam in config.lambdas))
            steps = [done.get((task, name), []) for name in names]
            if all(len(of) >= len(config.seeds) and min(of) >= config.steps for of in steps):
                continue
            paper = ", ".join(self._paper_text((task, name)) for name in names if (task, name) in self.PAPER)
            budget = f"{config.steps:,}", str(len(config.seeds)), f"{gpu_hours(config):.1f}"
            found.append((task, ", ".join(names), *budget, paper or "-"))
        return found

    def named(
        self, rows_of: Callable[[list[Outcome]], list[dict[str, Any]]], outcomes: Sequence[Outcome]
    ) -> list[dict[str, Any]]:
        """Returns the rows of all outcomes, with the names of their variants."""
        return [row | {"variant": self.variant_of(o.cell, row)} for o in outcomes for row in rows_of([o])]

    def variant_of(self, cell: Cell, row: Mapping[str, Any]) -> str:
        """Returns the key of VARIANTS that a row of a cell belongs to."""
        return next(name for name in self.VARIANTS if cell.name.endswith(f"_{name}"))

    def _interval(self, values: Sequence[float]) -> Interval:
        return middle(values) if self.MEDIAN else interval(values)

    def styles(self, curves: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, Dash]]:
        """Returns colour and line style of every variant that was trained."""
        firsts = {row["variant"]: row for row in reversed(curves)}
        return styles(
            {
                name: (firsts[name]["method"], firsts[name]["dynamics"], firsts[name]["backend"])
                for name in self.VARIANTS
                if name in firsts
            }
        )

    def _panels(self, curves: Sequence[Mapping[str, Any]]) -> list[list[Panel]]:
        grid = []
        for task in dict.fromkeys(row["task"] for row in curves):
            mine = [row for row in curves if row["task"] == task]
            panels = []
            for title, rows in ((f"mean of the last {SMOOTHED} evaluations", smoothed(mine)), ("raw", mine)):
                lines = tuple(
                    line(name, [r for r in rows if r["variant"] == name], "return_mean", *style, median=self.MEDIAN)
                    for name, style in self.styles(mine).items()
                )
                panels.append(Panel(f"{task}: {title}", "undiscounted return per episode", lines))
            grid.append(panels)
        return grid


def smoothed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows of curves.csv whose ``return_mean`` is its mean over the run's last SMOOTHED evaluations.

    At the start of a run these are fewer, of which the paper says nothing.
    """
    histories: dict[tuple[Any, ...], list[float]] = {}
    found = []
    for row in sorted(rows, key=lambda r: r["env_step"]):
        history = histories.setdefault(tuple(row[f] for f in (*CELL_FIELDS, "lambda", "seed")), [])
        history.append(row["return_mean"])
        found.append({**row, "return_mean": statistics.fmean(history[-SMOOTHED:])})
    return found


def scores_of(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Returns (task, variant) to the final returns of its runs."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in runs:
        found.setdefault((row["task"], row["variant"]), []).append(row["final_return"])
    return found


def restarts_text(runs: Sequence[Mapping[str, Any]], task: str, variant: str) -> str:
    """Returns how often the runs of a variant began anew with a fresh agent."""
    return str(sum(row["restarts"] for row in runs if (row["task"], row["variant"]) == (task, variant)))


def best_of(curves: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Returns (task, variant) to each run's best evaluation after step 0, as in Table 1."""
    best: dict[tuple[str, str], dict[tuple[Any, ...], float]] = {}
    for row in curves:
        if row["env_step"] > 0:
            runs, run = best.setdefault((row["task"], row["variant"]), {}), (row["seed"], row["lambda"])
            runs[run] = max(runs.get(run, -math.inf), row["return_mean"])
    return {key: list(runs.values()) for key, runs in best.items()}


def peaks_of(curves: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Returns (task, variant) to the highest mean over runs of any evaluation after step 0."""
    at: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in curves:
        if row["env_step"] > 0:
            at.setdefault((row["task"], row["variant"]), {}).setdefault(row["env_step"], []).append(row["return_mean"])
    return {key: max(map(statistics.fmean, steps.values())) for key, steps in at.items()}
