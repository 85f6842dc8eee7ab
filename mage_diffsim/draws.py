"""The random numbers of critic updates, drawn before them so that an update is a function of its inputs."""

from __future__ import annotations

from typing import NamedTuple

from mage_diffsim.config import TrainConfig
from mage_diffsim.envs.task import Task
from mage_diffsim.methods import METHODS
from mage_diffsim.randomness import Streams
from mage_diffsim.shapes import Float, Int, Tensor


class Draws(NamedTuple):
    """All random numbers of one critic update, leading axes [R, B]."""

    index: Int[Tensor, "R B"]
    """Which transitions of the buffer."""
    target: Float[Tensor, "R B A"]
    """Standard normal numbers for the target policy's noise."""
    imagine: Float[Tensor, "R B O"] | None
    """Standard normal numbers for the ensemble's Gaussian."""
    control: Tensor | None
    """Permutations [R, B] (``shuffled``) or standard normal directions [R, B, A] (``random``)."""


def draw(streams: Streams, config: TrainConfig, task: Task, buffer_size: int, updates: int) -> list[Draws]:
    """The random numbers of the next ``updates`` critic updates."""
    batch, loss = config.hyper.batch_size, config.critic_loss
    index = streams.integers("batch", buffer_size, updates, batch)
    target = streams.normal("target", updates, batch, task.action_dim)
    imagine = control = None
    if METHODS[config.method].imagines:
        imagine = streams.normal("imagine", updates, batch, task.obs_dim)
    if loss == "shuffled":
        control = streams.permutations("control", batch, updates)
    elif loss == "random":
        control = streams.normal("control", updates, batch, task.action_dim)
    return [
        Draws(
            index[:, u],
            target[:, u],
            None if imagine is None else imagine[:, u],
            None if control is None else control[:, u],
        )
        for u in range(updates)
    ]
