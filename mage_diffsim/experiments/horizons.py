"""How far a true action-gradient can be trusted: its size over the horizon, and how well two oracles agree on it."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mage_diffsim import columns
from mage_diffsim.checkpoints import newest_checkpoint
from mage_diffsim.envs.physics import Physics, backends_of, make_physics
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments.cells import Outcome
from mage_diffsim.experiments.figures import Panel, draw, line, styles
from mage_diffsim.experiments.rows import identity
from mage_diffsim.experiments.statistics import interval
from mage_diffsim.experiments.tables import write_csv
from mage_diffsim.gradients import true_action_gradients
from mage_diffsim.run_folder import load_trainer
from mage_diffsim.shapes import Float, Tensor
from mage_diffsim.training import Trainer

HORIZONS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Steps at which the size of the true gradient is measured, as far as the task's episodes go."""

EPISODES = 10
"""Trajectories per run."""

FIELDS = tuple(columns.HORIZON)
"""Columns of horizon.csv."""


def horizon_rows(trainer: Trainer, curve: str, longest: int = HORIZONS[-1]) -> list[dict[str, Any]]:
    """Rows of FIELDS: the size of the true gradient |grad_{a_0} G(s_0, a_0)| of returns over 1, 2, 5, ... steps.

    Args:
        trainer: whose actors act, from initial states that an evaluation would draw.
        curve: the name of its curve; lambda is added where there are several.
        longest: horizon to measure up to.
    """
    # Warp, where it can be had, is the quickest to differentiate whole trajectories through.
    physics, runs = oracle(trainer, "warp") or trainer.truth_physics, trainer.config.runs
    several = len(trainer.config.lambdas) > 1
    rows = []
    for horizon in (h for h in HORIZONS if h <= min(longest, trainer.task.horizon)):
        norms = _truth(trainer, physics, horizon, EPISODES)[0].norm(dim=-1).view(len(runs), EPISODES)
        for (seed, lam), values in zip(runs, norms.tolist(), strict=True):
            name = _curve(curve, lam, several)
            who = dict(task=trainer.task.name, curve=name, seed=seed, horizon=horizon) | {"lambda": lam}
            rows += [who | dict(episode=i, norm=x) for i, x in enumerate(values)]
    return rows


def write_horizons(
    outcomes: Sequence[tuple[str, Outcome]], out: Path, actors: str, longest: int = HORIZONS[-1]
) -> None:
    """Write horizon.csv and horizon.png of finished cells.

    Each cell's run folder keeps its rows, so that a second call does not measure them again.

    Args:
        outcomes: names of the curves and their cells. Newest checkpoints are read, on the CPU. A cell whose backend is
            not installed is left out.
        out: folder to write into.
        actors: whose gradients these are, for the title.
        longest: horizon to measure up to.

    Raises:
        InputError: a checkpoint cannot be read, or a file not be written.
    """
    rows: list[dict[str, Any]] = []
    cells: dict[str, tuple[str, str, str]] = {}
    for number, (curve, outcome) in enumerate(outcomes, 1):
        with contextlib.suppress(MissingExtra):
            told = f"measuring the true gradient over the horizon, {number} of {len(outcomes)}: {outcome.cell.name}"
            mine = _kept_rows(outcome.run_dir, curve, longest, told)
            rows += mine
            who = identity(outcome.cell)
            cells |= dict.fromkeys((r["curve"] for r in mine), (who["method"], who["dynamics"], who["backend"]))
    style = styles(cells)
    write_csv(out / "horizon.csv", FIELDS, rows)
    panels = []
    for task in dict.fromkeys(row["task"] for row in rows):
        mine = _by_run([row for row in rows if row["task"] == task])
        lines = tuple(
            line(curve, [r for r in mine if r["curve"] == curve], "norm", *style[curve], geometric=True)
            for curve in style
        )
        panels.append(Panel(task, "|∇ₐ G(s₀, a₀)|", lines, log=True, log_x=True))
    title = f"True action-gradient of {actors}. Thick: geometric mean. Thin: single seeds"
    draw(out / "horizon.png", title, [panels or [Panel("", "", (), note="nothing was measured")]], "steps of return")


def _kept_rows(run_dir: Path, curve: str, longest: int, told: str) -> list[dict[str, Any]]:
    """:func:`horizon_rows` of a run's newest checkpoint; ``told`` is printed before they are measured."""
    checkpoint = newest_checkpoint(run_dir)
    assert checkpoint is not None  # a finished run has one
    path = run_dir / f"horizon_{checkpoint.stem}.csv"
    if not path.is_file():
        print(told, flush=True)
        write_csv(path, FIELDS, horizon_rows(load_trainer(run_dir, device="cpu"), curve, longest))
    with open(path, newline="", encoding="utf-8") as file:
        kept = list(csv.DictReader(file))
    several = len({row["lambda"] for row in kept}) > 1
    return [
        row
        | {"curve": _curve(curve, float(row["lambda"]), several), "lambda": float(row["lambda"])}
        | {name: int(row[name]) for name in ("seed", "episode", "horizon")}
        | {"norm": float(row["norm"] or "nan")}
        for row in kept
    ]


def _curve(name: str, lam: float, several: bool) -> str:
    return f"{name}, λ = {lam:g}" if several else name


def _by_run(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per run: the geometric mean over its trajectories, which are not independent."""
    norms: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        norms.setdefault((row["curve"], row["lambda"], row["seed"], row["horizon"]), []).append(row["norm"])
    return [
        {
            "curve": curve,
            "lambda": lam,
            "seed": seed,
            "env_step": horizon,
            "norm": interval(values, geometric=True).mean,
        }
        for (curve, lam, seed, horizon), values in norms.items()
    ]


def oracle(trainer: Trainer, backend: str) -> Physics | None:
    """The trainer's task on a backend in float64; None where it cannot be had."""
    if backend not in backends_of(trainer.task):
        return None
    try:
        where: dict[str, Any] = dict(device=trainer.device, solver=trainer.config.solver)
        return make_physics(trainer.task, backend, dtype=torch.float64, **where)
    except (MissingExtra, InputError):  # not installed, or it does not know something in the model, or the solver
        return None


def disagreement(trainer: Trainer, horizon: int, episodes: int) -> dict[str, Float[Tensor, " N"]]:
    """Differences of true gradients through a bridge from those of the task's first backend, along its policy.

    Args:
        trainer: whose actors act.
        horizon: steps of the return.
        episodes: trajectories per run.

    Returns:
        jax and warp, where they can be had, to |difference| / |gradient| of each trajectory, norms over all steps and
        actions.
    """
    first = make_physics(trainer.task, dtype=torch.float64, device=trainer.device, solver=trainer.config.solver)
    expected = _truth(trainer, first, horizon, episodes)
    found = {}
    for backend in ("jax", "warp"):
        physics = oracle(trainer, backend)
        if physics is not None:
            given = _truth(trainer, physics, horizon, episodes)
            steps = min(len(given), len(expected))  # where every episode has ended, the rest is not computed
            difference = given[:steps] - expected[:steps]
            distance, size = (x.square().sum(dim=(0, 2)).sqrt() for x in (difference, expected))
            found[backend] = distance / size.clamp(min=torch.finfo(size.dtype).tiny)
    return found


def _truth(trainer: Trainer, physics: Physics, horizon: int, episodes: int) -> Float[Tensor, "T N A"]:
    start = trainer.initial_states(episodes, trainer.streams.generators("evaluate", 0))
    return true_action_gradients(physics, trainer.policy, start, trainer.hyper.gamma, horizon).discounted
