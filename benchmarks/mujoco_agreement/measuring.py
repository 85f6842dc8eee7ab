"""Measuring one model on one backend, each in a process of its own."""

from __future__ import annotations

import contextlib
import csv
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mage_diffsim.display import show_log
from mage_diffsim.doctor import versions
from mage_diffsim.envs.differences import TrueJacobian
from mage_diffsim.envs.physics import make_physics
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments.sweep_display import make_sweep_display
from mage_diffsim.experiments.tables import write_csv
from mage_diffsim.model_checks.apart import Ended, Worker
from mage_diffsim.model_checks.comparing import compare, own_solver
from mage_diffsim.model_checks.finding import Model, one_line, task_of
from mage_diffsim.model_checks.reference import KINDS, Kind, Reference
from mage_diffsim.shapes import Tensor
from mujoco_agreement.contacts import contacts_of
from mujoco_agreement.options import Options

DTYPES = {"float64": torch.float64, "float32": torch.float32}

FIELDS = (
    "model", "backend", "dtype", "states", "status", "count", "diverged_in_c", "finite_there", "value_median",
    "value_worst", "contacts_in_c", "contacts_differ", "action_clean", "action_median", "action_worst", "state_clean",
    "state_median", "state_worst", "nonfinite_values", "nonfinite_gradients", "solver_gap_median", "solver_gap_worst",
    "build_s", "seconds", "commit",
)  # fmt: skip
"""Columns of results.csv, one row per model, backend, dtype and kind of states. A refusal is a row without states.

``finite_there`` counts states from which MuJoCo C diverges and the backend gives numbers. ``contacts_in_c`` is the
largest number of contacts of a state. ``contacts_differ`` counts states whose number differs, and is empty where the
backend does not tell. ``solver_gap`` is the distance of a step with the model's own solver settings from the converged
one, both by MuJoCo C."""


def measure(model: Model, backend: str, options: Options) -> Iterator[dict[str, Any]]:
    """Measures one model on one backend and yields its rows.

    Args:
        model: the model.
        backend: the backend.
        options: options that :meth:`.Options.resolved` gave.
    """
    reference = Reference(model.path)
    rng = np.random.default_rng(options.seed)
    assert options.states is not None
    points = {kind: getattr(reference, kind)(options.states, rng) for kind in KINDS}
    values = {kind: torch.from_numpy(reference.step(points[kind])) for kind in KINDS}
    base: dict[str, Any] = dict.fromkeys(FIELDS) | {"model": model.name, "backend": backend}
    gaps = {kind: own_solver(reference, points[kind], values[kind]) for kind in KINDS}
    truths: dict[Kind, dict[str, TrueJacobian]] = {}
    counts: dict[Kind, tuple[Tensor, Tensor | None]] = {}
    for dtype in options.dtypes:
        began = time.perf_counter()
        row = base | {"dtype": dtype}
        try:
            task = task_of(model.path)
            simulation = task.simulation
            physics = make_physics(task, backend, dtype=DTYPES[dtype])
        except (InputError, MissingExtra) as error:
            reason = one_line(error, model.path).removeprefix(f"task {task.name}: ")
            yield row | {"states": "", "status": f"refused: {reason}"} | gaps["visited"]
            continue
        build = time.perf_counter() - began
        for kind in KINDS:
            began = time.perf_counter()
            here = points[kind]
            if kind not in truths:
                truths[kind] = reference.truth(here)
                counts[kind] = reference.contacts(here), contacts_of(backend, simulation, here.state)
            known = values[kind], reference.inexactness(here), truths[kind]
            found = compare(physics, here.joined(), *known, reference.tangents(here))
            in_c, seen = counts[kind]
            fine = values[kind].isfinite().all(1)
            found |= {"contacts_in_c": int(in_c.max()), "build_s": round(build, 1)}
            found["contacts_differ"] = None if seen is None else int(((in_c != seen) & fine).sum())
            seconds = {"seconds": round(time.perf_counter() - began, 1)}
            yield row | {"states": kind, "status": "ok"} | found | gaps[kind] | seconds


def measure_apart(model: Model, backend: str, options: Options) -> Iterator[dict[str, Any]]:
    """Runs :func:`measure` in a process of its own. If it crashes or is late, the last row says so."""
    with Worker(options.limit, math.inf) as worker:
        try:
            yield from worker.each(_alone, model, backend, options)
        except Ended as error:
            failed = dict.fromkeys(FIELDS) | {"model": model.name, "backend": backend, "states": ""}
            yield failed | {"status": f"failed: {one_line(error, model.path)}"}


def _alone(model: Model, backend: str, options: Options) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    with show_log(lambda text: None):
        yield from measure(model, backend, options)


def measure_all(models: Sequence[Model], options: Options) -> list[dict[str, Any]]:
    """Measures what is missing in the out folder, writing each row as it comes; returns all rows."""
    path, commit = options.out / "results.csv", versions().get("commit")
    rows = [] if options.fresh else _read(path)
    todo = [(m, b) for m in models for b in options.backends if not _is_done(rows, m, b, options)]
    display = make_sweep_display()
    names = [f"{model.name} {backend}" for model, backend in todo]
    with display:
        display.begin(dict.fromkeys(names, 0), dict.fromkeys(names, 1))
        for name, (model, backend) in zip(names, todo, strict=True):
            display.start(name)
            rows = [r for r in rows if not _is_of(r, model, backend, (*options.dtypes, ""))]
            text = ""
            for row in measure_apart(model, backend, options):
                rows.append(row | {"commit": commit})
                write_csv(path, FIELDS, rows)
                text = row["status"]
            display.update(name, 1)
            display.finish(name, text)
    write_csv(path, FIELDS, rows)
    return _read(path)


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of results.csv; none if there is no such file."""
    if not path.exists():
        return []

    def number(name: str, text: str) -> Any:
        if name in ("model", "backend", "dtype", "states", "status", "commit"):
            return text
        with contextlib.suppress(ValueError):
            return int(text)
        return float(text) if text else None

    with path.open(encoding="utf-8", newline="") as file:
        return [{name: number(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def _is_of(row: Mapping[str, Any], model: Model, backend: str, dtypes: Sequence[str]) -> bool:
    return (row["model"], row["backend"]) == (model.name, backend) and (row["dtype"] or "") in dtypes


def _is_done(rows: Sequence[Mapping[str, Any]], model: Model, backend: str, options: Options) -> bool:
    for dtype in options.dtypes:
        mine = [r for r in rows if _is_of(r, model, backend, (dtype,))]
        if not any(r["status"].startswith("refused") for r in mine) and len(mine) < len(KINDS):
            return False
    return True
