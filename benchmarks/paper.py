"""Experiments of the MAGE paper, one subcommand each. Each is resumable and writes CSV, a figure and what was found."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from mage_diffsim.config import METHODS, TrainConfig, make_config
from mage_diffsim.envs.physics import backends_of
from mage_diffsim.envs.registry import make_task
from mage_diffsim.errors import InputError, unknown_name
from mage_diffsim.experiments import report
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.command import SMOKE, Experiment, Findings, Size, main
from mage_diffsim.experiments.figures import DASHES, PALETTE, Line, Panel, draw, line
from mage_diffsim.experiments.graph import computation_graph, draw_graph
from mage_diffsim.experiments.horizons import disagreement, write_horizons
from mage_diffsim.experiments.statistics import (
    Aggregate,
    Interval,
    aggregate,
    final_value,
    interval,
    middle,
    probability_of_improvement,
    rank_test,
    side_of,
)
from mage_diffsim.runs import load_trainer
from mage_diffsim.training import Trainer


@dataclass(frozen=True)
class Unconstrained(Experiment):
    """Appendix B.1, Fig. 5: without the TD error (lambda = 0) the critic's action-gradients degenerate.

    MAGE-DDPG on the torch oracle of Pendulum, with lambda = 0.2 as the contrast; every lambda and seed trains in one
    process. Writes curves.csv, figure.png and summary.md.
    """

    NAME: ClassVar[str] = "unconstrained"
    FILES: ClassVar[tuple[str, ...]] = ("curves.csv", "figure.png")
    CURVES: ClassVar[dict[str, str]] = {
        "grad_q": "|∇ₐ Q(s, a)|",
        "grad_q_through_dynamics": "|∇ₐ Q(s', π(s'))|",
        "grad_reward": "|∇ₐ r(s, a)|",
    }
    """The curves of Fig. 5: columns of curves.csv and what they hold, means over a batch at a = pi(s). The second is
    that of s' = s'(s, a), through the dynamics; the gradient by the next state's action alone is `grad_q_next`."""
    COLLAPSED: ClassVar[float] = 0.01
    """|grad_a Q| has collapsed when it is below this share of what it is compared with."""
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = {
        "smoke": dict(seeds=(0, 1), steps=150, evaluations=3, eval_episodes=2, hyper=dict(warmup_steps=50)),
        "cpu": dict(seeds=(0, 1, 2, 3, 4), steps=5000, evaluations=50),
        # Fig. 5 is not of performance, so D.2's 1000 steps between evaluations do not hold; over how many steps it is
        # drawn is not stated.
        "paper": dict(seeds=(0, 1, 2, 3, 4), steps=10_000, eval_every=100),
    }

    lambdas: tuple[float, ...] = (0.0, 0.2)
    """Weights of the TD error; 0 is the unconstrained loss of Fig. 5, the others are beside it for comparison."""

    def cells(self) -> list[Cell]:
        config = make_config(
            "Pendulum",
            method="mage-ddpg",
            dynamics="oracle",
            backend="torch",
            lambdas=self.lambdas,
            gradient_episodes=0,  # Fig. 5 shows sizes of gradients, which every evaluation writes anyway
            shared=self.budget("Pendulum"),
        )
        return [Cell("Pendulum_mage-ddpg_oracle_torch", config)]

    def report(self, outcomes: list[Outcome], out: Path) -> Findings:
        rows = report.curve_rows(outcomes)
        report.write_csv(out / "curves.csv", report.CURVE_FIELDS, rows)
        by_lambda = {lam: [r for r in rows if r["lambda"] == lam] for lam in self.lambdas}
        panels = [
            Panel(f"λ = {lam:g}", "mean norm over a batch", self._lines(mine), log=True)
            for lam, mine in by_lambda.items()
        ]
        seeds = len({row["seed"] for row in rows})
        title = f"MAGE-DDPG, oracle Pendulum: action-gradients, geometric mean and 95% c.i. over {seeds} seeds"
        draw(out / "figure.png", title, [panels])
        last = {lam: [r for r in mine if r["env_step"] == rows[-1]["env_step"]] for lam, mine in by_lambda.items()}
        header = ("λ", *self.CURVES.values(), "return")
        table = [
            (
                f"{lam:g}",
                *(report.text(interval((r[c] for r in mine), geometric=True)) for c in self.CURVES),
                report.text(interval(r["return_mean"] for r in mine)),
            )
            for lam, mine in last.items()
        ]
        return Findings(
            f"Fig. 5: action-gradients at step {rows[-1]['env_step']}", header, table, unconstrained_findings(last)
        )

    def _lines(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Line, ...]:
        styles = zip(PALETTE, DASHES, strict=False)
        curves = zip(self.CURVES.items(), styles, strict=False)
        return tuple(line(name, rows, column, *style, geometric=True) for (column, name), style in curves)


def unconstrained_findings(last: Mapping[float, Sequence[Mapping[str, Any]]]) -> list[str]:
    """How small |grad_a Q| became, in sentences.

    Args:
        last: lambda to its seeds' last rows of curves.csv, in the same order of seeds.
    """
    share = Unconstrained.COLLAPSED
    found = []
    known: dict[float, list[float]] = {}
    for lam, rows in last.items():
        if any(row["grad_q"] is None or not row["grad_reward"] for row in rows):
            found.append(f"λ = {lam:g}: the run ended before its first critic update, so there is nothing to measure.")
            continue
        known[lam] = [row["grad_q"] for row in rows]
        ratios = [row["grad_q"] / row["grad_reward"] for row in rows]
        found.append(
            f"λ = {lam:g}: |∇ₐ Q| ends at {report.text(interval(ratios, geometric=True))} times |∇ₐ r|, below "
            f"{share:.0%} of it in {sum(r < share for r in ratios)} of {len(ratios)} seeds."
        )
    for lam in known:
        if 0.0 in known and lam > 0.0:
            ratio = interval((a / b for a, b in zip(known[0.0], known[lam], strict=True)), geometric=True)
            verdict = " These seeds do not tell whether it collapses beside it."
            if ratio.known and ratio.high < share:
                verdict = " It collapses beside it."
            elif ratio.known and ratio.low > share:
                verdict = " No collapse."
            found.append(f"|∇ₐ Q| of λ = 0 is {report.text(ratio)} times that of λ = {lam:g}, seed by seed.{verdict}")
    if 0.0 in known:
        found.append(
            "Without the TD error the loss is least at ∇ₐ Q(s, a) = ∇ₐ r(s, a) + γ ∇ₐ Q(s', π(s')): where the second "
            "term is lost, the immediate reward still draws |∇ₐ Q| towards |∇ₐ r|, so a collapse need not end at zero."
        )
    return found


PAPER_TASKS = ("Pendulum", "CartPole", "HalfCheetah", "Swimmer", "Walker2d", "Pusher")
"""The tasks of Fig. 2 and Fig. 6. The published code has a Hopper, which no figure shows."""

SMOOTHED = 25
"""Evaluations in the window over which the paper smooths its curves [D.2], at every size."""


@dataclass(frozen=True)
class Claim:
    """What the paper says of two variants where it prints no numbers of both."""

    first: str
    second: str
    relation: Literal["better", "no worse"] | None = None
    """Of the first; None where only the paper's numbers for a task say."""


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
        runs, curves = self.named(report.summary_rows, outcomes), self.named(report.curve_rows, outcomes)
        report.write_csv(out / "summary.csv", report.SUMMARY_FIELDS, runs)
        report.write_csv(out / "curves.csv", report.CURVE_FIELDS, curves)
        best = best_of(curves)
        scores = best if self.BEST else scores_of(runs)
        seeds = " to ".join(map(str, sorted({len(values) for values in scores_of(runs).values()})))
        what = "median and its 95% c.i." if self.MEDIAN else "mean and 95% c.i."
        draw(out / "figure.png", f"{self.SOURCE}: return, {what} over {seeds} seeds", self._panels(curves))
        header = ("task", "variant", "return", "interquartile mean", "best evaluation", "paper", "restarts", "seeds")
        table = [
            (
                task,
                name,
                report.text(self._interval(values)),
                aggregate_text(aggregate([values])),
                report.text(self._interval(best[task, name])),
                f"{self.PAPER[task, name]:g}" if (task, name) in self.PAPER else "-",
                str(sum(row["restarts"] for row in runs if (row["task"], row["variant"]) == (task, name))),
                str(len(values)),
            )
            for (task, name), values in scores_of(runs).items()
        ]
        absent, unpaid = self.not_run(runs)
        table += absent
        found = self.sentences(scores) + speed_findings(runs, self.CLAIMS)
        found += report.restarts(runs, lambda row: f"{row['task']} {row['variant']}")
        if self.BEST:
            peaks = [f"{task} {name} {report.text(interval([y]))}" for (task, name), y in peaks_of(curves).items()]
            found.append(f"The highest point of the mean over runs, as in Table 1 of TD3's paper: {'; '.join(peaks)}.")
            found.append("Best evaluations and highest points leave out the untrained networks of step 0.")
        if any(key in self.PAPER for key in scores):
            steps = report.enumeration([str(n) for n in sorted({row["env_steps"] for row in runs})])
            found.append(
                f"The paper's numbers are {self.PAPER_BUDGET}; ours are after {steps} steps, so only the order can be "
                "compared."
            )
        found += unpaid
        found.append(
            f"Returns are means over a run's {report.LAST_EVALUATIONS}"
            + (", and brackets after medians of fewer than six runs their range" if self.MEDIAN else "")
            + "; brackets after interquartile means and probabilities are a stratified bootstrap's, which of fewer "
            "than about ten runs is narrower than 95%. Runs that are not told apart need not be equal."
        )
        return Findings(f"{self.SOURCE}: return by variant", header, table, found)

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
            which = "; ".join(f"{report.enumeration(names)} on {report.enumeration(of)}" for of, names in tasks.items())
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
                    f"{task}: {what}{claim.first} {report.text(self._interval(a))} against {claim.second} "
                    f"{report.text(self._interval(b))}: {verdict_of(a, b, claim.relation, paper)}; it wins "
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

    def _panels(self, curves: Sequence[Mapping[str, Any]]) -> list[list[Panel]]:
        grid = []
        for task in dict.fromkeys(row["task"] for row in curves):
            mine = [row for row in curves if row["task"] == task]
            panels = []
            for title, rows in ((f"mean of the last {SMOOTHED} evaluations", smoothed(mine)), ("raw", mine)):
                styles = zip(self.VARIANTS, PALETTE, strict=False)
                lines = tuple(
                    line(name, [r for r in rows if r["variant"] == name], "return_mean", colour, median=self.MEDIAN)
                    for name, colour in styles
                )
                panels.append(Panel(f"{task}: {title}", "undiscounted return per episode", lines))
            grid.append(panels)
        return grid


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


MEASURED: dict[str, Any] = dict(
    seeds=(0, 1, 2, 3, 4),
    lambdas=(0.05,),
    steps=500,
    eval_every=10,
    eval_episodes=1,
    gradient_horizon=1000,
    freeze_actor=True,
    hyper=dict(warmup_steps=200, updates_per_step=10),
)
"""The gradient-error experiment of appendix D.2, with the truth of whole episodes. For how many steps the paper trained
is not said: with few, no critic has gradients yet that could be compared."""


@dataclass(frozen=True)
class GradientError(Comparison):
    """Eq. 14 and appendix D.2: how far the critic's action-gradients are from the true ones of a frozen actor's return.

    After 200 transitions the standard algorithm, but the actor is never updated (its input is normalised by the running
    statistics, as in training, so the policy still drifts a little, in all variants alike); every 10 steps 10
    trajectories from the real start, along which the true gradient is that of the empirical discounted return through
    the simulator. The first row of the table is the untrained critic, before the first update.
    Beside MAGE and Dyna the controls: ``shuffled`` gives the critic other samples' gradients, ``random`` random
    directions of the same size. All variants of a seed have the same actor, so they are compared seed by seed.
    """

    NAME: ClassVar[str] = "gradient-error"
    SOURCE: ClassVar[str] = "Eq. 14"
    FILES: ClassVar[tuple[str, ...]] = ("curves.csv", "figure.png", "horizon.csv", "horizon.png")
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "MAGE-TD3": dict(method="mage-td3"),
        "Dyna-TD3": dict(method="dyna-td3"),
        "shuffled": dict(method="mage-td3", loss="shuffled"),
        "random": dict(method="mage-td3", loss="random"),
    }
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = {
        "smoke": SMOKE | dict(freeze_actor=True, steps=60, evaluations=3, hyper=SMOKE["hyper"] | dict(warmup_steps=20)),
        "cpu": MEASURED,
        "paper": MEASURED | dict(steps=3000),
    }
    OF_TASK: ClassVar[dict[Size, dict[str, dict[str, Any]]]] = {
        # Some actors' gradients grow a thousandfold within 200 steps of Swimmer, and without bound beyond.
        "cpu": {"Pendulum": dict(steps=1000), "Swimmer": dict(gradient_horizon=200)},
        "paper": {"Swimmer": dict(gradient_horizon=200)},
    }
    TASKS: ClassVar[dict[Size, tuple[str, ...]]] = {
        "smoke": ("Pendulum",),
        "cpu": ("Pendulum", "Swimmer", "HalfCheetah"),
        "paper": ("Pendulum", "HalfCheetah", "Swimmer", "Walker2d", "Hopper"),
    }

    def budget(self, task: str, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
        backends = backends_of(make_task(task))
        # Derivatives of whole trajectories through MuJoCo C are differences, which take minutes.
        real = {"environment": "warp"} if backends[0] == "mujoco" and "warp" in backends else {}
        return real | super().budget(task, own)

    def report(self, outcomes: list[Outcome], out: Path) -> Findings:
        runs, curves = self.named(report.summary_rows, outcomes), self.named(report.curve_rows, outcomes)
        tasks = list(dict.fromkeys(row["task"] for row in curves))
        # Every variant has the same frozen actors, so one of each task shows the size of the true gradient.
        firsts = {o.cell.config.make_task().name: o for o in reversed(outcomes) if o.status == "done"}
        write_horizons([("frozen actor", firsts[t]) for t in tasks], out, "frozen actors", self.longest_horizon)
        table, found = [], []
        for task in tasks:
            trainer = load_trainer(firsts[task].run_dir, device="cpu")
            numbers = {UNTRAINED: self._untrained([r for r in curves if r["task"] == task], trainer)}
            for name in self.VARIANTS:
                mine = [r for r in runs if (r["task"], r["variant"]) == (task, name)]
                numbers[name] = {r["seed"]: (r["gradient_error"], r["gradient_cosine"]) for r in mine}
            for name, of_seed in numbers.items():
                error = interval((e for e, _ in of_seed.values()), geometric=True)
                cosine = interval(c for _, c in of_seed.values())
                steps = str(trainer.gradient_steps)
                table.append((task, name, steps, report.text(error), report.text(cosine), str(len(of_seed))))
            found += gradient_error_findings(task, numbers) + agreement(trainer)
        found += report.restarts(runs, lambda r: f"{r['task']} {r['variant']}")
        report.write_csv(out / "curves.csv", report.CURVE_FIELDS, curves)
        grid = []
        for task in tasks:
            panels = []
            for column, label, log in (
                ("gradient_error", "mean |true - critic's| gradient, discounted", True),
                ("gradient_cosine", "cosine to the true action-gradient", False),
            ):
                lines = tuple(
                    line(name, [r for r in curves if (r["task"], r["variant"]) == (task, name)], column, colour,
                         geometric=log)
                    for name, colour in zip(self.VARIANTS, PALETTE, strict=False)
                )  # fmt: skip
                limits = None if log else (-1.05, 1.05)
                panels.append(Panel(task, label, lines, log=log, limits=limits))
            grid.append(panels)
        seeds = len({row["seed"] for row in curves})
        draw(
            out / "figure.png", f"Eq. 14, frozen actor: geometric mean (cosine: mean) and 95% c.i., {seeds} seeds", grid
        )
        header = ("task", "variant", "steps of truth", "gradient error", "cosine", "seeds")
        return Findings("Eq. 14: gradient error over the last measurements", header, table, found)

    def _untrained(self, curves: Sequence[Mapping[str, Any]], trainer: Trainer) -> dict[int, tuple[float, float]]:
        """Seed to the error and cosine of the first variant's critic in the last measurements before its first update.

        Not in all of them: the first are of a policy whose input's normalisation still moves.
        """
        first = next(iter(self.VARIANTS))
        by_seed: dict[int, list[Mapping[str, Any]]] = {}
        for row in curves:
            if row["variant"] == first and row["env_step"] < trainer.hyper.warmup_steps:
                by_seed.setdefault(row["seed"], []).append(row)
        return {
            seed: (final_value(rows, "gradient_error", geometric=True), final_value(rows, "gradient_cosine"))
            for seed, rows in by_seed.items()
        }


UNTRAINED = "untrained critic"

AGREEMENT_EPISODES = 2
"""Trajectories per actor along which oracles are compared: differences of MuJoCo C take minutes for more."""


def agreement(trainer: Trainer) -> list[str]:
    """How well oracles on different backends agree about Eq. 14's truth, over its whole horizon, in sentences."""
    task, horizon = trainer.task, trainer.gradient_steps
    first = backends_of(task)[0]
    found = []
    for backend, apart in disagreement(trainer, horizon, AGREEMENT_EPISODES).items():
        beyond = int((~(apart <= 1e-4)).sum())
        found.append(
            f"{task.name}: true gradients over {horizon} steps through {backend} differ from those through {first} by "
            f"{apart.nanmedian():.1g} of their size (median of {len(apart)} trajectories), by more than 1e-4 along "
            f"{beyond}."
        )
    return found or [f"{task.name}: no second oracle could be had to compare the true gradients with."]


def gradient_error_findings(task: str, numbers: Mapping[str, Mapping[int, tuple[float, float]]]) -> list[str]:
    """What the gradient errors and cosines say of the paper's claim and of the controls.

    Args:
        task: its name.
        numbers: variant to seed to the error and the cosine of its run; runs of a seed share an actor.
    """
    found = []
    for name, other, claim in (
        ("MAGE-TD3", "Dyna-TD3", "as the paper says"),
        ("shuffled", "Dyna-TD3", "though it saw other samples' gradients"),
        ("random", "Dyna-TD3", "though it saw random directions"),
        ("MAGE-TD3", "shuffled", "so it matters whose gradients it sees"),
        ("MAGE-TD3", UNTRAINED, ""),
    ):
        if not numbers.get(name) or not numbers.get(other):
            continue
        pairs = [(numbers[name][seed], numbers[other][seed]) for seed in numbers[name].keys() & numbers[other].keys()]
        ratio = interval((mine[0] / theirs[0] if theirs[0] else math.nan for mine, theirs in pairs), geometric=True)
        if not ratio.n:
            continue
        words = {
            "unknown": f"cannot be compared with that of {other}: too few seeds",
            "below": f"is below that of {other}" + (f", {claim}" if claim else ""),
            "above": f"is above that of {other}",
            "not told apart": f"is not told apart from that of {other}",
        }[side_of(ratio)]
        apart = interval(mine[1] - theirs[1] for mine, theirs in pairs)
        cosine = f"; its cosine less that of {other} is {report.text(apart)}" if apart.n else ""
        found.append(
            f"{task}: the gradient error of {name} {words} ({report.text(ratio)} times it, seed by seed){cosine}."
        )
    return found


def smoothed(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of curves with ``return_mean`` replaced by its mean over the run's last SMOOTHED evaluations, or over all
    that there are so far where these are fewer, which the paper does not speak of."""
    histories: dict[tuple[Any, ...], list[float]] = {}
    found = []
    for row in sorted(rows, key=lambda r: r["env_step"]):
        history = histories.setdefault(tuple(row[f] for f in (*report.CELL_FIELDS, "lambda", "seed")), [])
        history.append(row["return_mean"])
        found.append({**row, "return_mean": statistics.fmean(history[-SMOOTHED:])})
    return found


GPU_MS = dict(step=3.75, update=2.97, model_batch=2.76)
"""Wall time of an environment step's host work, of an update and of a model batch of MAGE-TD3 on HalfCheetah, five runs
side by side, captured, on an NVIDIA H200 [ms]."""


def gpu_hours(config: TrainConfig) -> float:
    """About how long a training takes on such a GPU, evaluation apart [h]; less for smaller networks."""
    batches = config.hyper.model_batches / config.hyper.model_every if METHODS[config.method].imagines else 0.0
    step = GPU_MS["step"] + config.updates_per_step * GPU_MS["update"] + batches * GPU_MS["model_batch"]
    return config.steps * step * max(1.0, len(config.runs) / 5) / 3.6e6


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


def aggregate_text(found: Aggregate) -> str:
    """``value [low, high]`` of a bootstrap."""
    if math.isnan(found.value):
        return "-"
    digits = report.decimals(found.value)
    return f"{found.value:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


METHODS_OF_FIG_2: dict[str, dict[str, Any]] = {
    "MAGE-TD3": dict(method="mage-td3"),
    "Dyna-TD3": dict(method="dyna-td3"),
    "Data-Efficient TD3": dict(method="data-efficient-td3"),
    "TD3": dict(method="td3"),
}


@dataclass(frozen=True)
class Performance(Comparison):
    """Fig. 2: return of MAGE-TD3, Dyna-TD3, Data-Efficient TD3 and TD3."""

    NAME: ClassVar[str] = "performance"
    SOURCE: ClassVar[str] = "Fig. 2"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = METHODS_OF_FIG_2
    TASKS: ClassVar[dict[Size, tuple[str, ...]]] = {
        "smoke": ("Pendulum",),
        "cpu": ("Pendulum", "CartPole"),
        "paper": PAPER_TASKS,
    }
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = {
        "smoke": SMOKE | dict(gradient_episodes=0),
        "cpu": dict(seeds=(0, 1, 2, 3, 4), steps=10_000, evaluations=40, gradient_episodes=0),
        "paper": dict(seeds=(0, 1, 2, 3, 4), steps=100_000, eval_every=1000, gradient_episodes=0),
    }
    OF_TASK: ClassVar[dict[Size, dict[str, dict[str, Any]]]] = {"cpu": {"CartPole": dict(steps=20_000)}}
    PAPER: ClassVar[dict[tuple[str, str], float]] = {
        (task, name): value
        for task, values in {
            "HalfCheetah": (8070, 4490, 5800, 2800),
            "Pendulum": (-140, -243, -140, -140),
            "CartPole": (500, 20, 476, 245),
            "Pusher": (-23.9, -49.5, -60.9, -40.3),
            "Walker2d": (2100, 324, 1164, 384),
        }.items()
        for name, value in zip(METHODS_OF_FIG_2, values, strict=True)
    }
    CLAIMS: ClassVar[tuple[Claim, ...]] = (
        Claim("MAGE-TD3", "Dyna-TD3", "better"),
        Claim("MAGE-TD3", "Data-Efficient TD3"),
        Claim("MAGE-TD3", "TD3"),
    )


ABLATED: dict[Size, dict[str, Any]] = {
    size: budget | dict(lambdas=(0.05,)) | (dict(steps=4000, evaluations=20) if size == "cpu" else {})
    for size, budget in Performance.BUDGETS.items()
}
"""Of the ablations, with the lambda of all experiments but Fig. 2 [D.2]; at size cpu, on Pendulum, half as many steps
again as MAGE needs to solve it."""


@dataclass(frozen=True)
class LearnedReward(Comparison):
    """Appendix B.2, Fig. 6: the reward learned as r_hat(s, a, s') or given."""

    NAME: ClassVar[str] = "learned-reward"
    SOURCE: ClassVar[str] = "Fig. 6"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "MAGE-TD3": dict(method="mage-td3"),
        "MAGE-TD3 (learned reward)": dict(method="mage-td3", reward="learned"),
        "Dyna-TD3": dict(method="dyna-td3"),
        "Dyna-TD3 (learned reward)": dict(method="dyna-td3", reward="learned"),
    }
    TASKS: ClassVar[dict[Size, tuple[str, ...]]] = {
        "smoke": ("Pendulum",),
        "cpu": ("Pendulum",),
        "paper": PAPER_TASKS,
    }
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = ABLATED
    CLAIMS: ClassVar[tuple[Claim, ...]] = (
        Claim("MAGE-TD3 (learned reward)", "MAGE-TD3", "no worse"),
        Claim("Dyna-TD3 (learned reward)", "Dyna-TD3", "no worse"),
        Claim("MAGE-TD3 (learned reward)", "Dyna-TD3 (learned reward)"),
    )


@dataclass(frozen=True)
class Capacity(Comparison):
    """Appendix B.3, Fig. 7: smaller ensembles."""

    NAME: ClassVar[str] = "capacity"
    SOURCE: ClassVar[str] = "Fig. 7"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        f"{label}{suffix}": dict(method=method, ensemble=ensemble)
        for method, label in (("mage-td3", "MAGE-TD3"), ("dyna-td3", "Dyna-TD3"))
        for ensemble, suffix in (("full", ""), ("small", "-small"), ("smaller", "-smaller"))
    }
    TASKS: ClassVar[dict[Size, tuple[str, ...]]] = {"smoke": ("Pendulum",), "cpu": ("Pendulum",), "paper": ("Pusher",)}
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = ABLATED
    CLAIMS: ClassVar[tuple[Claim, ...]] = (
        Claim("MAGE-TD3-small", "MAGE-TD3", "no worse"),
        Claim("MAGE-TD3", "MAGE-TD3-smaller", "better"),
        Claim("MAGE-TD3-small", "Dyna-TD3-small"),
        Claim("MAGE-TD3-smaller", "Dyna-TD3-smaller"),
    )


@dataclass(frozen=True)
class Lambda(Comparison):
    """Appendix B.4, Fig. 8: the weight of the TD error against the gradient term, medians, beside Dyna-TD3.

    One cell trains all weights.
    """

    NAME: ClassVar[str] = "lambda"
    SOURCE: ClassVar[str] = "Fig. 8"
    LAMBDAS: ClassVar[tuple[float, ...]] = (0.02, 0.05, 0.2, 1.0)
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {f"λ = {weight:g}": {} for weight in LAMBDAS} | {"Dyna-TD3": {}}
    CLAIMS: ClassVar[tuple[Claim, ...]] = tuple(Claim(f"λ = {weight:g}", "Dyna-TD3", "better") for weight in LAMBDAS)
    TASKS: ClassVar[dict[Size, tuple[str, ...]]] = {
        "smoke": ("Pendulum",),
        "cpu": ("Pendulum",),
        "paper": ("HalfCheetah",),
    }
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = ABLATED
    MEDIAN: ClassVar[bool] = True

    def cells(self) -> list[Cell]:
        return [
            Cell(f"{name}_{label}", make_config(task, method=method, shared=self.budget(task) | dict(lambdas=lambdas)))
            for task, name in self.chosen()
            for label, method, lambdas in (("MAGE-TD3", "mage-td3", self.LAMBDAS), ("Dyna-TD3", "dyna-td3", (1.0,)))
        ]

    def variant_of(self, cell: Cell, row: Mapping[str, Any]) -> str:
        return "Dyna-TD3" if cell.config.method == "dyna-td3" else f"λ = {row['lambda']:g}"


@dataclass(frozen=True)
class Asymptotic(Comparison):
    """Appendix B.5, Table 1: the maximum average return of long runs.

    At size paper the replay buffer keeps every transition on the device, 252 bytes each of HalfCheetah: 25 GB for the
    ten runs of TD3, and as much again while a checkpoint is written, for three of which the folder needs room.
    """

    NAME: ClassVar[str] = "asymptotic"
    SOURCE: ClassVar[str] = "Table 1"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        name: METHODS_OF_FIG_2[name] for name in ("MAGE-TD3", "Dyna-TD3", "TD3")
    }
    TASKS: ClassVar[dict[Size, tuple[str, ...]]] = {
        "smoke": ("Pendulum",),
        "cpu": ("Pendulum",),
        "paper": ("HalfCheetah",),
    }
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = {
        "smoke": SMOKE | dict(gradient_episodes=0, lambdas=(0.05,)),
        "cpu": dict(seeds=(0, 1, 2), steps=10_000, evaluations=80, gradient_episodes=0, lambdas=(0.05,)),
        "paper": dict(
            seeds=(0, 1, 2, 3, 4), steps=3_000_000, eval_every=1000, checkpoint_every=50_000, gradient_episodes=0,
            lambdas=(0.05,),
        ),
    }  # fmt: skip
    OF_VARIANT: ClassVar[dict[Size, dict[str, dict[str, Any]]]] = {
        "paper": {"TD3": dict(seeds=tuple(range(10)), steps=10_000_000, checkpoint_every=200_000)}
    }
    PAPER: ClassVar[dict[tuple[str, str], float]] = {
        ("HalfCheetah", "MAGE-TD3"): 9660.79,
        ("HalfCheetah", "Dyna-TD3"): 8372.76,
        ("HalfCheetah", "TD3"): 9636.95,
    }
    PAPER_BUDGET: ClassVar[str] = "of 3,000,000 steps and 5 runs (TD3: 10,000,000 and 10)"
    BEST: ClassVar[bool] = True
    CLAIMS: ClassVar[tuple[Claim, ...]] = (
        Claim("MAGE-TD3", "Dyna-TD3", "better"),
        Claim("MAGE-TD3", "TD3", "no worse"),
    )


@dataclass(frozen=True)
class Graph(Experiment):
    """Appendix C, Fig. 9: the computation graph of delta, read from autograd's graph of one update after a little
    training, with the learned model and with the oracle; what is drawn at random is found by drawing it again."""

    NAME: ClassVar[str] = "graph"
    FILES: ClassVar[tuple[str, ...]] = ("graph.csv", "learned.png", "oracle.png")
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = dict.fromkeys(
        ("smoke", "cpu", "paper"), SMOKE | dict(seeds=(0,), gradient_episodes=0)
    )

    task: str = "Pendulum"
    """Registered task."""

    def cells(self) -> list[Cell]:
        return [
            Cell(dynamics, make_config(self.task, dynamics=dynamics, shared=self._settings()))
            for dynamics in ("learned", "oracle")
        ]

    def _settings(self) -> dict[str, Any]:
        return self.budget(self.task) | ({} if self.preset else {"preset": "cpu"})  # the graph is that of any size

    def report(self, outcomes: list[Outcome], out: Path) -> Findings:
        rows, table, found = [], [], []
        for outcome in (o for o in outcomes if o.status == "done"):
            graph = computation_graph(load_trainer(outcome.run_dir, device="cpu"))
            name = outcome.cell.name
            draw_graph(out / f"{name}.png", graph, f"TD error of {self.task}, {name} dynamics (compare Fig. 9)")
            for quantity in graph:
                parents = ", ".join(quantity.parents) or "-"
                kind = "drawn" if quantity.stochastic else "computed"
                rows.append(dict(dynamics=name, quantity=quantity.name, kind=kind, parents=parents))
                table.append((name, quantity.name, kind, parents, str(quantity.operations)))
            drawn = [q.name for q in graph if q.stochastic]
            found.append(f"{name}: drawn at random are {report.enumeration(drawn)}; the rest is computed from them.")
        report.write_csv(out / "graph.csv", ("dynamics", "quantity", "kind", "parents"), rows)
        header = ("dynamics", "quantity", "kind", "computed from", "operations")
        return Findings("Fig. 9: the computation graph of δ", header, table, found)


EXPERIMENTS: dict[str, type[Experiment]] = {
    "performance": Performance,
    "gradient-error": GradientError,
    "unconstrained": Unconstrained,
    "learned-reward": LearnedReward,
    "capacity": Capacity,
    "lambda": Lambda,
    "asymptotic": Asymptotic,
    "graph": Graph,
}
"""Subcommand to its experiment."""


def parse() -> Experiment:
    """The experiment that the command line names.

    Raises:
        InputError: there is none of that name.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "-"
    if not name.startswith("-") and name not in EXPERIMENTS:
        raise unknown_name("experiment", name, EXPERIMENTS)
    return tyro.extras.subcommand_cli_from_dict(EXPERIMENTS, description=__doc__)


if __name__ == "__main__":
    sys.exit(main(parse))
