"""Launchers train the cells of a sweep: their interface, and the one that uses processes of this machine."""

from __future__ import annotations

import abc
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

from mage_diffsim.errors import InputError
from mage_diffsim.experiments.cells import Cell, Outcome, Status, run_body, train_cell
from mage_diffsim.experiments.sweep_display import SweepDisplay, duration

LAST_STEP_S = 15.0
"""Seconds that the workers of an interrupted sweep have, together, to end their steps and save them."""


class Launcher(abc.ABC):
    """Trains the cells of a sweep."""

    here: ClassVar[bool] = True
    """Whether cells train on this machine, whose devices and packages they then need."""

    @abc.abstractmethod
    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse what cannot be launched.

        Raises:
            InputError, MissingExtra: says what and why.
        """

    def connected(self) -> contextlib.AbstractContextManager[None]:
        """Hold what training needs, such as a connection; entered before anything is deleted or trained.

        Raises:
            InputError: it cannot be had.
        """
        return contextlib.nullcontext()

    @abc.abstractmethod
    def train(
        self, todo: Sequence[Cell], out: Path, display: SweepDisplay, until: float | None = None
    ) -> Iterator[Outcome]:
        """Train cells in ``out/<cell name>``, their output in ``out/<cell name>.log``; yield outcomes as they come.

        At ``until`` (seconds since the epoch) those that train are saved and end, and no other begins. Leaving the
        iterator (an exception, Ctrl-C) ends what still trains.
        """


@dataclass(frozen=True)
class LocalLauncher(Launcher):
    """A fresh process per cell, ``workers`` at a time."""

    workers: int = 1

    def check(self, cells: Sequence[Cell]) -> None:
        check_workers(self.workers)

    def train(
        self, todo: Sequence[Cell], out: Path, display: SweepDisplay, until: float | None = None
    ) -> Iterator[Outcome]:
        def arguments(cell: Cell) -> tuple[Any, ...]:
            return cell.config, out / cell.name, until

        for cell, status, reason in run_processes(todo, train_cell, arguments, out, self.workers, display, until):
            yield Outcome(cell, out / cell.name, status, reason)


def check_workers(workers: int) -> None:
    """Refuse a number of workers below 1, by an InputError."""
    if workers < 1:
        raise InputError(f"workers is {workers}; accepted is 1 or more")


def run_processes(
    todo: Sequence[Cell],
    target: Callable[..., str | None],
    arguments: Callable[[Cell], tuple[Any, ...]],
    logs: Path | None = None,
    workers: int = 1,
    display: SweepDisplay | None = None,
    until: float | None = None,
) -> Iterator[tuple[Cell, Status, str]]:
    """Run ``target(*arguments(cell), send)`` in a process per cell; yield how they ended as they do.

    What a process prints goes to ``logs/<cell name>.log``, or nowhere. After ``until`` (seconds since the epoch) no
    other process begins.
    """
    waiting, running = deque(todo), dict[Connection, tuple[Cell, BaseProcess, float]]()
    try:
        while waiting or running:
            if until is not None and time.time() >= until:
                waiting.clear()
            while waiting and len(running) < workers:
                cell = waiting.popleft()
                log = Path(os.devnull) if logs is None else logs / f"{cell.name}.log"
                connection, process = _spawn(target, arguments(cell), log)
                running[connection] = (cell, process, time.monotonic())
                if display is not None:
                    display.start(cell.name)
            for connection in wait(list(running)) if running else ():
                assert isinstance(connection, Connection)
                cell, process, began = running[connection]
                message: tuple[Any, Any]
                try:
                    message = connection.recv()
                except EOFError:  # killed from outside, or out of memory
                    process.join()
                    message = ("failed", f"its process ended with exit code {process.exitcode}")
                status, content = message
                if shown(display, cell.name, status, content):
                    continue
                process.join()
                connection.close()
                del running[connection]
                if display is not None:
                    display.finish(cell.name, ending_of(status, content, began))
                yield cell, status, content
    finally:
        for _, process, _ in running.values():
            process.terminate()  # it saves its step first
        deadline = time.monotonic() + LAST_STEP_S
        for _, process, _ in running.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


def shown(display: SweepDisplay | None, name: str, status: str, content: Any) -> bool:
    """Show a message that does not end a cell; False for one that does."""
    if display is not None and status == "progress":
        display.update(name, *content)
    elif display is not None and status == "note":
        display.say(f"{name}: {content}")
    return status in ("progress", "note")


def ending_of(status: str, reason: str, began: float) -> str:
    """How a cell that began at this second of the monotonic clock has ended, in words."""
    ends = {
        "done": f"done in {duration(time.monotonic() - began)}",
        "skipped": f"skipped: {reason}",
        "unfinished": reason,
    }
    return ends.get(status, "FAILED")


def _spawn(target: Callable[..., str | None], arguments: tuple[Any, ...], log: Path) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_process, args=(target, arguments, log, theirs), daemon=True)
    # Ctrl-C reaches the whole process group: workers are born ignoring it, and this process ends them.
    main = threading.current_thread() is threading.main_thread()  # no other may set a handler
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN) if main else None
    try:
        process.start()
    finally:
        if main:
            signal.signal(signal.SIGINT, previous)
    theirs.close()  # so that the worker's end is the only one, and its death an EOF
    return ours, process


def _process(target: Callable[..., str | None], arguments: tuple[Any, ...], log: Path, connection: Connection) -> None:
    """Body of a worker process; its last message is how it ended."""

    def send(status: str, content: Any) -> None:
        connection.send((status, content))

    with contextlib.suppress(BrokenPipeError):  # the sweep is gone: nothing to do and nobody to tell
        send(*run_body(target, arguments, log, send))
