"""Measures how far critic gradients in float32 are from those in float64, with exact and with TF32 matrix products.

    python benchmarks/gradient_precision.py                     # Pendulum and HalfCheetah, learned dynamics
    python benchmarks/gradient_precision.py --device cuda       # with the card's own TF32 products

One run is trained in float32 by a few updates. Its critic gradient on one batch is computed in float64, in float32, and
in float32 with TF32 products, from the same parameters and draws. A row has the relative error ||g - g64|| / ||g64|| of
each critic. On a CPU, TF32 is emulated: the operands of every matrix product are rounded to 10 bits of mantissa.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import tyro
from rich.console import Console
from throughput_sections.options import Options
from throughput_sections.products import PRODUCTS
from torch.utils._python_dispatch import TorchDispatchMode

from mage_diffsim.agent import Agent
from mage_diffsim.buffer import Batch
from mage_diffsim.devices import matmul_precision
from mage_diffsim.draws import Draws
from mage_diffsim.experiments.command import script_exit_code
from mage_diffsim.experiments.tables import Table, rich_table
from mage_diffsim.training import Trainer


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    tasks: tuple[str, ...] = ("Pendulum", "HalfCheetah")
    """Tasks, on the learned ensemble."""
    updates: int = 20
    """Updates before the gradient is measured."""
    device: str = "cpu"
    """Torch device: cpu, cuda, cuda:1, ..."""
    threads: int | None = None
    """Torch threads on the CPU; by default torch's own choice."""


class RoundedOperands(TorchDispatchMode):
    """Rounds both operands of every float32 matrix product to 10 bits of mantissa, as TF32 products do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> object:
        if func.overloadpacket in PRODUCTS:
            *others, a, b = args
            args = (*others, rounded_to_tf32(a), rounded_to_tf32(b))
        return func(*args, **(kwargs or {}))


def rounded_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """Returns float32 numbers rounded to the nearest of 10 bits of mantissa, halves away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


Tensors = TypeVar("Tensors", Batch, Draws)


def in_dtype(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Returns the same with floats of another precision."""
    floats = {k: v for k, v in tensors._asdict().items() if v is not None and v.is_floating_point()}
    return tensors._replace(**{k: v.to(dtype) for k, v in floats.items()})


def relative_errors(task: str, settings: Settings) -> dict[str, list[float]]:
    """Returns the relative error of each critic's gradient in float32, with exact and with TF32 products.

    Args:
        task: whose networks and transitions are taken.
        settings: how many updates go before, and where they run.
    """
    trainer = Options(tasks=(task,), device=settings.device).trainer(task)
    for draws in trainer.draw(settings.updates):
        trainer.agent.improve(trainer.buffer, [draws])
    exact = Trainer(replace(trainer.config, float64=True))
    assert trainer.ensemble is not None and exact.ensemble is not None
    exact.agent.load_state_dict(trainer.agent.state_dict())
    exact.ensemble.load_state_dict(trainer.ensemble.state_dict())
    (draws,) = trainer.draw(1)
    batch = trainer.buffer.gather(draws.index)

    def gradient(agent: Agent) -> torch.Tensor:
        rows, drawn = in_dtype(batch, agent.critic.dtype), in_dtype(draws, agent.critic.dtype)
        return agent.critic_gradient(rows, agent.target(rows, drawn), drawn)[1].double()

    right = gradient(exact.agent)
    found = {"float32": gradient(trainer.agent)}
    on_cpu = trainer.device.type == "cpu"
    with RoundedOperands() if on_cpu else matmul_precision("high"):
        found["TF32, emulated" if on_cpu else "TF32"] = gradient(trainer.agent)
    return {name: ((g - right).norm(dim=-1) / right.norm(dim=-1)).flatten().tolist() for name, g in found.items()}


def main(settings: Settings) -> int:
    """Prints the table; returns exit code 0."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    console = Console()
    rows = [
        [task, products, *(f"{error:.1e}" for error in errors)]
        for task in settings.tasks
        for products, errors in relative_errors(task, settings).items()
    ]
    title = f"Relative error of the critic gradient after {settings.updates} updates"
    console.print(rich_table(console, *Table(title, ("task", "products", "critic 1", "critic 2"), rows)))
    return 0


if __name__ == "__main__":
    sys.exit(script_exit_code(lambda: main(tyro.cli(Settings, description=__doc__)), resumes=False))
