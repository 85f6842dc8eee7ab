"""How a training shows itself: a progress bar in a terminal, plain lines in a file, a pipe or CI."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from mage_diffsim.config import TrainConfig
from mage_diffsim.devices import environment_text
from mage_diffsim.envs.identity.options import format_options
from mage_diffsim.envs.physics import BACKENDS, backends_of, load
from mage_diffsim.envs.task import Task
from mage_diffsim.methods import METHODS, WITHOUT_LAMBDA
from mage_diffsim.session import Progress

LINE_EVERY_S = 60.0
"""Without a bar, a line at least this often [s], so that a log shows that training is alive."""


def is_interactive(console: Console) -> bool:
    """Whether a bar that redraws itself makes sense: a terminal, and not one of a CI service."""
    return console.is_terminal and os.environ.get("CI", "").lower() not in ("1", "true")


@contextlib.contextmanager
def show_log(write: Callable[[str], object]) -> Iterator[None]:
    """Meanwhile, hand what the package logs (compilations, masked derivatives) to ``write``, one text per message."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            write(self.format(record))

    logger, handler = logging.getLogger("mage_diffsim"), Handler()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


class TrainingDisplay:
    """Shows a training: :meth:`progress` is its ``progress`` callback, :meth:`evaluation` one of its ``sinks``.

    >>> with TrainingDisplay(Console(), run_dir, steps=1000) as display:
    ...     train(config, run_dir, progress=display.progress, sinks=(display.evaluation,))

    Args:
        console: where to write.
        run_dir: the run folder, to be named with the first step or evaluation.
        steps: environment steps of the whole training.
        banner: lines to print above that name, such as :func:`describe` gives.
    """

    def __init__(self, console: Console, run_dir: Path, steps: int, banner: Sequence[str] = ()) -> None:
        self.console, self.run_dir, self.steps, self.banner = console, run_dir, steps, banner
        self.bar = Bar(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not is_interactive(console),
        )
        self.task = self.bar.add_task("training", total=steps, speed="")
        self._named = False
        self._started: tuple[int, float] | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> TrainingDisplay:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def progress(self, progress: Progress) -> None:
        """After every environment step."""
        speed = f"{progress.updates_per_s:.0f} updates/s" if progress.updates_per_s else "warm-up"
        self.bar.update(self.task, completed=progress.env_step, speed=speed)
        self._begin()
        now = time.monotonic()
        if self._started is None:
            self._started = (progress.env_step - 1, now)  # a resumed training does not start at 0
        if self.bar.disable and now - self._last_line >= LINE_EVERY_S:
            first, since = self._started
            left = (now - since) / (progress.env_step - first) * (progress.steps - progress.env_step)
            self._print(f"{self._at(progress.env_step)}   {speed}   about {_duration(left)} left")

    def evaluation(self, env_step: int, rows: list[dict[str, Any]]) -> None:
        """After every evaluation: one line over all runs."""
        self._begin()
        self._print(f"{self._at(env_step)}   {summary(rows)}")

    def _begin(self) -> None:
        """Print the banner, with the first step or evaluation: a training that is refused writes no folder."""
        if not self._named:
            for line in self.banner:
                self._print(line)
            self._print(f"run folder {self.run_dir}")
            self._named = True

    def _at(self, env_step: int) -> str:
        width = len(str(self.steps))
        return f"step {env_step:>{width}}/{self.steps}"

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)
        self.console.file.flush()  # a log that a killed training leaves holds every line
        self._last_line = time.monotonic()


def describe(config: TrainConfig, task: Task) -> list[str]:
    """What is trained, in a few lines: task and options, method, dynamics, environment, hyper-parameters, runs."""
    options = f", {' '.join(format_options(config.task_options))}" if config.task_options else ""
    name = task.name if config.task == task.name else f"{task.name} ({config.task})"
    method, ensemble = METHODS[config.method], f"ensemble {config.ensemble}"
    if config.hyper.ensemble_members > 1:
        ensemble += f" of {config.hyper.ensemble_members} members"
    backend = config.backend or backends_of(task)[0]
    derivative = config.derivative or load(BACKENDS[backend]).derivatives_of(task)[0]
    simulator = f"backend {backend}, derivative {derivative}"
    if not method.imagines:
        dynamics = "none: transitions of the replay buffer"
    elif config.dynamics == "learned":
        dynamics = f"learned: {ensemble}"
    elif config.dynamics == "oracle":
        dynamics = f"oracle: {simulator}"
    else:
        dynamics = f"{config.dynamics}: {simulator}, {ensemble}"
    reward = ", learned reward" if config.reward == "learned" else ""
    lambdas = ""
    if config.critic_loss not in WITHOUT_LAMBDA:
        lambdas = f", lambda{'s' if len(config.lambdas) > 1 else ''} {' '.join(f'{lam:g}' for lam in config.lambdas)}"
    seeds = f"seed{'s' if len(config.seeds) > 1 else ''} {' '.join(map(str, config.seeds))}"
    dtype = "float64" if config.float64 else "float32"
    solver = f", solver {config.solver}" if "mujoco" in backends_of(task) else ""
    return [
        f"task {name}{options}",
        f"method {config.method}, loss {config.critic_loss}{reward}",
        f"dynamics {dynamics}",
        f"environment {environment_text(config, task)}{solver}",
        f"preset {config.preset}, device {config.device}, {dtype}",
        f"runs {len(config.runs)}: {seeds}{lambdas}",
        f"steps {config.steps}",
    ]


def summary(rows: list[dict[str, Any]]) -> str:
    """The rows of one evaluation (one per run) in one line: mean return and range over runs, gradient error."""
    returns = [row["return_mean"] for row in rows]
    text = f"return {fmean(returns):.1f}"
    if len(rows) > 1:
        text += f" ({len(rows)} runs: {min(returns):.1f} to {max(returns):.1f})"
    errors = [row["gradient_error"] for row in rows if row.get("gradient_error") is not None]
    if errors:
        text += f"   gradient error {fmean(errors):.3g}"
    return text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
