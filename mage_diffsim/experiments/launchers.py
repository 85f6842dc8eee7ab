"""Where the cells of a sweep train: in processes of this machine, or as tasks of Ray. The results are the same."""

from __future__ import annotations

import abc
import contextlib
import math
import multiprocessing
import os
import signal
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

import torch

from mage_diffsim.errors import InputError, missing_extra
from mage_diffsim.experiments.cells import PROGRESS_EVERY_S, Cell, Outcome, Status, run_body, train_cell
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
        """What must be there before anything is deleted or trained, and is let go at the end.

        Raises:
            InputError: it cannot be had.
        """
        return contextlib.nullcontext()

    @abc.abstractmethod
    def train(self, todo: Sequence[Cell], out: Path, display: SweepDisplay) -> Iterator[Outcome]:
        """Train cells in ``out/<cell name>``, their output in ``out/<cell name>.log``; yield outcomes as they come.

        Leaving the iterator (an exception, Ctrl-C) ends what still trains.
        """


# --- processes of this machine ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalLauncher(Launcher):
    """A fresh process per cell, ``workers`` at a time."""

    workers: int = 1

    def check(self, cells: Sequence[Cell]) -> None:
        _check_workers(self.workers)

    def train(self, todo: Sequence[Cell], out: Path, display: SweepDisplay) -> Iterator[Outcome]:
        def arguments(cell: Cell) -> tuple[Any, ...]:
            return cell.config, out / cell.name

        for cell, status, reason in run_processes(todo, train_cell, arguments, out, self.workers, display):
            yield Outcome(cell, out / cell.name, status, reason)


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise InputError(f"workers is {workers}; accepted is 1 or more")


def run_processes(
    todo: Sequence[Cell],
    target: Callable[..., None],
    arguments: Callable[[Cell], tuple[Any, ...]],
    logs: Path | None = None,
    workers: int = 1,
    display: SweepDisplay | None = None,
) -> Iterator[tuple[Cell, Status, str]]:
    """Run ``target(*arguments(cell), send)`` in a process per cell; yield how they ended as they do.

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
                if _shown(display, cell.name, status, content):
                    continue
                process.join()
                connection.close()
                del running[connection]
                if display is not None:
                    display.finish(cell.name, _ending(status, content, began))
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


def _shown(display: SweepDisplay | None, name: str, status: str, content: Any) -> bool:
    """Show a message that does not end a cell; False for one that does."""
    if display is not None and status == "progress":
        display.update(name, *content)
    elif display is not None and status == "note":
        display.say(f"{name}: {content}")
    return status in ("progress", "note")


def _ending(status: str, reason: str, began: float) -> str:
    ends = {"done": f"done in {duration(time.monotonic() - began)}", "skipped": f"skipped: {reason}"}
    return ends.get(status, "FAILED")


def _spawn(target: Callable[..., None], arguments: tuple[Any, ...], log: Path) -> tuple[Connection, BaseProcess]:
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


def _process(target: Callable[..., None], arguments: tuple[Any, ...], log: Path, connection: Connection) -> None:
    """Body of a worker process; its last message is how it ended."""

    def send(status: str, content: Any) -> None:
        connection.send((status, content))

    with contextlib.suppress(BrokenPipeError):  # the sweep is gone: nothing to do and nobody to tell
        send(*run_body(target, arguments, log, send))


# --- Ray -------------------------------------------------------------------------------------------------------------

RETRIES = 3
"""How often Ray starts a cell again whose process or machine was lost; it goes on from its newest checkpoint."""


@dataclass(frozen=True)
class RayLauncher(Launcher):
    """A Ray task per cell, in a process of its own, with one CPU and, on CUDA, a share of a GPU.

    Every machine of the cluster needs this version of mage_diffsim and sees the out folder under the same path.
    """

    workers: int = 1
    """CPUs of the Ray that is started here, so cells at a time; a cluster that exists has its own."""
    address: str | None = None
    """``host:port`` or ``auto`` of a cluster that exists; None starts Ray on this machine and stops it at the end."""
    gpus_per_cell: float = 1.0
    """Share of a GPU that a cell on device cuda holds: 0.25 puts four on one."""

    @property
    def here(self) -> bool:  # type: ignore[override]
        return self.address is None

    def check(self, cells: Sequence[Cell]) -> None:
        _check_workers(self.workers)
        _import_ray()
        share = self.gpus_per_cell
        if not (0.0 < share <= 1.0 or (1.0 < share < math.inf and share == int(share))):
            raise InputError(f"gpus_per_cell is {share:g}; accepted is a share above 0, or a whole number of GPUs")
        for cell in cells:
            if torch.device(cell.config.device).index is not None:
                raise InputError(f"device is {cell.config.device}; Ray chooses a cell's GPU itself: give cuda")

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        ray = _import_ray()
        if ray.is_initialized():
            raise InputError("this process is connected to a Ray cluster already; a sweep makes its own connection")
        quiet: dict[str, Any] = dict(log_to_driver=False, logging_level="ERROR")
        if self.address is None:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # Only messages and configurations go through the object store.
            small = dict(include_dashboard=False, object_store_memory=100 * 2**20)
            ray.init(address="local", num_cpus=self.workers, **small, **quiet)
        else:
            try:
                if ":" in self.address:  # Ray itself goes on trying for many minutes
                    host, _, port = self.address.removeprefix("ray://").rpartition(":")
                    socket.create_connection((host.strip("[]"), int(port)), timeout=10.0).close()
                ray.init(address=self.address, **quiet)
            except (OSError, RuntimeError, ValueError) as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(
                    f"cannot use the Ray cluster at {self.address!r}: {reason} (one started with token authentication "
                    "needs RAY_AUTH_MODE=token here, too)"
                ) from error
        try:
            yield
        finally:
            ray.shutdown()

    def train(self, todo: Sequence[Cell], out: Path, display: SweepDisplay) -> Iterator[Outcome]:
        ray = _import_ray()
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._check_gpus(ray, todo, display)
        token = uuid.uuid4().hex
        (out / TOKEN).write_text(token, encoding="utf-8")
        # On this machine: with a lost one it would take the whole sweep along.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        messages = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        # A process per cell: one that compiled and trained before would differ in memory, caches and threads.
        task = ray.remote(max_retries=RETRIES, max_calls=1)(_ray_task)
        pending: dict[Any, Cell] = {}
        began: dict[str, float] = {}
        try:
            for cell in todo:
                options = task.options(name=cell.name, num_cpus=1, num_gpus=self._gpus(cell))
                pending[options.remote(cell, out.resolve(), token, Path.cwd(), messages)] = cell
            while pending:
                ready, _ = ray.wait(list(pending), timeout=PROGRESS_EVERY_S)
                for name, status, content in messages.get_nowait_batch(messages.qsize()):
                    if status != "start":
                        _shown(display, name, status, content)
                    elif name in began:
                        display.say(f"{name}: its worker was lost; another goes on from the newest checkpoint")
                    else:
                        began[name] = time.monotonic()
                        display.start(name)
                for reference in ready:
                    cell = pending.pop(reference)
                    status, reason = _ray_result(ray, reference)
                    display.finish(cell.name, _ending(status, reason, began.get(cell.name, time.monotonic())))
                    yield Outcome(cell, out / cell.name, status, reason)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)

    def _gpus(self, cell: Cell) -> float:
        return self.gpus_per_cell if torch.device(cell.config.device).type == "cuda" else 0.0

    def _check_gpus(self, ray: Any, todo: Sequence[Cell], display: SweepDisplay) -> None:
        """A cell that no machine has the GPUs for would wait without a word."""
        needed = max(map(self._gpus, todo))
        most = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if needed <= most:
            return
        sentence = f"a cell asks for {needed:g} GPUs, and no machine of the Ray cluster has more than {most:g}"
        if self.address is None:
            raise InputError(f"{sentence}: give a smaller gpus_per_cell, or --device cpu")
        display.say(f"{sentence}: cells wait until one joins")


TOKEN = ".sweep"
"""File in the out folder by which a machine of the cluster knows that it sees the same folder."""


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", "sweep") from error
    return ray


def _ray_result(ray: Any, reference: Any) -> tuple[Status, str]:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return "failed", f"Ray gave it up: {getattr(error, 'cause', None) or str(error).strip().splitlines()[-1]}"


def _ray_task(cell: Cell, out: Path, token: str, directory: Path, messages: Any) -> tuple[Status, str]:
    """Body of a Ray task. Runs where the sweep was started, if that folder is there: a task's file may be relative."""
    from ray.exceptions import RayError

    if not (out / TOKEN).is_file() or (out / TOKEN).read_text(encoding="utf-8") != token:
        return "failed", (
            f"the machine {socket.gethostname()} does not see {out} as the sweep does: the out folder must lie on a "
            "file system that all machines of the cluster share"
        )
    with contextlib.suppress(OSError):
        os.chdir(directory)

    def send(status: str, content: Any) -> None:
        with contextlib.suppress(RayError):  # progress is for show: training goes on without
            messages.put_nowait((cell.name, status, content))

    send("start", None)
    return run_body(train_cell, (cell.config, out / cell.name), out / f"{cell.name}.log", send)
