"""Estimates how long a sweep still takes: each worker its own cell, the sweep all cells from what the workers tell."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from statistics import fmean
from typing import final

from mage_diffsim.config import TrainConfig
from mage_diffsim.session import Progress


@final
class _Cost:
    """Mean seconds of one kind of work. The first time, which may compile, counts only until there is a second."""

    def __init__(self) -> None:
        self.total = self.first = 0.0
        self.n = 0

    def add(self, seconds: float) -> None:
        self.n += 1
        if self.n == 1:
            self.first = seconds
        else:
            self.total += seconds

    @property
    def mean(self) -> float:
        return self.total / (self.n - 1) if self.n > 1 else self.first


@final
class CellClock:
    """Seconds that a training still takes; its ``progress`` callback calls :meth:`step`.

    A training does work of three kinds, whose numbers are known from its configuration: steps with updates, model
    training every ``model_every`` steps and evaluations every ``eval_every``. Warm-up steps without updates count for
    nothing.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.updates, self.models, self.evaluations = _Cost(), _Cost(), _Cost()
        self.env_step = 0
        self.now: float | None = None

    def step(self, progress: Progress, now: float) -> None:
        """One environment step has been done, and what follows it, at this second of any clock."""
        before, self.now, self.env_step = self.now, now, progress.env_step
        # What is done in every step cannot be told from the updates and counts as part of them.
        evaluates, trains = (
            every > 1 and self.env_step % every == 0
            for every in (self.config.eval_every, self.config.hyper.model_every)
        )
        if before is None:
            if self.env_step == 1 and self.config.eval_every > 1:
                self.evaluations.add(progress.wall_s)  # that of the untrained agent
            return
        seconds = now - before
        updates = self.env_step >= self.config.hyper.warmup_steps
        beyond_updates = seconds - updates * self.updates.mean
        if evaluates:
            self.evaluations.add(max(beyond_updates - trains * self.models.mean, 0.0))
        elif trains:
            self.models.add(max(beyond_updates, 0.0))
        elif updates:
            self.updates.add(seconds)

    @property
    def left_s(self) -> float | None:
        """Seconds to the end; None before the second step with updates."""
        if self.updates.n < 2:
            return None
        left = 0.0
        for cost, every in (
            (self.updates, 1),
            (self.models, self.config.hyper.model_every),
            (self.evaluations, self.config.eval_every),
        ):
            left += cost.mean * (self.config.steps // every - self.env_step // every)
        last = self.config.steps % self.config.eval_every and self.env_step < self.config.steps
        return left + self.evaluations.mean * bool(last)


@final
class SweepClock:
    """Seconds that a sweep still takes, from what its cells have taken and say that they take.

    A cell that has not said anything is taken to need as long per step as the others do. Cells begin in the order
    given, as many at once as have been seen at once.

    Args:
        done: steps of every cell that are done before.
        steps: steps of every cell in all.
    """

    def __init__(self, done: Mapping[str, int], steps: Mapping[str, int]) -> None:
        self.todo = {name: n - done[name] for name, n in steps.items() if n > done[name]}
        self.began: dict[str, float] = {}
        self.ends: dict[str, float] = {}
        """Cells that have said how long they take, and those that have ended: when, by this sweep's clock."""
        self.running: list[str] = []
        self.workers = 1

    def start(self, name: str, now: float) -> None:
        """A worker begins with a cell."""
        self.began[name] = now
        self.running.append(name)
        self.workers = max(self.workers, len(self.running))

    def update(self, name: str, left_s: float | None, now: float) -> None:
        """A running cell says how long it still takes."""
        if left_s is not None:
            self.ends[name] = now + left_s

    def finish(self, name: str, now: float, whole: bool = True) -> None:
        """A cell has ended; one that did not do all its steps, or never ran here, says nothing of the others."""
        ran = name in self.running
        if ran:
            self.running.remove(name)
            self.ends[name] = now
        if not ran or not whole:
            self.todo.pop(name, None)

    def left_s(self, now: float) -> float | None:
        """Seconds to the end of the last cell; None while nothing is known."""
        known = [(self.ends[n] - self.began[n]) / self.todo[n] for n in self.ends if n in self.todo]
        if not known:
            return None
        per_step = fmean(known)
        free = [
            max(self.ends.get(name, self.began[name] + per_step * self.todo.get(name, 0)) - now, 0.0)
            for name in self.running
        ]
        free += [0.0] * (self.workers - len(free))
        heapq.heapify(free)
        for name, steps in self.todo.items():
            if name not in self.began:
                heapq.heapreplace(free, free[0] + per_step * steps)
        return max(free)
