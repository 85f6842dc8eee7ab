"""How fast is one update? The learner against the published formulation, interleaved in one process.

    python benchmarks/throughput.py                      # pendulum sizes, MAGE and Dyna, learned ensemble
    python benchmarks/throughput.py --repeats 30 --csv benchmarks/results/throughput/cpu_2_threads.csv

One update is the critic step with its target networks, and every second time the actor's. Both formulations start from
the same trained parameters and use the same batches and random numbers; their critic gradients must agree before a
number is printed. Rounds alternate between the two, so drift of the machine hits both; the ratio is the median of the
per-round ratios.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from published import PublishedDraws, PublishedUpdate
from rich.console import Console
from rich.table import Table

from mage_diffsim.agent import Draws
from mage_diffsim.bridges.errors import InputError, unknown_name
from mage_diffsim.buffer import Batch
from mage_diffsim.config import METHODS, make_config
from mage_diffsim.doctor import versions
from mage_diffsim.runs import write_atomically
from mage_diffsim.training import Trainer


@dataclass(frozen=True)
class Options:
    """What to measure."""

    methods: tuple[str, ...] = ("mage-td3", "mage-ddpg", "dyna-td3")
    """Methods to time, each on the learned ensemble."""
    preset: str = "paper"
    """Sizes: the preset's for Pendulum (paper: 8x2x128 ensemble, 2x128 actor and critic, batch 512)."""
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
    config = make_config("Pendulum", method=method, dynamics="learned", preset=options.preset, steps=2000)
    trainer = Trainer(config)
    for _ in range(config.hyper.warmup_steps + 100):
        trainer.step()
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

    def p95(values: list[float]) -> float:
        return sorted(values)[min(len(values) - 1, int(0.95 * len(values)))]

    return Row(
        method,
        statistics.median(times["published"]),
        p95(times["published"]),
        statistics.median(times["ours"]),
        p95(times["ours"]),
        statistics.median(ratios),
        error,
    )


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
    rows = [measure(method, options) for method in options.methods]
    table = Table("method", "published ms (p95)", "this package ms (p95)", "ratio", "gradient difference")
    for row in rows:
        table.add_row(
            row.method,
            f"{row.published_ms:.1f} ({row.published_p95_ms:.1f})",
            f"{row.ours_ms:.1f} ({row.ours_p95_ms:.1f})",
            f"{row.ratio:.1f}x",
            f"{row.gradient_error:.0e}",
        )
    console.print(table)
    if options.csv is not None:
        lines = [",".join([*Row.__dataclass_fields__, "threads", "preset", "cpu", "torch"])]
        for row in rows:
            values = [f"{v:.4g}" if isinstance(v, float) else v for v in vars(row).values()]
            lines.append(",".join(map(str, [*values, options.threads, options.preset, found["cpu"], found["torch"]])))
        write_atomically(options.csv, "\n".join(lines) + "\n")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except InputError as error:
        print(f"throughput.py: {error}", file=sys.stderr)
        sys.exit(2)
