"""Eq. 14: how far the critic's action-gradients are from the true ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mage_diffsim.envs.physics import backends_of
from mage_diffsim.envs.registry import make_task
from mage_diffsim.experiments.cells import Outcome
from mage_diffsim.experiments.command import SMOKE, Findings, Size, Table
from mage_diffsim.experiments.figures import Panel, draw, line
from mage_diffsim.experiments.horizons import disagreement, write_horizons
from mage_diffsim.experiments.rows import CURVE_FIELDS, curve_rows, summary_rows
from mage_diffsim.experiments.statistics import final_value, interval, side_of
from mage_diffsim.experiments.tables import text, write_csv
from mage_diffsim.run_folder import load_trainer
from mage_diffsim.training import Trainer
from paper_experiments.comparison import Comparison

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
        runs, curves = self.named(summary_rows, outcomes), self.named(curve_rows, outcomes)
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
                table.append((task, name, steps, text(error), text(cosine), str(len(of_seed))))
            found += gradient_error_findings(task, numbers) + agreement(trainer)
        write_csv(out / "curves.csv", CURVE_FIELDS, curves)
        grid = []
        for task in tasks:
            panels = []
            for column, label, log in (
                ("gradient_error", "mean |true - critic's| gradient, discounted", True),
                ("gradient_cosine", "cosine to the true action-gradient", False),
            ):
                lines = tuple(
                    line(name, [r for r in curves if (r["task"], r["variant"]) == (task, name)], column, *style,
                         geometric=log)
                    for name, style in self.styles(curves).items()
                )  # fmt: skip
                limits = None if log else (-1.05, 1.05)
                panels.append(Panel(task, label, lines, log=log, limits=limits))
            grid.append(panels)
        seeds = len({row["seed"] for row in curves})
        title = f"Eq. 14, frozen actor. Thick: geometric mean (cosine: mean) over {seeds} seeds. Thin: single seeds"
        draw(out / "figure.png", title, grid)
        header = ("task", "variant", "steps of truth", "gradient error", "cosine", "seeds")
        return Findings(Table("Eq. 14: gradient error over the last measurements", header, table), notes=found)

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
        cosine = f"; its cosine less that of {other} is {text(apart)}" if apart.n else ""
        found.append(f"{task}: the gradient error of {name} {words} ({text(ratio)} times it, seed by seed){cosine}.")
    return found
