"""The random numbers of critic updates, drawn before them so that an update is a function of its inputs."""

from __future__ import annotations

from typing import NamedTuple

from mage_diffsim.config import TrainConfig
from mage_diffsim.envs.task import Task
from mage_diffsim.methods import METHODS
from mage_diffsim.randomness import Step, Streams, integers, normal, normal_words, permutations
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


def draw(
    streams: Streams, config: TrainConfig, task: Task, step: Step, size: Int[Tensor, ""], updates: int
) -> list[Draws]:
    """The random numbers of the critic updates of an environment step.

    Args:
        streams: where they come from.
        config: of the training.
        task: the task.
        step: the environment step (see :meth:`.Streams.words`).
        size: number of transitions in the buffer, on the device.
        updates: number of critic updates.
    """
    rows, loss = config.hyper.batch_size, config.critic_loss
    actions, observations = (updates, rows, task.action_dim), (updates, rows, task.obs_dim)
    counts = {"batch": updates * rows, "target": normal_words(*actions)}
    if METHODS[config.method].imagines:
        counts["imagine"] = normal_words(*observations)
    if loss == "shuffled":
        counts["control"] = updates * rows
    elif loss == "random":
        counts["control"] = normal_words(*actions)
    words = streams.words(step, counts)
    index = integers(words["batch"], size, updates, rows).unbind(1)
    target = normal(words["target"], streams.dtype, *actions).unbind(1)
    nothing = (None,) * updates
    imagine = control = nothing
    if "imagine" in words:
        imagine = normal(words["imagine"], streams.dtype, *observations).unbind(1)
    if loss == "shuffled":
        control = permutations(words["control"], updates, rows).unbind(1)
    elif loss == "random":
        control = normal(words["control"], streams.dtype, *actions).unbind(1)
    return [Draws(*drawn) for drawn in zip(index, target, imagine, control, strict=True)]
