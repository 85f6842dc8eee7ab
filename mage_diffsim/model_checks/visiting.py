"""Visits very many states with a physics and counts what is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from mage_diffsim.envs.batched import BatchedEnv
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import Physics
from mage_diffsim.envs.sampling import action_sequences
from mage_diffsim.envs.task import Task
from mage_diffsim.shapes import Bool, Float, Tensor

CHUNK = 1000
"""Most steps whose actions are drawn at once."""


class Visits(NamedTuple):
    """What a source gave at the states of its own rollouts."""

    states: int
    episodes: int
    """Episodes that ended."""
    nonfinite_values: int
    """States whose successor, observation or reward is not finite."""
    nonfinite_gradients: int
    """States at which the pull-back to state and action has an entry that is not finite."""
    largest_gradient: float
    """Largest finite entry of a pull-back."""


def visit(
    physics: Physics,
    states: int,
    *,
    rows: int,
    seed: int,
    start: Float[Tensor, "M S"] | None = None,
    diverges: Callable[[Tensor, Tensor], Bool[Tensor, " K"]] | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> Visits:
    """Steps environments and pulls a random vector back at every state on the way.

    Half of the environments take uniform actions, half sinusoidal ones. In the first step a quarter of them rest in the
    model's initial configuration with action 0: symmetric, degenerate states.

    Args:
        physics: the physics.
        states: number of states, rounded up to whole steps of all environments.
        rows: number of environments.
        seed: seed of resets, actions and vectors.
        start: states from which the environments start, in turn; by default they are reset.
        diverges: whether a reference diverges from states and actions. It is asked where something is not finite, and
            what it diverges from does not count.
        progress: called with the number of states after every step.
    """
    task, generator = physics.task, torch.Generator().manual_seed(seed)
    like: dict[str, Any] = {"dtype": physics.dtype, "device": physics.device}
    env = BatchedEnv(task, physics, rows, [generator])
    ways = ("sinusoidal", "uniform") * rows
    env.reset()
    quarter = rows // 4
    first = env.state if start is None else start.to(**like)[torch.arange(rows) % len(start)]
    env.reset(state=torch.cat([resting_states(task, quarter).to(**like), first[quarter:]]))
    seen = episodes = bad_values = bad_gradients = 0
    largest = 0.0
    chunk = min(CHUNK, -(-states // rows))
    while seen < states:
        if seen // rows % chunk == 0:
            planned = action_sequences(ways[:rows], chunk, task.action_dim, generator).to(**like)
        action = planned[seen // rows % chunk]
        if seen == 0:
            action[:quarter] = 0.0
        inputs = env.state.detach().clone().requires_grad_(), action.clone().requires_grad_()
        vector = torch.randn(rows, task.state_dim, generator=generator).to(**like)
        gradient = torch.cat(torch.autograd.grad(physics.step(*inputs), inputs, vector), dim=1)
        finite = gradient.isfinite()
        largest = max(largest, float(torch.where(finite, gradient, 0.0).abs().max()))
        transition = env.step(action)
        broken, smooth = transition.diverged, finite.all(1)
        if diverges is not None and (odd := (broken | ~smooth).nonzero()[:, 0]).numel():
            lost = odd[diverges(inputs[0][odd].detach(), inputs[1][odd].detach())]
            broken, smooth = broken.index_fill(0, lost, False), smooth.index_fill(0, lost, True)
        bad_values += int(broken.sum())
        bad_gradients += int((~smooth).sum())
        episodes += int((transition.terminated | transition.truncated).sum())
        seen += rows
        progress(seen)
    return Visits(seen, episodes, bad_values, bad_gradients, largest)


def resting_states(task: Task, n: int) -> Float[Tensor, "N S"]:
    """The model's initial configuration at rest; zeros for a task without a model."""
    if not isinstance(task, MujocoTask):
        return torch.zeros(n, task.state_dim, dtype=torch.float64)
    qpos = torch.as_tensor(task.simulation.qpos0, dtype=torch.float64).expand(n, -1)
    return task.state_at(qpos, qpos.new_zeros(n, task.simulation.nv))
