"""Settings of a training that takes about a second."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = dict(
    seeds=(0, 1),
    steps=60,
    eval_every=20,
    checkpoint_every=20,
    eval_episodes=1,
    gradient_episodes=1,
    preset="cpu",
    hyper=dict(
        warmup_steps=20,
        batch_size=8,
        updates_per_step=1,
        actor_hidden=(8,),
        critic_hidden=(8,),
        ensemble_members=2,
        ensemble_hidden=(8,),
        model_batches=2,
        model_batch_size=8,
    ),
)
"""A training of about a second."""
