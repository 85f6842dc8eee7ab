"""States that a task reaches: several ways of acting, and rollouts that act so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from mage_diffsim.envs.batched import BatchedEnv
from mage_diffsim.envs.physics import Physics
from mage_diffsim.shapes import Float, Tensor

WAYS = ("uniform", "bang-bang", "constant", "sinusoidal", "small")
"""Ways of acting, see :func:`action_sequences`."""
INSIDE = 0.99
"""Largest absolute action where derivatives are taken: a finite-difference step stays within the bounds."""
ROLLOUT_STEPS = 200
"""Most steps of a rollout from which one state is taken."""

Policy = Callable[[Tensor], Tensor]
"""Observations [N, O] to actions [N, A]."""


class Visited(NamedTuple):
    """What whole rollouts came across."""

    states: Float[Tensor, "M S"]
    """Every state, those at the start of an episode included."""
    steps: int
    """Steps of each environment."""
    ended: int
    """Steps at which an episode terminated."""
    diverged: int
    """Steps at which something was not finite."""


class Sample(NamedTuple):
    """One state of each of N rollouts."""

    state: Float[Tensor, "N S"]
    action: Float[Tensor, "N A"]
    """The action that the rollout takes there, within ``INSIDE`` of 0."""
    ways: tuple[str, ...]
    """How each rollout acts."""


def explore(physics: Physics, environments: int, steps: int, seed: int) -> Visited:
    """Steps environments from reset to reset, each in one of the ``WAYS`` in turn, and keeps every state.

    Args:
        physics: the physics; its task resets and ends episodes.
        environments: their number.
        steps: steps of each.
        seed: seed of resets and actions.
    """
    generator = torch.Generator().manual_seed(seed)
    env = BatchedEnv(physics.task, physics, environments, [generator])
    env.reset()
    actions = action_sequences(_in_turn(WAYS, environments), steps, physics.task.action_dim, generator)
    states, ended, diverged = [env.state], 0, 0
    for action in actions.to(physics.device, physics.dtype):
        moved = env.step(action)
        states.append(moved.next_state)
        ended += int(moved.terminated.sum())
        diverged += int(moved.diverged.sum())
    return Visited(torch.cat(states), steps, ended, diverged)


@torch.no_grad()
def sample_states(
    physics: Physics,
    n: int,
    *,
    seed: int = 0,
    ways: Sequence[str] = WAYS,
    steps: int = ROLLOUT_STEPS,
    policy: Policy | None = None,
) -> Sample:
    """Rolls out ``n`` environments and takes the state and action of each at a random time.

    Args:
        physics: the physics; its task resets and ends episodes. States have its dtype and device.
        n: number of states.
        seed: seed of resets, actions and times.
        ways: of ``WAYS``, in turn.
        steps: latest time.
        policy: acts in a further way, called ``policy``.
    """
    task, generator = physics.task, torch.Generator().manual_seed(seed)
    names = _in_turn((*ways, *(["policy"] if policy else [])), n)
    env = BatchedEnv(task, physics, n, [generator])
    env.reset()
    when = torch.randint(1, max(min(steps, task.horizon), 2), (n,), generator=generator).to(physics.device)
    length = int(when.max()) + 1
    acting = [ways[0] if name == "policy" else name for name in names]
    planned = action_sequences(acting, length, task.action_dim, generator).to(physics.device, physics.dtype)
    by_policy = torch.tensor([name == "policy" for name in names], device=physics.device)[:, None]
    state, action = env.state, planned[0]
    for t, taken in enumerate(planned):
        if policy is not None:
            taken = torch.where(by_policy, policy(env.obs).to(taken), taken)
        taken = taken.clamp(-INSIDE, INSIDE)
        now = (when == t)[:, None]
        state, action = torch.where(now, env.state, state), torch.where(now, taken, action)
        env.step(taken)
    return Sample(state, action, names)


def action_sequences(ways: Sequence[str], steps: int, width: int, generator: torch.Generator) -> Float[Tensor, "T N A"]:
    """Actions in [-1, 1], float64, one environment per entry of ``ways``.

    ``uniform`` draws every action anew; ``bang-bang`` is at the bounds and switches every ten steps on average;
    ``constant`` keeps one action, of every other environment at the bounds; ``sinusoidal`` has a random period of four
    steps to all of them; ``small`` is a tenth of ``uniform``.

    Args:
        ways: of ``WAYS``.
        steps: T.
        width: number of actions A.
        generator: random stream on the CPU.
    """
    actions = torch.empty(steps, len(ways), width, dtype=torch.float64)
    for way in dict.fromkeys(ways):
        rows = torch.tensor([other == way for other in ways])
        actions[:, rows] = _KINDS[way](steps, int(rows.sum()), width, generator)
    return actions


def actions_inside(n: int, width: int, generator: torch.Generator) -> Float[Tensor, "N A"]:
    """Uniform actions within ``INSIDE`` of 0, float64."""
    return INSIDE * _uniform(1, n, width, generator)[0]


def _in_turn(names: Sequence[str], n: int) -> tuple[str, ...]:
    return tuple(names[i % len(names)] for i in range(n))


def _draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=generator)


def _uniform(steps: int, n: int, width: int, generator: torch.Generator) -> Tensor:
    return 2.0 * _draw(generator, steps, n, width) - 1.0


def _bang_bang(steps: int, n: int, width: int, generator: torch.Generator) -> Tensor:
    return (1.0 - 2.0 * (_draw(generator, steps, n, width) < 0.1).double()).cumprod(0)


def _constant(steps: int, n: int, width: int, generator: torch.Generator) -> Tensor:
    level = 2.0 * _draw(generator, n, width) - 1.0
    return torch.where(torch.arange(n)[:, None] % 2 == 0, level.sign(), level).expand(steps, n, width)


def _sinusoidal(steps: int, n: int, width: int, generator: torch.Generator) -> Tensor:
    period = 4.0 * (max(steps, 8) / 4.0) ** _draw(generator, n, width)  # log-uniform
    time = torch.arange(steps, dtype=torch.float64)[:, None, None]
    return (2.0 * torch.pi * (time / period + _draw(generator, n, width))).sin()


def _small(steps: int, n: int, width: int, generator: torch.Generator) -> Tensor:
    return 0.1 * _uniform(steps, n, width, generator)


_KINDS: dict[str, Callable[[int, int, int, torch.Generator], Tensor]] = {
    "uniform": _uniform,
    "bang-bang": _bang_bang,
    "constant": _constant,
    "sinusoidal": _sinusoidal,
    "small": _small,
}
