"""The methods of the paper as settings of one agent, and the names of the critic's losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MethodName = Literal["mage-td3", "mage-ddpg", "dyna-td3", "dyna-ddpg", "td3", "ddpg", "data-efficient-td3"]
CriticLoss = Literal["mage", "td", "squared", "taylor", "sobolev", "shuffled", "random"]
LossWeights = Literal["paper", "authors"]

WITHOUT_LAMBDA: frozenset[CriticLoss] = frozenset({"td", "taylor"})
"""Critic losses whose terms lambda does not weigh."""

GRADIENT_FREE: frozenset[CriticLoss] = frozenset({"td"})
"""Critic losses that use no gradient of the target."""


@dataclass(frozen=True)
class Method:
    """One row of the method table: a setting of the one agent, not a class of its own."""

    loss: CriticLoss
    """Critic loss (see :mod:`.critic`)."""
    imagines: bool
    """Whether the critic's transitions come from the dynamics (else from the replay buffer)."""
    critics: int
    """1 for DDPG, 2 for TD3."""
    policy_delay: int
    """Critic updates per actor update, d; 1 for DDPG."""
    update_every_step_once: bool = False
    """Plain model-free methods do one update per environment step, whatever ``updates_per_step`` says."""


METHODS: dict[str, Method] = {
    "mage-td3": Method("mage", imagines=True, critics=2, policy_delay=2),
    "mage-ddpg": Method("mage", imagines=True, critics=1, policy_delay=1),
    "dyna-td3": Method("td", imagines=True, critics=2, policy_delay=2),
    "dyna-ddpg": Method("td", imagines=True, critics=1, policy_delay=1),
    "td3": Method("td", imagines=False, critics=2, policy_delay=2, update_every_step_once=True),
    "ddpg": Method("td", imagines=False, critics=1, policy_delay=1, update_every_step_once=True),
    "data-efficient-td3": Method("td", imagines=False, critics=2, policy_delay=2),
}
"""The methods of the paper by name."""
