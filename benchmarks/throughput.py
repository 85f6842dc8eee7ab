"""How fast is one update? The learner against the published formulation, interleaved in one process; and the oracles.

    python benchmarks/throughput.py                      # pendulum sizes, MAGE and Dyna, learned ensemble
    python benchmarks/throughput.py --repeats 30 --csv benchmarks/results/throughput/cpu_2_threads.csv
    python benchmarks/throughput.py --task HalfCheetah --oracles   # one MAGE-TD3 update on every oracle of a task

One update is the critic step with its target networks, and every second time the actor's. Both formulations start from
the same trained parameters and use the same batches and random numbers; their critic gradients must agree before a
number is printed. Rounds alternate between the two, so drift of the machine hits both; the ratio is the median of the
per-round ratios.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from published import PublishedDraws, PublishedUpdate
from rich.console import Console
from rich.table import Table

from mage_diffsim.agent import Draws
from mage_diffsim.bridges.errors import InputError, MissingExtra, unknown_name
from mage_diffsim.buffer import Batch
from mage_diffsim.config import METHODS, make_config
from mage_diffsim.doctor import versions
from mage_diffsim.dynamics import OracleDynamics
from mage_diffsim.envs.physics import BACKENDS, backends_of, load
from mage_diffsim.envs.registry import make_task
from mage_diffsim.runs import write_atomically
from mage_diffsim.training import Trainer


@dataclass(frozen=True)
class Options:
    """What to measure."""

    task: str = "Pendulum"
    """Task, which decides the sizes of observation and action, and with the preset those of the networks."""
    methods: tuple[str, ...] = ("mage-td3", "mage-ddpg", "dyna-td3")
    """Methods to time, each on the learned ensemble."""
    oracles: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Time one MAGE-TD3 update on each of the task's oracle backends and derivative sources instead, and the physics'
    share of it."""
    preset: str = "paper"
    """Sizes: the preset's for the task (paper, Pendulum: 8x2x128 ensemble, 2x128 actor and critic, batch 512)."""
    repeats: int = 20
    """Interleaved rounds; the median and 95th percentile over them are reported."""
    updates: int = 10
    """Updates per round and formulation."""
    threads: int = 2
    """Torch threads."""
    csv: Path | None = None
    """Also write the table to this file."""


@dataclass(frozen=True)
class Row:
    """One method's result."""

    method: str
    published_ms: float
    """Median time of one published update [ms]."""
    published_p95_ms: float
    ours_ms: float
    """Median time of one update of the learner [ms]."""
    ours_p95_ms: float
    ratio: float
    """Median over rounds of published / ours."""
    gradient_error: float
    """Relative difference of the two critic gradients (float32)."""


def measure(method: str, options: Options) -> Row:
    """Time one method.

    Raises:
        RuntimeError: the two formulations disagree about the critic gradient.
    """
    imagining = [name for name, entry in METHODS.items() if entry.imagines]
    if method not in imagining:
        raise unknown_name("method that imagines", method, imagining)
    trainer = _warm_trainer(options, method=method, dynamics="learned")
    config = trainer.config
    agent, rows, members = trainer.agent, config.hyper.batch_size, config.hyper.ensemble_members
    member = torch.arange(rows) // (rows // members)

    def prepare() -> list[tuple[Batch, Draws, PublishedDraws]]:
        prepared = []
        for draws in agent.draw(options.updates, trainer.buffer.size):
            assert draws.imagine is not None
            published_draws = PublishedDraws(member, draws.imagine[0], draws.target[0])
            prepared.append((trainer.buffer.gather(draws.index), draws, published_draws))
        return prepared

    published = PublishedUpdate(trainer)
    batch, draws, published_draws = prepare()[0]
    expected = published.critic_gradient(batch.obs[0], batch.state[0], published_draws)
    _, gradient = agent.critic_gradient(batch, agent.target(batch, draws), draws)
    error = float((gradient[0] - expected).norm() / expected.norm())
    if not error < 1e-3:
        raise RuntimeError(f"{method}: the critic gradients differ by {error:.1e}; a timing would mean nothing")

    def run_published(prepared: list) -> None:
        for batch, _, published_draws in prepared:
            published.update(batch.obs[0], batch.state[0], published_draws)

    def run_ours(prepared: list) -> None:
        for batch, draws, _ in prepared:
            agent.update_critic(batch, draws)
            if agent.actor_is_due():
                agent.update_actor(batch)

    times: dict[str, list[float]] = {"published": [], "ours": []}
    for round_ in range(options.repeats + 1):
        prepared = prepare()
        for name, run in (("published", run_published), ("ours", run_ours)):
            began = time.perf_counter()
            run(prepared)
            if round_:  # the first round warms up
                times[name].append((time.perf_counter() - began) / options.updates * 1e3)
    ratios = [a / b for a, b in zip(times["published"], times["ours"], strict=True)]
    return Row(
        method,
        statistics.median(times["published"]),
        _p95(times["published"]),
        statistics.median(times["ours"]),
        _p95(times["ours"]),
        statistics.median(ratios),
        error,
    )


def _warm_trainer(options: Options, **settings: Any) -> Trainer:
    """A trainer with some transitions in its buffer and an update behind it."""
    steps = 200
    hyper = {"warmup_steps": steps, "updates_per_step": 1, "model_every": steps}
    trainer = Trainer(make_config(options.task, preset=options.preset, steps=steps, hyper=hyper, **settings))
    for _ in range(steps):
        trainer.step()
    return trainer


@dataclass(frozen=True)
class OracleRow:
    """One oracle's result: MAGE-TD3 in float32 at the preset's batch size."""

    backend: str
    derivative: str
    update_ms: float
    """Median time of one update: critic, and every second time the actor [ms]."""
    update_p95_ms: float
    updates_per_s: float
    forward_ms: float
    """Median time of the physics' step of one batch [ms]."""
    derivative_ms: float
    """Median time of its step and the gradient with respect to the action [ms]."""
    first_s: float
    """What came before: building the physics and its first steps, which compile [s]."""


def measure_oracle(backend: str, derivative: str, options: Options) -> OracleRow:
    """Time one oracle."""
    began = time.perf_counter()
    trainer = _warm_trainer(options, method="mage-td3", dynamics="oracle", backend=backend, derivative=derivative)
    first = time.perf_counter() - began
    agent, dynamics = trainer.agent, trainer.agent.dynamics
    assert isinstance(dynamics, OracleDynamics)

    def update() -> None:
        (draws,) = agent.draw(1, trainer.buffer.size)
        batch = trainer.buffer.gather(draws.index)
        agent.update_critic(batch, draws)
        if agent.actor_is_due():
            agent.update_actor(batch)

    (draws,) = agent.draw(1, trainer.buffer.size)
    batch = trainer.buffer.gather(draws.index)
    state, action = batch.state.flatten(0, 1), batch.action.flatten(0, 1).requires_grad_()

    def forward() -> None:
        with torch.no_grad():
            dynamics.physics.step(state, action)

    def differentiate() -> None:
        torch.autograd.grad(dynamics.physics.step(state, action).sum(), action)

    def times(function: Callable[[], None]) -> list[float]:
        spent = []
        for _ in range(2 * options.repeats + 2):
            began = time.perf_counter()
            function()
            spent.append((time.perf_counter() - began) * 1e3)
        # An update with the actor and one without make a pair.
        return [statistics.mean(pair) for pair in zip(spent[2::2], spent[3::2], strict=True)]

    update_ms = times(update)
    median = statistics.median(update_ms)
    return OracleRow(
        backend,
        derivative,
        median,
        _p95(update_ms),
        1e3 / median,
        statistics.median(times(forward)),
        statistics.median(times(differentiate)),
        first,
    )


def _p95(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]


def main(options: Options) -> None:
    """Measure, print, and write if asked."""
    for name in ("repeats", "updates", "threads"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} is {getattr(options, name)}; accepted is 1 or more")
    if options.csv is not None:
        try:
            options.csv.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write {options.csv}: {error.strerror}") from error
    torch.set_num_threads(options.threads)
    console = Console()
    found = versions()
    console.print(f"{found['cpu']}, {options.threads} torch threads, torch {found['torch']}, preset {options.preset}")
    if options.oracles:
        rows: list[Any] = []
        task = make_task(options.task)
        for backend in backends_of(task):
            try:
                sources = load(BACKENDS[backend]).derivatives
                rows += [measure_oracle(backend, derivative, options) for derivative in sources]
            except (InputError, MissingExtra) as error:
                console.print(f"{backend} is left out: {error}", highlight=False, markup=False)
    else:
        rows = [measure(method, options) for method in options.methods]
    table = Table(*(name.replace("_", " ") for name in vars(rows[0])), title=options.task, title_justify="left")
    for row in rows:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else v for v in vars(row).values()))
    console.print(table)
    if options.csv is not None:
        facts = {"task": options.task, "threads": options.threads, "preset": options.preset}
        facts |= {name: found[name] for name in ("cpu", "torch")}
        lines = [",".join([*vars(rows[0]), *facts])]
        for row in rows:
            values = [f"{v:.4g}" if isinstance(v, float) else v for v in vars(row).values()]
            lines.append(",".join(map(str, [*values, *facts.values()])))
        write_atomically(options.csv, "\n".join(lines) + "\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except (InputError, MissingExtra) as error:
        print(f"throughput.py: {error}", file=sys.stderr)
        sys.exit(2)
