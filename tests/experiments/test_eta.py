"""How long a sweep still takes, told against a simulated clock."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import pytest

from mage_diffsim.experiments.eta import CellClock, SweepClock
from mage_diffsim.session import Progress
from mage_diffsim.settings import make_config

STEPS, WARMUP, EVERY = 700, 100, 50
CONFIG = make_config("Pendulum", preset="cpu", steps=STEPS, eval_every=EVERY, hyper=dict(warmup_steps=WARMUP))


@dataclass(frozen=True)
class Machine:
    """Seconds of everything that a cell does."""

    update: float
    """Of a step with updates."""
    start: float = 3.0
    """Importing, until the first evaluation begins."""
    warmup: float = 0.005
    """Of a step without updates."""
    compile: float = 0.0
    """More that the first evaluation and the first update take."""
    model: float = 0.0
    """Of model training, every 25 steps."""
    evaluation: float = 0.3

    def times(self, first_step: int = 1) -> list[tuple[float, Progress]]:
        """When each step of a cell is done, after its start."""
        now, wall_s, found = self.start, 0.0, []
        if first_step == 1:
            wall_s += self.evaluation + self.compile
        for step in range(first_step, STEPS + 1):
            wall_s += self.warmup if step < WARMUP else self.update + self.compile * (step == max(first_step, WARMUP))
            wall_s += self.model * (step % CONFIG.hyper.model_every == 0)
            wall_s += self.evaluation * (step % EVERY == 0)
            found.append((now + wall_s, Progress(step, STEPS, wall_s, 0.0, {})))
        return found


def sweep(machines: list[Machine], workers: int, at: float, first_step: int = 1) -> tuple[float | None, float]:
    """What the clock says at a second of a sweep, one cell per machine, and the truth."""
    names = [str(i) for i in range(len(machines))]
    clock = SweepClock(dict.fromkeys(names, first_step - 1), dict.fromkeys(names, STEPS))
    free, end = [0.0] * workers, 0.0
    events: list[tuple[float, int, str, float | None]] = []
    for name, machine in zip(names, machines, strict=True):
        began = heapq.heappop(free)
        events.append((began, 1, name, None))
        cell = CellClock(CONFIG)
        for seconds, progress in machine.times(first_step):
            if began + seconds <= at:
                cell.step(progress, began + seconds)
            events.append((began + seconds, 2, name, cell.left_s))
        events.append((began + seconds, 0, name, None))
        heapq.heappush(free, began + seconds)
        end = max(end, began + seconds)
    for now, kind, name, left_s in sorted(events, key=lambda event: event[:2]):
        if now > at:
            break
        if kind == 1:
            clock.start(name, now)
        elif kind == 2:
            clock.update(name, left_s, now)
        else:
            clock.finish(name, now)
    return clock.left_s(at), end - at


ALIKE = [Machine(update=0.1)] * 8
DEMO = [Machine(update=u, start=s, model=m, compile=c) for u, s, m, c in (
    (0.1, 4, 0.2, 0), (0.085, 4, 0, 0), (0.09, 5, 0, 2), (0.08, 5, 0, 1),
    (0.1, 4, 0.2, 0), (0.1, 4, 0.2, 0), (0.065, 4, 0.2, 0), (0.05, 4, 0, 0),
)]  # fmt: skip


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize(
    "machines",
    [
        ALIKE,
        DEMO,
        [Machine(update=0.1, warmup=0.25, start=15.0)] * 4,
        [Machine(update=0.5, compile=20.0)] * 2,
        [Machine(update=0.05, evaluation=8.0)] * 4,
        [Machine(update=0.1, model=10)] * 3,
        [Machine(update=0.25)],
    ],
    ids=["alike", "demo", "slow warm-up", "compilation", "slow evaluation", "slow model", "one cell"],
)
def test_after_a_minute_the_estimate_is_within_a_factor_of_one_and_a_half(machines, workers):
    said, truth = sweep(machines, workers, at=60.0)
    assert said is not None and truth / 1.5 <= said <= truth * 1.5, f"{said} s of {truth} s"


def test_model_training_at_an_evaluation_is_not_counted_twice():
    said, truth = sweep([Machine(update=0.1, model=10.0)], 1, at=120.0)
    assert said == pytest.approx(truth, rel=0.1)


def test_evaluations_at_every_step_are_not_counted_twice():
    clock = CellClock(replace(CONFIG, eval_every=1, hyper=replace(CONFIG.hyper, warmup_steps=1)))
    for step in range(1, 21):
        clock.step(Progress(step, STEPS, 5.0 + step, 0.0, {}), float(step))  # the first evaluation takes 5 s
    assert clock.left_s == pytest.approx(STEPS - 20)


def test_a_resumed_sweep_knows_as_much():
    said, truth = sweep(ALIKE, 2, at=30.0, first_step=401)
    assert said == pytest.approx(truth, rel=0.2)


def test_during_warm_up_nothing_is_said():
    assert sweep([Machine(update=0.1, warmup=1)], 1, at=60.0)[0] is None


def test_cells_that_run_are_waited_for_and_the_others_wait_for_a_worker():
    clock = SweepClock(dict.fromkeys("abcd", 0), dict.fromkeys("abcd", 100))
    assert clock.left_s(0.0) is None
    for name in "ab":
        clock.start(name, 0.0)
    clock.update("a", 30.0, 10.0)  # 40 s in all, for a cell of 100 steps
    assert clock.left_s(10.0) == 30.0 + 40.0
    clock.finish("a", 40.0)
    clock.start("c", 40.0)
    clock.finish("b", 60.0)  # the other worker took longer: 50 s a cell in the mean
    assert clock.left_s(60.0) == 50.0


def test_cells_that_tell_nothing_but_their_end_are_enough():
    clock = SweepClock(dict.fromkeys("abc", 0), dict.fromkeys("abc", 1))
    clock.start("a", 0.0)
    clock.finish("a", 7.0)
    assert clock.left_s(7.0) == 14.0


def test_cells_that_never_run_take_no_time():
    clock = SweepClock(dict(a=0, b=0, c=5), dict(a=5, b=5, c=5))
    clock.finish("b", 0.0)  # skipped
    clock.start("a", 0.0)
    clock.update("a", 9.0, 1.0)
    assert clock.left_s(1.0) == 9.0


def test_a_cell_that_fails_does_not_make_the_others_look_short():
    clock = SweepClock(dict.fromkeys("abc", 0), dict.fromkeys("abc", 100))
    clock.start("a", 0.0)
    clock.finish("a", 2.0, whole=False)
    assert clock.left_s(2.0) is None
    clock.start("b", 2.0)
    clock.update("b", 50.0, 52.0)
    assert clock.left_s(52.0) == 50.0 + 100.0
