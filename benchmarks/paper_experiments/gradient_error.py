"""Eq. 14: how far are the critic's action-gradients from the true ones?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mage_diffsim.envs.physics import backends_of
from mage_diffsim.envs.registry import make_task
from mage_diffsim.experiments.cells import Outcome
from mage_diffsim.experiments.command import SMOKE, Findings, Size
from mage_diffsim.experiments.comparison import has_cosine
from mage_diffsim.experiments.figures import Panel, draw, line
from mage_diffsim.experiments.horizons import disagreement, write_horizons
from mage_diffsim.experiments.rows import CURVE_FIELDS, curve_rows, summary_rows
from mage_diffsim.experiments.statistics import final_value, interval, side_of
from mage_diffsim.experiments.tables import Table, text, write_csv
from mage_diffsim.run_folder import load_trainer
from mage_diffsim.training import Trainer
from paper_experiments.comparison import Comparison, restarts_text

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
"""Budget of appendix D.2's gradient-error experiment, with the truth of whole episodes. The paper does not say for how
many steps it trained."""


@dataclass(frozen=True)
class GradientError(Comparison):
    """Eq. 14 and appendix D.2: how far the critic's action-gradients are from the true ones of a frozen actor's return.

    After 200 transitions the standard algorithm trains, but never updates the actor. Every 10 steps the error is
    measured along 10 trajectories, where the true gradient is that of the discounted return through the simulator.
    There are two controls: shuffled gives the critic other samples' gradients, random gives it random directions of the
    same size. All variants of a seed have the same actor, so they are compared seed by seed.
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
        runs, curves = self.named(summary_rows, outcomes), self.named(curve_rows, outcomes)
        tasks = list(dict.fromkeys(row["task"] for row in curves))
        # Every variant has the same frozen actors, so one of each task shows the size of the true gradient.
        firsts = {o.cell.config.make_task().name: o for o in reversed(outcomes) if o.measured}
        write_horizons([("frozen actor", firsts[t]) for t in tasks], out, "frozen actors", self.longest_horizon)
        write_csv(out / "curves.csv", CURVE_FIELDS, curves)
        self._draw(curves, {name: has_cosine(o.cell.config.make_task()) for name, o in firsts.items()}, out)
        table, pairs, agreement = [], [], []
        for task in tasks:
            trainer = load_trainer(firsts[task].run_dir, device="cpu")
            numbers = {UNTRAINED: self._untrained([r for r in curves if r["task"] == task], trainer)}
            for name in self.VARIANTS:
                mine = [r for r in runs if (r["task"], r["variant"]) == (task, name)]
                numbers[name] = {r["seed"]: (r["gradient_error"], r["gradient_cosine"]) for r in mine}
            if not has_cosine(trainer.task):
                numbers = {k: {s: (error, math.nan) for s, (error, _) in v.items()} for k, v in numbers.items()}
            for name, of_seed in numbers.items():
                error = text(interval((e for e, _ in of_seed.values()), geometric=True))
                cosine = text(interval(c for _, c in of_seed.values()))
                restarts = restarts_text(runs, task, name)
                table.append((task, name, str(trainer.gradient_steps), error, cosine, restarts, str(len(of_seed))))
            pairs += error_rows(task, numbers)
            agreement += agreement_rows(trainer)
        header = ("task", "variant", "steps of truth", "gradient error", "cosine", "restarts", "seeds")
        return Findings(
            Table("Eq. 14: gradient error over the last measurements", header, table),
            error_verdict(pairs),
            [
                Table("Seed by seed", ERROR_HEADER, pairs),
                Table("True gradients through other backends", AGREEMENT_HEADER, agreement),
            ],
            [
                "Errors and their ratios are geometric means, cosines and their differences means, with 95% intervals.",
                "The untrained critic is that of MAGE-TD3 in the last measurements before its first update.",
                "A critic with small gradients has a small error: compare the cosines and the controls, too.",
            ],
        )

    def _draw(self, curves: Sequence[Mapping[str, Any]], cosines: Mapping[str, bool], out: Path) -> None:
        columns = (
            ("gradient_error", "mean |true - critic's| gradient, discounted", True),
            ("gradient_cosine", "cosine to the true action-gradient", False),
        )
        grid = []
        for task in dict.fromkeys(row["task"] for row in curves):
            panels = []
            for column, label, log in columns if cosines[task] else columns[:1]:
                lines = tuple(
                    line(name, [r for r in curves if (r["task"], r["variant"]) == (task, name)], column, *style,
                         geometric=log)
                    for name, style in self.styles(curves).items()
                )  # fmt: skip
                panels.append(Panel(task, label, lines, log=log, limits=None if log else (-1.05, 1.05)))
            grid.append(panels)
        seeds = len({row["seed"] for row in curves})
        title = f"Eq. 14, frozen actor. Thick: geometric mean (cosine: mean) over {seeds} seeds. Thin: single seeds"
        draw(out / "figure.png", title, grid)

    def _untrained(self, curves: Sequence[Mapping[str, Any]], trainer: Trainer) -> dict[int, tuple[float, float]]:
        """Returns seed to the error and cosine of the first variant's critic just before its first update.

        Earlier measurements are left out, because the normalisation of the policy's input still moves there.
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


UNTRAINED = "untrained"
"""Name of the critic before its first update."""

AGREEMENT_EPISODES = 2
"""Trajectories per actor along which backends are compared. More would take minutes on MuJoCo C."""

AGREEMENT_HEADER = ("task", "steps", "backend", "against", "relative difference, median", "trajectories", "beyond 1e-4")
"""Columns of :func:`agreement_rows`."""

ERROR_PAIRS = (
    ("MAGE-TD3", "Dyna-TD3"), ("shuffled", "Dyna-TD3"), ("random", "Dyna-TD3"), ("MAGE-TD3", "shuffled"),
    ("MAGE-TD3", UNTRAINED),
)  # fmt: skip
"""Variants that are compared: the paper's claim first, then the controls."""

ERROR_HEADER = ("task", "variant", "against", "error ratio", "error is", "cosine difference", "cosine is")
"""Columns of :func:`error_rows`."""


def agreement_rows(trainer: Trainer) -> list[tuple[str, ...]]:
    """Returns how far true gradients through other backends are from those through the task's first one."""
    task, horizon = trainer.task, trainer.gradient_steps
    return [
        (
            task.name, str(horizon), backend, backends_of(task)[0], f"{apart.nanmedian():.1g}", str(len(apart)),
            str(int((~(apart <= 1e-4)).sum())),
        )
        for backend, apart in disagreement(trainer, horizon, AGREEMENT_EPISODES).items()
    ]  # fmt: skip


def error_rows(task: str, numbers: Mapping[str, Mapping[int, tuple[float, float]]]) -> list[tuple[str, ...]]:
    """Returns a row under ERROR_HEADER for every pair of variants that was measured.

    Args:
        task: its name.
        numbers: variant to seed to the error and the cosine of its run; runs of a seed share an actor.
    """
    rows = []
    for name, other in ERROR_PAIRS:
        ours, theirs = numbers.get(name, {}), numbers.get(other, {})
        pairs = [(ours[seed], theirs[seed]) for seed in ours.keys() & theirs.keys()]
        ratio = interval((a[0] / b[0] if b[0] else math.nan for a, b in pairs), geometric=True)
        apart = interval(a[1] - b[1] for a, b in pairs)
        if ratio.n:
            cosine = side_of(apart) if apart.n else "-"
            rows.append((task, name, other, text(ratio), side_of(ratio), text(apart), cosine))
    return rows


def error_verdict(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns what :func:`error_rows` say of the paper's claim and of the controls, in three lines."""

    def counted(name: str, other: str) -> str:
        sides = [row[4] for row in rows if tuple(row[1:3]) == (name, other)]
        return ", ".join(f"{side} on {sides.count(side)}" for side in dict.fromkeys(sides)) + f" of {len(sides)}"

    compared = {tuple(row[1:3]) for row in rows}
    shown = (ERROR_PAIRS[0], *ERROR_PAIRS[3:])
    return [f"Error of {a} against {b}: {counted(a, b)}." for a, b in shown if (a, b) in compared]
