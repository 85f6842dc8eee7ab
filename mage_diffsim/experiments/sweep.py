"""Trains the cells of a sweep in worker processes, each in its own run folder; resumable at any moment.

A cell is one training process (a task, a method, a dynamics, a backend; all its seeds on the run axis). Workers are
fresh single-threaded processes, one per cell, so a cell's numbers do not depend on how many run beside it, nor where.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from mage_diffsim.checkpoints import newest_checkpoint, require_version
from mage_diffsim.config import TrainConfig
from mage_diffsim.devices import torch_device
from mage_diffsim.doctor import check_installed
from mage_diffsim.envs.identity.reference import absolute
from mage_diffsim.envs.physics import BACKENDS, load, make_physics, require_backend
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments.cells import Cell, Outcome, Send, standing, steps_done
from mage_diffsim.experiments.launchers import Launcher, run_processes
from mage_diffsim.experiments.sweep_display import SweepDisplay
from mage_diffsim.locks import locked
from mage_diffsim.run_folder import is_finished, is_run, read_config
from mage_diffsim.run_identity import changes, differences, read_identity, with_environment
from mage_diffsim.validation import validate


def run_cells(
    cells: Sequence[Cell],
    out: Path,
    *,
    launcher: Launcher,
    fresh: bool = False,
    display: SweepDisplay,
    until: float | None = None,
) -> list[Outcome]:
    """Train every cell that is not finished yet in ``out/<cell name>``.

    A finished cell is left alone, an unfinished one goes on from its newest checkpoint. A cell whose backend is not
    installed is skipped, one that breaks is reported, and the others go on. Leaving by an exception (Ctrl-C) ends the
    workers.

    Args:
        cells: what to train.
        out: folder of the sweep, created if need be.
        launcher: where they train, and how many at once.
        fresh: delete these cells' run folders first.
        display: is told about progress.
        until: when cells that train are to be saved and to end, in seconds since the epoch; none begins after it. None
            is no limit.

    Returns:
        one outcome per cell, in the order given.

    Raises:
        InputError: the sweep cannot be run as asked; nothing has been trained or written then.
        MissingExtra: every cell needs a backend that is not installed, or the launcher does.
    """
    if is_run(out):
        raise InputError(f"{out} is the run folder of one training; give --out a new folder or a sweep's own")
    skipped = check(cells, out, launcher=launcher, fresh=fresh)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to the out folder {out}: {error.strerror}") from error
    with held(out), display, contextlib.ExitStack() as stack:
        outcomes: dict[str, Outcome] = {}
        for cell in cells:
            if cell.name in skipped:
                outcomes[cell.name] = Outcome(cell, out / cell.name, "skipped", skipped[cell.name])
            elif is_finished(out / cell.name) and not fresh:
                outcomes[cell.name] = Outcome(cell, out / cell.name, "done")
        todo = [cell for cell in cells if cell.name not in outcomes]
        if todo:
            stack.enter_context(launcher.connected())  # before anything is deleted
        if fresh:
            for cell in todo:
                shutil.rmtree(out / cell.name, ignore_errors=True)
        counted = [cell for cell in cells if cell.name not in skipped]
        display.begin(
            {c.name: c.config.steps if c not in todo else steps_done(out / c.name) for c in counted},
            {c.name: c.config.steps for c in counted},
        )
        for name, outcome in outcomes.items():
            display.finish(name, f"skipped: {outcome.reason}" if outcome.reason else "already finished")
        if todo:
            outcomes |= {outcome.cell.name: outcome for outcome in launcher.train(todo, out, display, until)}
        for cell in (cell for cell in todo if cell.name not in outcomes):
            stands = standing(out / cell.name, cell.config.steps)
            outcomes[cell.name] = Outcome(cell, out / cell.name, "unfinished", stands)
    return [outcomes[cell.name] for cell in cells]


def check(cells: Sequence[Cell], out: Path, *, launcher: Launcher, fresh: bool = False) -> dict[str, str]:
    """Refuse a sweep that cannot be run. Writes nothing.

    Returns:
        cell name to reason, for the cells to skip because their backend is not installed.

    Raises:
        InputError: bad configuration, unknown backend, absent device, unwritable or foreign folder, or a cell that was
            trained with another configuration.
        MissingExtra: every cell needs a backend that is not installed, or the launcher does.
    """
    if not cells:
        raise InputError("the chosen methods and dynamics make no cell: choose others")
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        raise InputError(f"the cells {', '.join(names)} are not all different: name every task only once")
    for cell in cells:
        validate(cell.config)
        if launcher.here:
            torch_device(cell.config.device)
        for backend in cell.backends:
            require_backend(cell.config.make_task(), backend)
    launcher.check(cells)
    _check_folder(out)
    for cell in cells:
        _check_cell_folder(cell, out / cell.name, fresh)
    skipped: dict[str, str] = {}
    probed: dict[tuple[str, str, str], str] = {}
    for cell in cells:
        for backend in cell.backends:
            key = (f"{cell.config.task} {cell.config.task_options}", backend, cell.config.device)
            if key not in probed:
                probed[key] = _missing(cell, backend) if launcher.here else ""
            if probed[key]:
                skipped[cell.name] = probed[key]
    if len(skipped) == len(cells):
        raise MissingExtra("; ".join(dict.fromkeys(skipped.values())))
    return skipped


def held(out: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a sweep's folder, so that no other sweep works in it.

    Raises:
        InputError: on entering, if another one works in it.
    """
    busy = f"another sweep is working in {out}: wait for it or give another --out"
    return locked(out / ".lock", busy, os.O_WRONLY | os.O_CREAT)


def _check_folder(out: Path) -> None:
    """Refuse an out folder that cannot be written or created."""
    place = out
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"cannot write to the out folder {out}: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to the out folder {out}: no permission to write in {place}")


def _check_cell_folder(cell: Cell, run_dir: Path, fresh: bool) -> None:
    """Refuse a cell whose place holds anything but a run of this version and configuration, or (``fresh``) any run."""
    if not run_dir.exists():
        return
    if not is_run(run_dir):
        if not run_dir.is_dir() or any(p.is_file() for p in run_dir.rglob("*") if p.suffix != ".tmp"):
            raise InputError(f"{run_dir} is in the way: it is not a run folder; move it or give another --out")
        return
    if fresh:
        return
    was, newest = read_config(run_dir), newest_checkpoint(run_dir)
    if newest is not None:
        try:
            require_version(newest)
        except InputError as error:
            raise InputError(f"{error} (give another --out, or --fresh to delete it)") from error
    # Replayed parts and another card of the same kind change rounding at most; an unfinished cell goes on with these.
    now = dataclasses.replace(cell.config, task=absolute(cell.config.task), graphs=was.graphs)
    if torch.device(was.device).type == torch.device(now.device).type:
        now = dataclasses.replace(now, device=was.device)
    now = with_environment(now, now.make_task())
    changed = differences(was.to_dict(), now.to_dict())
    identity = read_identity(run_dir)
    if not changed and identity is not None and newest is not None:
        changed = changes(identity, now, now.make_task())
    if changed:
        raise InputError(
            f"{run_dir} was trained with {', '.join(changed)}: give the same flags and task, another --out, or --fresh "
            "to delete it"
        )


def _missing(cell: Cell, backend: str) -> str:
    """Why one of the cell's backends cannot be had, or an empty text.

    Raises:
        InputError: the backend does not run on the cell's device, or does not cover the task.
    """
    try:
        check_installed(backend)
    except MissingExtra as error:
        return str(error)
    if backend == "torch":
        return ""
    if torch.device(cell.config.device).type == "cpu":
        load(BACKENDS[backend]).check_covers(cell.config.make_task())
        return ""
    # Whether a backend can use the GPU shows only when it is made; here would leave this process holding GPU memory.
    ((_, status, reason),) = run_processes([cell], _probe, lambda cell: (cell.config, backend))
    if status == "failed":
        raise InputError(reason)
    return reason


def _probe(config: TrainConfig, backend: str, send: Send) -> None:
    source = {"derivative": config.derivative, "residuals": config.residuals} if backend == config.backend else {}
    make_physics(config.make_task(), backend, device=config.device, solver=config.solver, **source)
