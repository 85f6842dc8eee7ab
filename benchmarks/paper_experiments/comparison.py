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
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.command import Experiment, Findings, Size, Table
from mage_diffsim.experiments.figures import Panel, draw, line, styles
from mage_diffsim.experiments.rows import CELL_FIELDS, CURVE_FIELDS, SUMMARY_FIELDS, curve_rows, summary_rows
from mage_diffsim.experiments.statistics import (
    LAST_EVALUATIONS,
    Interval,
    aggregate,
    interval,
    middle,
    probability_of_improvement,
    rank_test,
)
from mage_diffsim.experiments.tables import enumeration, text, write_csv
from mage_diffsim.settings import make_config
from paper_experiments.gpu_hours import gpu_hours
from paper_experiments.verdicts import Claim, aggregate_text, speed_findings, verdict_of

SMOOTHED = 25
"""Evaluations in the window over which the paper smooths its curves [D.2], at every size."""


@dataclass(frozen=True)
class Comparison(Experiment):
    """Tasks x variants under one budget, and the paper's numbers beside them. A subclass is data."""

    FILES: ClassVar[tuple[str, ...]] = ("summary.csv", "curves.csv", "figure.png")
    SOURCE: ClassVar[str]
    """Where in the paper."""
    VARIANTS: ClassVar[dict[str, dict[str, Any]]]
    """Name, used in run folders, to fields of TrainConfig."""
    TASKS: ClassVar[dict[Size, tuple[str, ...]]]
    """Tasks by size."""
    PAPER: ClassVar[dict[tuple[str, str], float]] = {}
    """(task, variant) to the return in the paper."""
    PAPER_BUDGET: ClassVar[str] = "after 100,000 steps, read off its figures, which are smoothed over 25 evaluations"
    """What these numbers are."""
    CLAIMS: ClassVar[tuple[Claim, ...]] = ()
    """Pairs of variants to compare."""
    OF_VARIANT: ClassVar[dict[Size, dict[str, dict[str, Any]]]] = {}
    """What of a size's budget is different for single variants."""
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
        """The tasks as they were given, with their names."""
        given = self.TASKS[self.size] if self.tasks is None else self.tasks
        if not given:
            raise InputError("tasks is empty; accepted is one or more tasks")
        return [(task, make_task(task).name) for task in given]

    def report(self, outcomes: list[Outcome], out: Path) -> Findings:
        runs, curves = self.named(summary_rows, outcomes), self.named(curve_rows, outcomes)
        write_csv(out / "summary.csv", SUMMARY_FIELDS, runs)
        write_csv(out / "curves.csv", CURVE_FIELDS, curves)
        best = best_of(curves)
        scores = best if self.BEST else scores_of(runs)
        seeds = " to ".join(map(str, sorted({len(values) for values in scores_of(runs).values()})))
        what = "median" if self.MEDIAN else "mean"
        title = f"{self.SOURCE}: return. Thick: {what} over {seeds} seeds. Thin: single seeds"
        draw(out / "figure.png", title, self._panels(curves))
        header = ("task", "variant", "return", "interquartile mean", "best evaluation", "paper", "restarts", "seeds")
        table = [
            (
                task,
                name,
                text(self._interval(values)),
                aggregate_text(aggregate([values])),
                text(self._interval(best[task, name])),
                f"{self.PAPER[task, name]:g}" if (task, name) in self.PAPER else "-",
                str(sum(row["restarts"] for row in runs if (row["task"], row["variant"]) == (task, name))),
                str(len(values)),
            )
            for (task, name), values in scores_of(runs).items()
        ]
        absent, unpaid = self.not_run(runs)
        table += absent
        found = self.sentences(scores) + speed_findings(runs, self.CLAIMS)
        if self.BEST:
            peaks = [f"{task} {name} {text(interval([y]))}" for (task, name), y in peaks_of(curves).items()]
            found.append(f"The highest point of the mean over runs, as in Table 1 of TD3's paper: {'; '.join(peaks)}.")
            found.append("Best evaluations and highest points leave out the untrained networks of step 0.")
        if any(key in self.PAPER for key in scores):
            steps = enumeration([str(n) for n in sorted({row["env_steps"] for row in runs})])
            found.append(
                f"The paper's numbers are {self.PAPER_BUDGET}; ours are after {steps} steps, so only the order can be "
                "compared."
            )
        found += unpaid
        found.append(
            f"Returns are means over a run's {LAST_EVALUATIONS}"
            + (", and brackets after medians of fewer than six runs their range" if self.MEDIAN else "")
            + "; brackets after interquartile means and probabilities are a stratified bootstrap's, which of fewer "
            "than about ten runs is narrower than 95%. Runs that are not told apart need not be equal."
        )
        return Findings(Table(f"{self.SOURCE}: return by variant", header, table), notes=found)

    def not_run(self, runs: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, ...]], list[str]]:
        """What of the paper's own experiment is not among the runs.

        Returns:
            a row of the table for every pair of task and variant that is absent altogether, with the GPU hours that it
            would take, and sentences about all cells that are absent at the paper's size.
        """
        if self.size == "smoke":
            return [], []
        whole = self.size == "paper" and self.preset in (None, "paper")
        done: dict[tuple[str, str], list[int]] = {}
        for row in runs:
            done.setdefault((row["task"], row["variant"]), []).append(row["env_steps"])
        rows, absent = [], {}
        for cell in type(self)(size="paper").cells():
            config, task = cell.config, cell.name.partition("_")[0]
            hours = gpu_hours(config)
            for name in dict.fromkeys(self.variant_of(cell, {"lambda": lam}) for lam in config.lambdas):
                steps = done.get((task, name), [])
                if whole and len(steps) >= len(config.seeds) and min(steps) >= config.steps:
                    continue
                budget = (config.steps, len(config.seeds), math.ceil(hours))
                absent.setdefault(budget, {}).setdefault(name, []).append(task)
                if not steps:
                    paper = f"{self.PAPER[task, name]:g}" if (task, name) in self.PAPER else "-"
                    rows.append((task, name, f"not run: {hours:.1f} h", "-", "-", paper, "-", f"0 of {budget[1]}"))
        said = []
        for (steps, seeds, hours), variants in absent.items():
            tasks: dict[tuple[str, ...], list[str]] = {}
            for name, of in variants.items():
                tasks.setdefault(tuple(of), []).append(name)
            which = "; ".join(f"{enumeration(names)} on {enumeration(of)}" for of, names in tasks.items())
            said.append(
                f"Not run at the paper's size, {steps:,} steps of {seeds} runs: {which} (up to {hours} h a cell on one "
                "GPU, see `gpu_hours` in paper.py)."
            )
        return rows, said

    def sentences(self, scores: Mapping[tuple[str, str], Sequence[float]]) -> list[str]:
        """What the scores say of the paper's claims; differences are told by an exact rank test at 5%."""
        what = "best evaluation of " if self.BEST else ""
        found = []
        tasks = list(dict.fromkeys(task for task, _ in scores))
        for claim in self.CLAIMS:
            pairs = {
                task: (scores[task, claim.first], scores[task, claim.second])
                for task in tasks
                if (task, claim.first) in scores and (task, claim.second) in scores
            }
            for task, (a, b) in pairs.items():
                chance = probability_of_improvement([a], [b]).value
                paper = tuple(self.PAPER.get((task, name)) for name in (claim.first, claim.second))
                found.append(
                    f"{task}: {what}{claim.first} {text(self._interval(a))} against {claim.second} "
                    f"{text(self._interval(b))}: {verdict_of(a, b, claim.relation, paper)}; it wins "
                    f"{chance:.0%} of the pairs of runs (rank test, p = {rank_test(a, b):.2g})."
                )
            if len(pairs) > 1:
                chance = probability_of_improvement([a for a, _ in pairs.values()], [b for _, b in pairs.values()])
                found.append(
                    f"Over the {len(pairs)} tasks a run of {claim.first} beats one of {claim.second} with probability "
                    f"{aggregate_text(chance)}."
                )
        return found

    def named(
        self, rows_of: Callable[[list[Outcome]], list[dict[str, Any]]], outcomes: Sequence[Outcome]
    ) -> list[dict[str, Any]]:
        """Rows of all outcomes, with the names of their variants."""
        return [row | {"variant": self.variant_of(o.cell, row)} for o in outcomes for row in rows_of([o])]

    def variant_of(self, cell: Cell, row: Mapping[str, Any]) -> str:
        """The key of VARIANTS that a row of a cell belongs to."""
        return next(name for name in self.VARIANTS if cell.name.endswith(f"_{name}"))

    def _interval(self, values: Sequence[float]) -> Interval:
        return middle(values) if self.MEDIAN else interval(values)

    def styles(self, curves: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
        """Colour and line style of every variant that was trained."""
        firsts = {row["variant"]: row for row in reversed(curves)}
        names = [name for name in self.VARIANTS if name in firsts]
        cells = [(firsts[n]["method"], firsts[n]["dynamics"], firsts[n]["backend"]) for n in names]
        return dict(zip(names, styles(cells), strict=True))

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
    """Rows of curves with ``return_mean`` replaced by its mean over the run's last SMOOTHED evaluations, or over all
    that there are so far where these are fewer, which the paper does not speak of."""
    histories: dict[tuple[Any, ...], list[float]] = {}
    found = []
    for row in sorted(rows, key=lambda r: r["env_step"]):
        history = histories.setdefault(tuple(row[f] for f in (*CELL_FIELDS, "lambda", "seed")), [])
        history.append(row["return_mean"])
        found.append({**row, "return_mean": statistics.fmean(history[-SMOOTHED:])})
    return found


def scores_of(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """(task, variant) to the final returns of its runs."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in runs:
        found.setdefault((row["task"], row["variant"]), []).append(row["final_return"])
    return found


def best_of(curves: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """(task, variant) to the highest mean return of an evaluation of each run, the untrained one apart: Table 1."""
    best: dict[tuple[str, str], dict[tuple[Any, ...], float]] = {}
    for row in curves:
        if row["env_step"] > 0:
            runs, run = best.setdefault((row["task"], row["variant"]), {}), (row["seed"], row["lambda"])
            runs[run] = max(runs.get(run, -math.inf), row["return_mean"])
    return {key: list(runs.values()) for key, runs in best.items()}


def peaks_of(curves: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """(task, variant) to the highest mean over runs of any evaluation, the untrained one apart."""
    at: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in curves:
        if row["env_step"] > 0:
            at.setdefault((row["task"], row["variant"]), {}).setdefault(row["env_step"], []).append(row["return_mean"])
    return {key: max(map(statistics.fmean, steps.values())) for key, steps in at.items()}
