"""Sweeps: many training cells in worker processes, each in a run folder of its own, resumable at any moment.

A cell is one training process (a task, a method, a dynamics, a backend; all its seeds on the run axis). Workers are
fresh single-threaded processes, one per cell, so a cell's numbers do not depend on how many run beside it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import multiprocessing
import os
import shutil
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch

from mage_diffsim.bridges.errors import InputError, MissingExtra, missing_extra, unknown_name
from mage_diffsim.config import METHODS, TrainConfig, validate
from mage_diffsim.display import show_log
from mage_diffsim.doctor import NEEDS
from mage_diffsim.envs.physics import backends_of, make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.experiments.display import Display, duration
from mage_diffsim.runs import Progress, is_finished, is_run, newest_checkpoint, read_config, resume, train
from mage_diffsim.training import torch_device

try:
    import fcntl
except ImportError:  # not a POSIX system: two sweeps in one folder are then the user's own business
    fcntl = None

PROGRESS_EVERY_S = 0.25
"""Seconds between two progress messages of a worker."""


@dataclass(frozen=True)
class Cell:
    """One training of a sweep."""

    name: str
    """Unique in its sweep; the name of its run folder."""
    config: TrainConfig
    """What to train."""

    @property
    def simulator(self) -> str | None:
        """The backend whose physics the learner imagines with, or None: a learned model alone, or model-free."""
        uses = METHODS[self.config.method].imagines and self.config.dynamics != "learned"
        return self.config.backend if uses else None


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    run_dir: Path
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    """Why it was skipped or failed, one sentence or a traceback."""


def run_cells(
    cells: Sequence[Cell], out: Path, *, workers: int, fresh: bool = False, display: Display
) -> list[Outcome]:
    """Train every cell that is not finished yet, ``workers`` at a time, in ``out/<cell name>``.

    A finished cell is left alone, an unfinished one goes on from its newest checkpoint. A cell whose backend is not
    installed is skipped, one that breaks is reported, and the others go on. Leaving by an exception (Ctrl-C) ends the
    workers.

    Args:
        cells: what to train.
        out: folder of the sweep, created if need be.
        workers: how many cells train at once.
        fresh: delete these cells' run folders first.
        display: is told about progress.

    Returns:
        one outcome per cell, in the order given.

    Raises:
        InputError: the sweep cannot be run as asked; nothing has been trained or written then.
        MissingExtra: every cell needs a backend that is not installed.
    """
    if is_run(out):
        raise InputError(f"{out} is the run folder of one training; give --out a new folder or a sweep's own")
    skipped = check(cells, out, workers=workers, fresh=fresh)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to the out folder {out}: {error.strerror}") from error
    with _locked(out), display:
        for cell in cells:
            if fresh or not is_run(out / cell.name):  # not a run yet: killed before its configuration was written
                shutil.rmtree(out / cell.name, ignore_errors=True)
        outcomes: dict[str, Outcome] = {}
        for cell in cells:
            if cell.name in skipped:
                outcomes[cell.name] = Outcome(cell, out / cell.name, "skipped", skipped[cell.name])
            elif is_finished(out / cell.name):
                outcomes[cell.name] = Outcome(cell, out / cell.name, "done")
        todo = [cell for cell in cells if cell.name not in outcomes]
        counted = [cell for cell in cells if cell.name not in skipped]
        display.begin(
            {c.name: c.config.steps if c not in todo else _steps_done(out / c.name) for c in counted},
            {c.name: c.config.steps for c in counted},
        )
        for name, outcome in outcomes.items():
            display.finish(name, f"skipped: {outcome.reason}" if outcome.reason else "already finished")
        outcomes |= {outcome.cell.name: outcome for outcome in _train_all(todo, out, workers, display)}
    return [outcomes[cell.name] for cell in cells]


# --- before anything is trained ------------------------------------------------------------------------------------


def check(cells: Sequence[Cell], out: Path, *, workers: int, fresh: bool = False) -> dict[str, str]:
    """Refuse a sweep that cannot be run. Writes nothing.

    Returns:
        cell name to reason, for the cells to skip because their backend is not installed.

    Raises:
        InputError: bad configuration, unknown backend, absent device, unwritable or foreign folder, or a cell that was
            trained with another configuration.
        MissingExtra: every cell needs a backend that is not installed.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; accepted is 1 or more")
    if not cells:
        raise InputError("the chosen methods and dynamics make no cell: choose others")
    for cell in cells:
        validate(cell.config)
        torch_device(cell.config.device)
        if cell.simulator is not None:
            task = make_task(cell.config.task)
            if cell.simulator not in backends_of(task):
                raise unknown_name(f"backend of task {task.name}", cell.simulator, backends_of(task))
    _check_folder(out)
    for cell in cells:
        _check_cell_folder(cell, out / cell.name, fresh)
    skipped: dict[str, str] = {}
    probed: dict[tuple[str, str | None, str], str] = {}
    for cell in cells:
        key = (cell.config.task, cell.simulator, cell.config.device)
        if key not in probed:
            probed[key] = _missing(cell)
        if probed[key]:
            skipped[cell.name] = probed[key]
    if len(skipped) == len(cells):
        raise MissingExtra("; ".join(dict.fromkeys(skipped.values())))
    return skipped


def _check_folder(out: Path) -> None:
    """A folder to write in, or a place to create one."""
    place = out
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise InputError(f"cannot write to the out folder {out}: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to the out folder {out}: no permission to write in {place}")


def _check_cell_folder(cell: Cell, run_dir: Path, fresh: bool) -> None:
    """What lies where the cell goes is absent, a run of the same configuration, or (``fresh``) any run."""
    if not run_dir.exists():
        return
    if not is_run(run_dir):
        if not run_dir.is_dir() or any(p.is_file() for p in run_dir.rglob("*") if p.suffix != ".tmp"):
            raise InputError(f"{run_dir} is in the way: it is not a run folder; move it or give another --out")
        return
    if fresh:
        return
    was, now = _flat(read_config(run_dir).to_dict()), _flat(cell.config.to_dict())
    different = [f"{k} {was.get(k)} and not {now.get(k)}" for k in {**now, **was} if was.get(k) != now.get(k)]
    if different:
        raise InputError(
            f"{run_dir} was trained with {', '.join(different)}: give the same flags, another --out, or --fresh to "
            "delete it"
        )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration's fields by dotted name."""
    rest = {k: v for k, v in config.items() if k != "hyper"}
    return rest | {f"hyper.{k}": v for k, v in config["hyper"].items()}


def _missing(cell: Cell) -> str:
    """Why the cell's backend cannot be had, or an empty text.

    Raises:
        InputError: the backend does not run on the cell's device.
    """
    if cell.simulator is None:
        return ""
    packages, extra = NEEDS.get(cell.simulator, ((), ""))
    for package in packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return str(missing_extra(package, extra))
    if cell.simulator == "torch" or torch.device(cell.config.device).type == "cpu":
        return ""
    # Whether a backend can use the GPU shows only when it is made; here would leave this process holding GPU memory.
    (outcome,) = _run_workers([cell], _probe, lambda cell: (cell.config,), None, 1, None)
    if outcome.status == "failed":
        raise InputError(outcome.reason)
    return outcome.reason


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the sweep's folder; the lock dies with this process."""
    if fcntl is None:
        yield
        return
    with open(out / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"another sweep is working in {out}: wait for it or give another --out") from error
        yield


def _steps_done(run_dir: Path) -> int:
    checkpoint = newest_checkpoint(run_dir)
    return int(checkpoint.stem.removeprefix("step_")) if checkpoint else 0


# --- workers -------------------------------------------------------------------------------------------------------


def _train_all(todo: Sequence[Cell], out: Path, workers: int, display: Display) -> Iterator[Outcome]:
    for outcome in _run_workers(todo, _train, lambda cell: (cell.config, out / cell.name), out, workers, display):
        yield Outcome(outcome.cell, out / outcome.cell.name, outcome.status, outcome.reason)


def _run_workers(
    todo: Sequence[Cell],
    target: Callable[..., None],
    arguments: Callable[[Cell], tuple[Any, ...]],
    logs: Path | None,
    workers: int,
    display: Display | None,
) -> Iterator[Outcome]:
    """Run ``target(*arguments(cell), send)`` in a process per cell; yield the outcomes as they come.

    What a process prints goes to ``logs/<cell name>.log``, or nowhere.
    """
    waiting, running = deque(todo), dict[Connection, tuple[Cell, BaseProcess, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                cell = waiting.popleft()
                log = Path(os.devnull) if logs is None else logs / f"{cell.name}.log"
                connection, process = _spawn(target, arguments(cell), log)
                running[connection] = (cell, process, time.monotonic())
                if display is not None:
                    display.start(cell.name)
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                cell, process, began = running[connection]
                message: tuple[Any, Any]
                try:
                    message = connection.recv()
                except EOFError:  # killed from outside, or out of memory
                    process.join()
                    message = ("failed", f"its process ended with exit code {process.exitcode}")
                status, content = message
                if status == "progress":
                    if display is not None:
                        display.update(cell.name, content)
                    continue
                if status == "note":
                    if display is not None:
                        display.say(f"{cell.name}: {content}")
                    continue
                process.join()
                connection.close()
                del running[connection]
                if display is not None:
                    ends = {"done": f"done in {duration(time.monotonic() - began)}", "skipped": f"skipped: {content}"}
                    display.finish(cell.name, ends.get(status, "FAILED"))
                yield Outcome(cell, Path(), status, content)
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join(5.0)
            if process.is_alive():
                process.kill()


def _spawn(target: Callable[..., None], arguments: tuple[Any, ...], log: Path) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(target, arguments, log, theirs), daemon=True)
    # Ctrl-C reaches the whole process group: workers are born ignoring it, and this process ends them.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, previous)
    theirs.close()  # so that the worker's end is the only one, and its death an EOF
    return ours, process


def _worker(target: Callable[..., None], arguments: tuple[Any, ...], log: Path, connection: Connection) -> None:
    """Body of a worker process; its last message is how it ended."""
    torch.set_num_threads(1)
    # By descriptor, because simulators print from C++ too; on the terminal it would tear the progress bars.
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    def send(status: str, content: Any) -> None:
        connection.send((status, content))

    def note(text: str) -> None:
        print(text, flush=True)  # into the log
        send("note", text)

    try:
        with show_log(note):
            target(*arguments, send)
        send("done", "")
    except BrokenPipeError:
        pass  # the sweep is gone: nothing to do and nobody to tell
    except MissingExtra as error:
        send("skipped", str(error))
    except InputError as error:
        send("failed", str(error))
    except Exception:  # whatever broke is shown by the sweep, which goes on with the other cells
        send("failed", traceback.format_exc())


def _train(config: TrainConfig, run_dir: Path, send: Callable[[str, Any], None]) -> None:
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > PROGRESS_EVERY_S:
            last = now
            send("progress", progress.env_step)

    if is_run(run_dir):
        resume(run_dir, progress=report)
    else:
        train(config, run_dir, progress=report)
    send("progress", config.steps)


def _probe(config: TrainConfig, send: Callable[[str, Any], None]) -> None:
    source = {"derivative": config.derivative, "residuals": config.residuals}
    make_physics(make_task(config.task), config.backend, device=config.device, **source)
