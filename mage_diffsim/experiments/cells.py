"""Cells of a sweep: what each trains, how it ended, and the body of its process."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from mage_diffsim.checkpoints import newest_checkpoint, step_of
from mage_diffsim.config import TrainConfig
from mage_diffsim.display import show_log
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments.eta import CellClock
from mage_diffsim.memory import keep_freed_memory
from mage_diffsim.methods import METHODS
from mage_diffsim.run_folder import is_run
from mage_diffsim.session import Progress, resume, train

PROGRESS_EVERY_S = 0.25
"""Seconds between two progress messages of a cell."""

Send = Callable[[str, Any], None]
"""Takes what a process tells its sweep: ``("progress", (env_step, seconds left or None))`` or ``("note", text)``."""

Status = Literal["done", "unfinished", "skipped", "failed"]
"""How a cell ended; unfinished: the sweep's time was over before its last step."""


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

    @property
    def backends(self) -> tuple[str, ...]:
        """The physics backends that were asked for: the simulator's, and that of another real environment."""
        return tuple(dict.fromkeys(b for b in (self.simulator, self.config.environment) if b is not None))


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    run_dir: Path
    status: Status
    reason: str = ""
    """Why it was skipped or failed, one sentence or a traceback; of an unfinished cell, where it stands."""

    @property
    def measured(self) -> bool:
        """Whether there is anything to report: all evaluations of a cell that is done, or the first ones."""
        return self.status == "done" or (self.status == "unfinished" and newest_checkpoint(self.run_dir) is not None)


def steps_done(run_dir: Path) -> int:
    """The environment steps at a run folder's newest checkpoint, 0 where there is none."""
    checkpoint = newest_checkpoint(run_dir)
    return step_of(checkpoint) if checkpoint else 0


def standing(run_dir: Path, steps: int) -> str:
    """Where an unfinished cell stands."""
    done = steps_done(run_dir)
    return f"stopped at step {done} of {steps}" if done else "not begun"


def train_cell(config: TrainConfig, run_dir: Path, until: float | None, send: Send) -> str | None:
    """Train a cell, or go on with it from its newest checkpoint.

    Args:
        config: what to train.
        run_dir: its run folder.
        until: when it is to be saved and to end, in seconds since the epoch; None is no limit.
        send: is told of its progress.

    Returns:
        where it stands, if its time was over before its last step.
    """
    left = None if until is None else (until - time.time()) / 60.0
    if left is not None and left <= 0.0:
        return standing(run_dir, config.steps)
    clock, last = CellClock(config), 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        clock.step(progress, now)
        if now - last > PROGRESS_EVERY_S:
            last = now
            send("progress", (progress.env_step, clock.left_s))

    if is_run(run_dir):
        result = resume(run_dir, device=config.device, graphs=config.graphs, progress=report, stop_after=left)
    else:  # a run killed before its configuration was written is none
        shutil.rmtree(run_dir, ignore_errors=True)
        result = train(config, run_dir, progress=report, stop_after=left)
    if not result.finished:
        return standing(run_dir, config.steps)
    send("progress", (config.steps, 0.0))
    return None


def run_body(
    target: Callable[..., str | None], arguments: tuple[Any, ...], log: Path, send: Send
) -> tuple[Status, str]:
    """Run ``target(*arguments, send)`` in this process, which is its own; what it prints goes into ``log``.

    The target returns None, or where it stands if it is not done.

    It runs on one thread, so that results do not depend on how many run beside it.

    Returns:
        how it ended, and why if it is not done.

    Raises:
        BrokenPipeError: the sweep that it told of its progress is gone.
    """
    torch.set_num_threads(1)
    keep_freed_memory()

    def note(text: str) -> None:
        print(text, flush=True)  # into the log
        send("note", text)

    try:
        # By descriptor, because simulators print from C++ too; on the terminal it would tear the progress bars.
        with open(log, "a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        with show_log(note):
            stands = target(*arguments, send)
    except BrokenPipeError:
        raise
    except MissingExtra as error:
        return "skipped", str(error)
    except InputError as error:
        return "failed", str(error)
    except Exception:  # whatever broke is shown by the sweep, which goes on with the other cells
        return "failed", traceback.format_exc()
    return ("unfinished", stands) if stands else ("done", "")
