"""The published formulation, and the variants of the learner that are timed against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from published import PublishedDraws, PublishedModelTraining, PublishedUpdate

from mage_diffsim.draws import Draws
from mage_diffsim.training import Trainer
from throughput_sections.options import Options, Section
from throughput_sections.rows import Failed


def variants_of(options: Options, section: Section) -> dict[str, dict[str, Any]]:
    """Returns the variants of the learner that a section measures: name to fields of TrainConfig."""
    found = {"eager": {"graphs": "off"}}
    compiles = options.compile and (section == "model" or not options.quick)
    if compiles:
        found["compiled"] = {"compile": "on", "graphs": "off"}
    if options.on_a_gpu and section != "model":  # whose graphs hold whole rounds: section steps has them
        found["captured"] = {"graphs": "on"}
        if compiles:
            found["compiled + captured"] = {"compile": "on", "graphs": "on"}
    return found


def updates_per_call(options: Options, task: str) -> int:
    """Returns how many updates one measured call does. It is even, because every second update includes the actor."""
    return 2 if options.quick or options.heavy(task) else 10


def published_updates(trainer: Trainer, drawn: Sequence[Draws]) -> tuple[Callable[[], None], float]:
    """Returns the published updates on these draws, and how far the first critic gradient is from ours (relative).

    Raises:
        Failed: the critic gradients differ.
    """
    size, members = trainer.hyper.batch_size, trainer.hyper.ensemble_members
    member = torch.arange(size, device=trainer.device) // (size // members)
    batches = [trainer.buffer.gather(draws.index) for draws in drawn]
    theirs = [PublishedDraws(member, d.imagine[0], d.target[0]) for d in drawn if d.imagine is not None]
    published, batch = PublishedUpdate(trainer), batches[0]
    expected = published.critic_gradient(batch.obs[0], batch.state[0], theirs[0])
    _, gradient = trainer.agent.critic_gradient(batch, trainer.agent.target(batch, drawn[0]), drawn[0])
    error = float((gradient[0] - expected).norm() / expected.norm())
    if not error < 1e-3:
        raise Failed(f"the critic gradients differ by {error:.1e}; a timing would mean nothing")

    def run() -> None:
        for batch, draws in zip(batches, theirs, strict=True):
            published.update(batch.obs[0], batch.state[0], draws)

    return run, error


def published_batches(
    trainer: Trainer, losses: dict[str, float] | None = None, calls: int = 2
) -> tuple[Callable[[], None], torch.Tensor]:
    """Returns ``calls`` published steps of the model on one batch, and the indices of that batch [1, members * size].

    Args:
        trainer: gives parameters and the batch.
        losses: receives the loss under ``published``.
        calls: steps per call.
    """
    assert trainer.ensemble is not None
    members, size = trainer.hyper.ensemble_members, trainer.hyper.model_batch_size
    index = torch.randint(trainer.buffer.size, (1, members, size), device=trainer.device)
    batch = trainer.buffer.gather(index)
    rows = [x[0].view(members, size, -1) for x in (batch.obs, batch.action, batch.next_obs)]
    published, kept = PublishedModelTraining(trainer), {} if losses is None else losses

    def run() -> None:
        for _ in range(calls):
            kept["published"] = published.update(*rows)

    return run, index
