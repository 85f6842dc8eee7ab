"""Trains the cells of a sweep as tasks of Ray; the results are those of processes on this machine."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mage_diffsim.errors import InputError, missing_extra
from mage_diffsim.experiments.cells import PROGRESS_EVERY_S, Cell, Outcome, Status, run_body, train_cell
from mage_diffsim.experiments.launchers import Launcher, check_workers, ending_of, shown
from mage_diffsim.experiments.sweep_display import SweepDisplay

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
        check_workers(self.workers)
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

    def train(
        self, todo: Sequence[Cell], out: Path, display: SweepDisplay, until: float | None = None
    ) -> Iterator[Outcome]:
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
                pending[options.remote(cell, out.resolve(), until, token, Path.cwd(), messages)] = cell
            while pending:
                ready, _ = ray.wait(list(pending), timeout=PROGRESS_EVERY_S)
                for name, status, content in messages.get_nowait_batch(messages.qsize()):
                    if status != "start":
                        shown(display, name, status, content)
                    elif name in began:
                        display.say(f"{name}: its worker was lost; another goes on from the newest checkpoint")
                    else:
                        began[name] = time.monotonic()
                        display.start(name)
                for reference in ready:
                    cell = pending.pop(reference)
                    status, reason = _ray_result(ray, reference)
                    display.finish(cell.name, ending_of(status, reason, began.get(cell.name, time.monotonic())))
                    yield Outcome(cell, out / cell.name, status, reason)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)

    def _gpus(self, cell: Cell) -> float:
        return self.gpus_per_cell if torch.device(cell.config.device).type == "cuda" else 0.0

    def _check_gpus(self, ray: Any, todo: Sequence[Cell], display: SweepDisplay) -> None:
        """Refuse, or on a cluster announce, a cell that no machine has the GPUs for: it would wait silently."""
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


def _ray_task(
    cell: Cell, out: Path, until: float | None, token: str, directory: Path, messages: Any
) -> tuple[Status, str]:
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
    return run_body(train_cell, (cell.config, out / cell.name, until), out / f"{cell.name}.log", send)
