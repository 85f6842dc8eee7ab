"""Which derivatives of a task's functions a training needs, and where its imagined gradients come from."""

from __future__ import annotations

from mage_diffsim.config import TrainConfig
from mage_diffsim.envs.physics import backends_of
from mage_diffsim.envs.task import Task
from mage_diffsim.methods import GRADIENT_FREE, METHODS


def gradient_backend(config: TrainConfig, task: Task) -> str | None:
    """The backend that imagined gradients come from; None if they come from the ensemble, or none are used."""
    gradients = METHODS[config.method].imagines and config.critic_loss not in GRADIENT_FREE
    if not gradients or config.dynamics not in ("oracle", "hybrid-oracle-gradients"):
        return None
    return config.backend or backends_of(task)[0]


def needed_derivatives(config: TrainConfig, task: Task) -> set[tuple[str, str]]:
    """(function, input) of the derivatives that the critic's loss is made of."""
    needed: set[tuple[str, str]] = set()
    if not METHODS[config.method].imagines or config.critic_loss in GRADIENT_FREE:
        return needed
    backend, start = gradient_backend(config, task), config.critic_loss == "sobolev"
    if config.reward == "task":
        needed |= {("reward", "action"), ("reward", "next_obs")} | ({("reward", "obs")} if start else set())
    if backend is not None:
        needed |= {("observe", "state"), ("step", "action")} | ({("step", "state")} if start else set())
    if backend != "torch":
        needed -= {("step", "action"), ("step", "state")}
    return needed
