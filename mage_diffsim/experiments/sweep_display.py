"""Shows how far a sweep is: live bars on a terminal, plain lines in a log."""

from __future__ import annotations

import abc
import time
from typing import final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from mage_diffsim.display import is_interactive
from mage_diffsim.experiments.eta import SweepClock

LINE_EVERY_S = 30.0
"""Seconds between two progress lines in a log."""


class SweepDisplay(abc.ABC):
    """Shows what the sweep tells it. A context manager: leaving it restores the terminal."""

    def begin(self, done: dict[str, int], steps: dict[str, int]) -> None:
        """The sweep's cells: environment steps done before this sitting, and to do in all."""
        self.done, self.steps = dict(done), dict(steps)
        self.clock = SweepClock(done, steps)

    def start(self, name: str) -> None:
        """A worker begins or goes on with a cell."""
        self.clock.start(name, time.monotonic())

    def update(self, name: str, env_step: int, left_s: float | None = None) -> None:
        """A cell has done this many environment steps, and says how many seconds it still takes."""
        self.done[name] = env_step
        self.clock.update(name, left_s, time.monotonic())

    def finish(self, name: str, text: str) -> None:
        """A cell has ended; ``text`` says how."""
        self.clock.finish(name, time.monotonic(), whole=self.done.get(name) == self.steps.get(name))
        self.say(f"{name}: {text}")

    @property
    def left(self) -> str:
        """How long the whole sweep still takes, in words."""
        left_s = self.clock.left_s(time.monotonic())
        return "too early to say how long" if left_s is None else f"about {duration(left_s)} left"

    @abc.abstractmethod
    def say(self, text: str) -> None:
        """A line that stays."""

    def __enter__(self) -> SweepDisplay:
        return self

    @abc.abstractmethod
    def __exit__(self, *_: object) -> None: ...


@final
class LiveSweepDisplay(SweepDisplay):
    """One bar per running cell and one for the whole."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.progress = Progress(*columns, console=console)
        self.bars: dict[str, TaskID] = {}

    def begin(self, done: dict[str, int], steps: dict[str, int]) -> None:
        super().begin(done, steps)
        total, completed = sum(steps.values()), sum(done.values())
        self.total = self.progress.add_task("[bold]all cells", total=total, completed=completed, left="")
        self.progress.start()

    def start(self, name: str) -> None:
        super().start(name)
        self.bars[name] = self.progress.add_task(name, total=self.steps[name], completed=self.done[name], left="")

    def update(self, name: str, env_step: int, left_s: float | None = None) -> None:
        super().update(name, env_step, left_s)
        self.progress.update(self.bars[name], completed=env_step)
        self.progress.update(self.total, completed=sum(self.done.values()), left=self.left)

    def finish(self, name: str, text: str) -> None:
        if name in self.bars:
            self.progress.remove_task(self.bars.pop(name))
        super().finish(name, text)

    def say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


class PlainSweepDisplay(SweepDisplay):
    """A line when a cell starts and ends, and one every half minute in between."""

    def begin(self, done: dict[str, int], steps: dict[str, int]) -> None:
        super().begin(done, steps)
        self.last_line = time.monotonic()

    def start(self, name: str) -> None:
        super().start(name)
        self.say(f"{name}: starts" if not self.done[name] else f"{name}: goes on from step {self.done[name]}")

    def update(self, name: str, env_step: int, left_s: float | None = None) -> None:
        super().update(name, env_step, left_s)
        now = time.monotonic()
        if now - self.last_line < LINE_EVERY_S:
            return
        self.last_line = now
        cells = ", ".join(f"{n} {self.done[n] / self.steps[n]:.0%}" for n in self.clock.running)
        share = sum(self.done.values()) / sum(self.steps.values())
        self.say(f"{share:.0%} of all cells done, {self.left} ({cells})")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def __exit__(self, *_: object) -> None:
        pass


def make_sweep_display() -> SweepDisplay:
    """Bars on a terminal; lines in a file, a pipe or CI."""
    console = Console()
    return LiveSweepDisplay(console) if is_interactive(console) else PlainSweepDisplay()


def duration(seconds: float) -> str:
    """A time span to read: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60} min"
