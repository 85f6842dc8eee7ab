"""Measuring one model on one backend, each in a process of its own."""

from __future__ import annotations

import contextlib
import csv
import math
import multiprocessing
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jacobian_checks.errors import quantile
from jacobian_checks.points import step_of

from mage_diffsim.display import show_log
from mage_diffsim.doctor import versions
from mage_diffsim.envs.differences import TrueJacobian, jacobian_error, jacobian_of, value_error
from mage_diffsim.envs.physics import Physics, make_physics
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments.sweep_display import make_sweep_display
from mage_diffsim.experiments.tables import write_csv
from mage_diffsim.shapes import Bool, Float, Tensor
from mujoco_agreement.contacts import contacts_of
from mujoco_agreement.models import Model, one_line, task_of
from mujoco_agreement.options import Options
from mujoco_agreement.reference import KINDS, Kind, Points, Reference

DTYPES = {"float64": torch.float64, "float32": torch.float32}
DIFFERENCED = 8
"""States of a kind at which the derivative of a backend that takes differences itself is measured."""

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
    gaps = {kind: _solver_gap(reference, points[kind], values[kind]) for kind in KINDS}
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
                counts[kind] = reference.contacts(here), contacts_of(backend, simulation, here.qpos)
            found = _compare(physics, here.joined(), values[kind], truths[kind], reference.tangents(here))
            in_c, seen = counts[kind]
            fine = values[kind].isfinite().all(1)
            found |= {"contacts_in_c": int(in_c.max()), "build_s": round(build, 1)}
            found["contacts_differ"] = None if seen is None else int(((in_c != seen) & fine).sum())
            seconds = {"seconds": round(time.perf_counter() - began, 1)}
            yield row | {"states": kind, "status": "ok"} | found | gaps[kind] | seconds


def _solver_gap(reference: Reference, points: Points, value: Float[Tensor, "N S"]) -> dict[str, float]:
    own = torch.from_numpy(reference.step(points, converged=False))
    fine = value.isfinite().all(1) & own.isfinite().all(1)
    return _spread("solver_gap", value_error(own, value)[fine])


def _spread(name: str, errors: Float[Tensor, " N"]) -> dict[str, float]:
    return {f"{name}_{k}": quantile(errors, q) for k, q in (("median", 0.5), ("worst", 1.0))}


def _compare(
    physics: Physics,
    x: Float[Tensor, "N X"],
    value: Float[Tensor, "N S"],
    truths: Mapping[str, TrueJacobian],
    tangents: Float[Tensor, "N X T"],
) -> dict[str, Any]:
    """Compares values and derivatives at qpos | qvel | action with those of MuJoCo C."""
    step, x = step_of(physics), x.to(physics.dtype)
    with torch.no_grad():
        mine = step(x).double()
    # Differences step once per column for every row of the Jacobian.
    differenced = physics.derivative.startswith("fd")
    at = torch.arange(0, len(x), math.ceil(len(x) / DIFFERENCED) if differenced else 1)
    jacobian = jacobian_of(step, x[at]).double()
    fine: Bool[Tensor, " N"] = value.isfinite().all(1)
    finite, smooth = mine.isfinite().all(1), jacobian.isfinite().all(2).all(1)
    found: dict[str, Any] = {"count": int(fine.sum()), "diverged_in_c": int((~fine).sum())}
    found["finite_there"] = int((~fine & finite).sum())
    found |= {"nonfinite_values": int((fine & ~finite).sum()), "nonfinite_gradients": int((fine[at] & ~smooth).sum())}
    found |= _spread("value", value_error(mine, value)[fine & finite])
    along = jacobian @ tangents[at]
    done = 0
    for block in ("state", "action"):
        truth = truths[block]
        columns = slice(done, done + truth.jacobian.shape[2])
        done = columns.stop
        clean = (truth.clean & fine)[at]
        found[f"{block}_clean"] = int(clean.sum())
        errors = jacobian_error(along[..., columns], truth.jacobian[at])
        found |= _spread(block, errors[clean & smooth])
    return found


def _in_child(model: Model, backend: str, options: Options, connection: Any) -> None:
    torch.set_num_threads(1)
    try:
        with show_log(lambda text: None):
            for row in measure(model, backend, options):
                connection.send(row)
        connection.send(None)
    except Exception as error:  # hours of other results do not depend on one model
        connection.send(f"{type(error).__name__}: {one_line(error, model.path)}")


def measure_apart(model: Model, backend: str, options: Options) -> Iterator[dict[str, Any]]:
    """Runs :func:`measure` in a process of its own. If it crashes or is late, the last row says so."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(model, backend, options, theirs), daemon=True)
    deadline = time.monotonic() + options.limit
    child.start()
    theirs.close()
    failed = dict.fromkeys(FIELDS) | {"model": model.name, "backend": backend, "states": ""}
    try:
        while ours.poll(max(0.0, deadline - time.monotonic())):
            row = ours.recv()
            if row is None:
                return
            if isinstance(row, str):
                yield failed | {"status": f"failed: {row}"}
                return
            yield row
        yield failed | {"status": f"failed: not done after {options.limit:.0f} s"}
    except EOFError:
        child.join()
        code = child.exitcode or 0
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        yield failed | {"status": f"failed: {how}"}
    finally:
        child.kill()
        child.join()
        ours.close()


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
