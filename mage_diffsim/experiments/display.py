"""How far a sweep is: live bars on a terminal, plain lines in a log."""

from __future__ import annotations

import abc
import time
from typing import final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from mage_diffsim.display import is_interactive

LINE_EVERY_S = 30.0
"""Seconds between two progress lines in a log."""

EARLY = 0.02
"""Share of all steps before which no line estimates the time that is left."""


class Display(abc.ABC):
    """Told by the sweep what happens; shows it. A context manager: leaving it restores the terminal."""

    @abc.abstractmethod
    def begin(self, done: dict[str, int], steps: dict[str, int]) -> None:
        """The sweep's cells: environment steps done before this sitting, and to do in all."""

    @abc.abstractmethod
    def start(self, name: str) -> None:
        """A worker begins or goes on with a cell."""

    @abc.abstractmethod
    def update(self, name: str, env_step: int) -> None:
        """A cell has done this many environment steps."""

    @abc.abstractmethod
    def finish(self, name: str, text: str) -> None:
        """A cell has ended; ``text`` says how."""

    @abc.abstractmethod
    def say(self, text: str) -> None:
        """A line that stays."""

    def __enter__(self) -> Display:
        return self

    @abc.abstractmethod
    def __exit__(self, *_: object) -> None: ...


@final
class LiveDisplay(Display):
    """One bar per running cell and one for the whole."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        # The default speed window is 30 s; evaluations and cells of different speed make a longer one steadier.
        self.progress = Progress(*columns, console=console, speed_estimate_period=120.0)
        self.bars: dict[str, TaskID] = {}
        self.done: dict[str, int] = {}
        self.steps: dict[str, int] = {}

    def begin(self, done: dict[str, int], steps: dict[str, int]) -> None:
        self.done, self.steps = dict(done), steps
        self.total = self.progress.add_task("[bold]all cells", total=sum(steps.values()), completed=sum(done.values()))
        self.progress.start()

    def start(self, name: str) -> None:
        self.bars[name] = self.progress.add_task(name, total=self.steps[name], completed=self.done[name])

    def update(self, name: str, env_step: int) -> None:
        self.done[name] = env_step
        self.progress.update(self.bars[name], completed=env_step)
        self.progress.update(self.total, completed=sum(self.done.values()))

    def finish(self, name: str, text: str) -> None:
        if name in self.bars:
            self.progress.remove_task(self.bars.pop(name))
        self.say(f"{name}: {text}")

    def say(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


@final
class PlainDisplay(Display):
    """A line when a cell starts and ends, and one every half minute in between."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.done: dict[str, int] = {}
        self.steps: dict[str, int] = {}

    def begin(self, done: dict[str, int], steps: dict[str, int]) -> None:
        self.done, self.steps = dict(done), steps
        self.began, self.before = time.monotonic(), sum(done.values())
        self.last_line = self.began

    def start(self, name: str) -> None:
        self.running.append(name)
        self.say(f"{name}: starts" if not self.done[name] else f"{name}: goes on from step {self.done[name]}")

    def update(self, name: str, env_step: int) -> None:
        self.done[name] = env_step
        now = time.monotonic()
        if now - self.last_line < LINE_EVERY_S:
            return
        self.last_line = now
        cells = ", ".join(f"{n} {self.done[n] / self.steps[n]:.0%}" for n in self.running)
        done, total = sum(self.done.values()), sum(self.steps.values())
        here = done - self.before
        left = (now - self.began) * (total - done) / max(here, 1)
        # The first steps of a cell train nothing or compile, so they say nothing of the rest.
        when = f"about {duration(left)} left" if here >= EARLY * total else "too early to say how long"
        self.say(f"{done / total:.0%} of all cells done, {when} ({cells})")

    def finish(self, name: str, text: str) -> None:
        if name in self.running:
            self.running.remove(name)
        self.say(f"{name}: {text}")

    def say(self, text: str) -> None:
        print(text, flush=True)

    def __exit__(self, *_: object) -> None:
        pass


def make_display() -> Display:
    """Bars on a terminal; lines in a file, a pipe or CI."""
    console = Console()
    return LiveDisplay(console) if is_interactive(console) else PlainDisplay()


def duration(seconds: float) -> str:
    """A time span to read: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60} min"
