"""What the published formulation takes of an update."""

from __future__ import annotations

import torch
from published import PublishedDraws, Stored

from mage_diffsim.draws import Draws
from mage_diffsim.training import Trainer


def published_rows(
    trainer: Trainer, draws: Draws, run: int = 0
) -> tuple[torch.Tensor, torch.Tensor, PublishedDraws, Stored | None]:
    """One run's rows and draws of an update, in the published form."""
    batch = trainer.buffer.gather(draws.index)
    size, members = trainer.hyper.batch_size, trainer.hyper.ensemble_members
    member = torch.arange(size) // (size // members)
    imagine = None if draws.imagine is None else draws.imagine[run]
    stored = None
    if not trainer.agent.method.imagines:
        stored = Stored(batch.action[run], batch.next_obs[run], batch.reward[run], batch.terminated[run])
    return batch.obs[run], batch.state[run], PublishedDraws(member, imagine, draws.target[run]), stored
