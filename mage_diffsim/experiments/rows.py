"""Rows of a sweep's CSV files: one per run in summary.csv, one per run and evaluation in curves.csv."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mage_diffsim import columns
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.statistics import final_value, interval, steps_to_threshold
from mage_diffsim.methods import METHODS
from mage_diffsim.tables import read_evaluations, read_metrics

CELL_FIELDS, SUMMARY_FIELDS, CURVE_FIELDS = tuple(columns.CELL), tuple(columns.SUMMARY), tuple(columns.CURVES)
"""What identifies a cell, and the columns of summary.csv and of curves.csv."""


def identity(cell: Cell) -> dict[str, str]:
    """The CELL_FIELDS of a cell."""
    config = cell.config
    dynamics = config.dynamics if METHODS[config.method].imagines else ""
    task = config.make_task().name
    variant = []
    if config.loss not in (None, METHODS[config.method].loss):
        variant.append(f"loss {config.loss}")
    if config.reward == "learned":
        variant.append("learned reward")
    if config.ensemble != "full":
        variant.append(f"{config.ensemble} ensemble")
    who = {"task": task, "method": config.method, "dynamics": dynamics, "backend": cell.simulator or ""}
    return who | {"variant": ", ".join(variant)}


def summary_rows(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One row of SUMMARY_FIELDS per run of every cell that was measured."""
    rows = []
    for outcome in outcomes:
        if not outcome.measured:
            continue
        config = outcome.cell.config
        solved, warmup = config.make_task().solved_return, config.hyper.warmup_steps
        evaluations, metrics = read_evaluations(outcome.run_dir), read_metrics(outcome.run_dir)
        for seed, lam in config.runs:
            mine = [r for r in evaluations if (r["seed"], r["lambda"]) == (seed, lam)]
            last = [r for r in metrics if (r["seed"], r["lambda"]) == (seed, lam)][-1]
            rows.append(
                identity(outcome.cell)
                | {"lambda": lam, "seed": seed, "env_steps": last["env_step"]}
                | {"final_return": final_value(mine, "return_mean")}
                | {"mean_return": interval(r["return_mean"] for r in mine if r["env_step"] >= warmup).mean}
                | {"steps_to_threshold": steps_to_threshold(mine, solved)}
                | {"gradient_error": final_value(mine, "gradient_error", geometric=True)}
                | {"gradient_cosine": final_value(mine, "gradient_cosine")}
                | {"nonfinite": int(last["grad_nonfinite"] or 0), "restarts": int(last["agent_restarts"] or 0)}
                | {name: last[name] for name in ("updates_per_s", "wall_s")}
            )
    return rows


def curve_rows(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One row of CURVE_FIELDS per run and evaluation of every cell that was measured."""
    rows = []
    for outcome in outcomes:
        if not outcome.measured:
            continue
        metrics = {(r["seed"], r["lambda"], r["env_step"]): r for r in read_metrics(outcome.run_dir)}
        for row in read_evaluations(outcome.run_dir):
            merged = identity(outcome.cell) | metrics[row["seed"], row["lambda"], row["env_step"]] | row
            rows.append({name: merged.get(name) for name in CURVE_FIELDS})  # None: not measured by an earlier version
    return rows
