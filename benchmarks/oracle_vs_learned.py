"""Compares a learned model, oracle simulators and hybrids of both under the same learner.

It asks how much of a failure is the model's values and how much its gradients. By default it trains eight cells on
Pendulum. MAGE-TD3 runs on the learned ensemble, on the torch, jax and warp oracles and on both hybrids (values of one,
Jacobians of the other). Dyna-TD3, which uses values only, runs on the ensemble and on the oracle.

Interrupt it at any time: the same command goes on where it stopped. It writes summary.md, summary.csv, curves.csv and
figure.png; horizon.csv and horizon.png hold the size of each cell's true gradient over the horizon.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import tyro

from mage_diffsim import IMPORTED
from mage_diffsim.config import DynamicsName
from mage_diffsim.doctor import check_installed
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import backends_of
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.task import Task
from mage_diffsim.envs.warp import WarpPhysics
from mage_diffsim.errors import InputError, MissingExtra, unknown_name
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.experiments.command import SMOKE, Experiment, Findings, Size, main
from mage_diffsim.experiments.comparison import (
    EFFECTS_HEADER,
    HEADER,
    comparison_figure,
    effect_rows,
    notes,
    table_rows,
    verdict,
)
from mage_diffsim.experiments.groups import cell_name, groups_of
from mage_diffsim.experiments.horizons import write_horizons
from mage_diffsim.experiments.rows import CURVE_FIELDS, SUMMARY_FIELDS, curve_rows, summary_rows
from mage_diffsim.experiments.tables import Table, write_csv
from mage_diffsim.methods import METHODS
from mage_diffsim.settings import make_config


@dataclass(frozen=True)
class OracleVsLearned(Experiment):
    __doc__ = __doc__
    NAME: ClassVar[str] = "oracle_vs_learned"
    FILES: ClassVar[tuple[str, ...]] = ("summary.csv", "curves.csv", "figure.png", "horizon.csv", "horizon.png")
    BUDGETS: ClassVar[dict[Size, dict[str, Any]]] = {
        "smoke": SMOKE,
        "cpu": dict(seeds=(0, 1, 2), steps=5000, evaluations=10),
        "paper": dict(seeds=(0, 1, 2, 3, 4), steps=100_000, eval_every=1000, checkpoint_every=10_000),
    }
    OF_TASK: ClassVar[dict[Size, dict[str, dict[str, Any]]]] = {
        "cpu": {
            "Pendulum": dict(steps=3500, evaluations=14),
            "CartPole": dict(steps=20_000),
            "InvertedPendulum": dict(steps=8000),
            "HalfCheetah": dict(steps=4000, evaluations=15),
            "Hopper": dict(steps=3000),
            "Swimmer": dict(steps=3000),
        }
    }

    tasks: tuple[str, ...] = ("Pendulum",)
    """Registered tasks, path/to/file.py:Class or module:Class."""
    methods: tuple[str, ...] = ("mage-td3", "dyna-td3")
    """mage-* methods train on every chosen dynamics; the others use no gradient of it, so they are controls: dyna-* on
    learned and oracle (one backend), as far as these are chosen, td3, ddpg and data-efficient-td3 without dynamics."""
    dynamics: tuple[str, ...] = get_args(DynamicsName)
    """learned, oracle, hybrid-oracle-gradients (values learned, Jacobians from the oracle), hybrid-learned-gradients
    (the other way round)."""
    backends: tuple[str, ...] | None = None
    """Physics backends of the oracle, one cell each; hybrids and dyna-* use the first. By default all that the task
    has; of MuJoCo's warp alone, or mujoco where Warp is not installed or does not cover the model."""
    lambdas: tuple[float, ...] = (0.2,)
    """Weight(s) of the TD error against the gradient term."""

    def cells(self) -> list[Cell]:
        for kind, given, accepted in (
            ("method", self.methods, METHODS),
            ("dynamics", self.dynamics, get_args(DynamicsName)),
        ):
            for name in given:
                if name not in accepted:
                    raise unknown_name(kind, name, accepted)
        for flag in ("tasks", "methods", "dynamics", "backends"):
            given = getattr(self, flag)
            if given is not None and (not given or len(set(given)) < len(given)):
                raise InputError(f"{flag} are {given}; accepted is one or more different names")
        return [cell for task in self.tasks for cell in self._cells_of(task)]

    def _cells_of(self, reference: str) -> list[Cell]:
        task = make_task(reference)
        backends = self.backends or default_backends(task)
        for backend in backends:
            if backend not in backends_of(task):
                raise unknown_name(f"backend of task {task.name}", backend, backends_of(task))
        settings = self.budget(reference)
        cells = []
        for method in self.methods:
            for dynamics in self._dynamics_of(method):
                for backend in backends if dynamics == "oracle" and METHODS[method].loss == "mage" else backends[:1]:
                    config = make_config(
                        reference,
                        shared=settings
                        | dict(
                            method=method,
                            dynamics=dynamics,
                            backend=backend,
                            lambdas=self.lambdas if METHODS[method].loss == "mage" else self.lambdas[:1],
                        ),
                    )
                    parts = [task.name, method]
                    if METHODS[method].imagines:
                        parts += [dynamics] + ([backend] if dynamics != "learned" else [])
                    cells.append(Cell("_".join(parts), config))
        return cells

    def _dynamics_of(self, method: str) -> tuple[str, ...]:
        if not METHODS[method].imagines:
            return ("learned",)  # the default, which a model-free method does not use
        if METHODS[method].loss == "mage":
            return self.dynamics
        return tuple(d for d in self.dynamics if d in ("learned", "oracle")) or self.dynamics[:1]

    def report(self, outcomes: list[Outcome], out: Path) -> Findings:
        rows, curves = summary_rows(outcomes), curve_rows(outcomes)
        # First what takes long: an interruption leaves the files of the last report together.
        stopped = any(o.status == "unfinished" for o in outcomes)  # then there is no time left for them
        done = [(cell_name(o.cell), o) for o in outcomes if o.status == "done" and not stopped]
        write_horizons(done, out, "trained actors", self.longest_horizon)
        write_csv(out / "summary.csv", SUMMARY_FIELDS, rows)
        write_csv(out / "curves.csv", CURVE_FIELDS, curves)
        tasks = {task.name: task for task in map(make_task, self.tasks)}
        comparison_figure(out / "figure.png", curves, tasks)
        groups = groups_of(rows)
        title = "Oracle against learned dynamics"
        return Findings(
            Table(title, HEADER, table_rows(groups, tasks, outcomes)),
            verdict(groups, tasks),
            [Table("Values or gradients", EFFECTS_HEADER, effect_rows(groups, tasks))],
            notes(groups, tasks),
        )


def default_backends(task: Task) -> tuple[str, ...]:
    """Oracles that make sense where none was chosen. MuJoCo's others are many times slower, or float32 differences."""
    known = backends_of(task)
    if not isinstance(task, MujocoTask) or not {"warp", "mujoco"} <= set(known):
        return known
    try:
        check_installed("warp")
        WarpPhysics.check_covers(task)
    except (InputError, MissingExtra):
        return ("mujoco",)
    return ("warp",)


if __name__ == "__main__":
    sys.exit(main(lambda: tyro.cli(OracleVsLearned, description=__doc__), IMPORTED))
