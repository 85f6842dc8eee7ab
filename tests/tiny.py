"""The one small configuration of the tests: it trains in about a second.

A test that needs another value writes ``HYPER | {"warmup_steps": 30}``, so that what matters to it is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HYPER: dict[str, Any] = {
    "warmup_steps": 20,
    "batch_size": 8,
    "updates_per_step": 1,
    "actor_hidden": (8,),
    "critic_hidden": (8,),
    "ensemble_members": 2,
    "ensemble_hidden": (8,),
    "reward_hidden": (8,),
    "model_batches": 2,
    "model_batch_size": 8,
}
"""Hyper-parameters."""

RUN: dict[str, Any] = {
    "preset": "cpu",
    "steps": 60,
    "eval_every": 20,
    "checkpoint_every": 20,
    "eval_episodes": 1,
    "gradient_episodes": 1,
    "hyper": HYPER,
}
"""A training of three evaluations and three checkpoints."""

SWEPT: dict[str, Any] = RUN | {"seeds": (0, 1)}
"""A cell of a sweep: two seeds."""

MOMENT: dict[str, Any] = RUN | {
    "steps": 2,
    "eval_every": 2,
    "checkpoint_every": 1,
    "gradient_episodes": 0,
    "dynamics": "oracle",
}
"""A training of two steps, which updates nothing."""


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings and their hyper-parameters as words of ``mage-diffsim train``."""
    flat = {**settings, **settings.get("hyper", {})}
    flat.pop("hyper", None)
    words = []
    for name, value in flat.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words
