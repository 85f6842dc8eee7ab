"""Rolls out whole episodes of a policy, many side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from mage_diffsim.envs.batched import advance, require_physics
from mage_diffsim.envs.physics import Physics
from mage_diffsim.errors import InputError, require_kind
from mage_diffsim.shapes import Bool, Float, Int, Tensor


class Episodes(NamedTuple):
    """N episodes that run side by side without resets, and what they came to so far."""

    state: Float[Tensor, "N S"]
    obs: Float[Tensor, "N O"]
    returns: Float[Tensor, " N"]
    lengths: Int[Tensor, " N"]
    terminated: Bool[Tensor, " N"]
    diverged: Bool[Tensor, " N"]
    finite_actions: Bool[Tensor, ""]

    @property
    def running(self) -> Bool[Tensor, " N"]:
        """Which episodes have not ended."""
        return ~(self.terminated | self.diverged)

    def require_finite_actions(self, name: str) -> None:
        """Check the policy's actions; the host waits for the device.

        Raises:
            InputError: one of the actions of task ``name`` was not finite.
        """
        if not self.finite_actions:
            raise InputError(f"{name}: the policy gave an action that is not finite; give finite numbers")


def begin_episodes(physics: Physics, initial_state: Float[Tensor, "N S"]) -> Episodes:
    """Episodes in their initial states, which are converted to the physics' dtype and device."""
    state = initial_state.detach().to(physics.device, physics.dtype, copy=True)
    ended = torch.zeros(len(state), dtype=torch.bool, device=state.device)
    lengths = torch.zeros(len(state), dtype=torch.int64, device=state.device)
    finite = torch.ones((), dtype=torch.bool, device=state.device)
    obs = physics.task.observe(state).clone()
    return Episodes(state, obs, state.new_zeros(len(state)), lengths, ended, ended.clone(), finite)


def advance_episodes(
    physics: Physics, policy: Callable[[Tensor], Tensor], now: Episodes
) -> tuple[Episodes, Float[Tensor, "N A"], Float[Tensor, " N"]]:
    """One step of all episodes, in which those that have ended stay as they are; also the actions and rewards."""
    running = now.running
    action = policy(now.obs.clone()).clone()  # the policy may edit what it was given, and use again what it gave
    moved = advance(physics, now.state, now.obs, action)
    reward = torch.where(running, moved.reward, 0.0)
    then = Episodes(
        torch.where(running[:, None], moved.next_state, now.state),
        torch.where(running[:, None], moved.next_obs, now.obs),
        now.returns + reward,
        now.lengths + (running & ~moved.diverged),
        now.terminated | (running & moved.terminated),
        now.diverged | (running & moved.diverged),
        now.finite_actions & action.isfinite().all(),
    )
    return then, action, reward


class Rollout(NamedTuple):
    """N episodes run side by side for T steps; T stops early once every episode has ended."""

    returns: Float[Tensor, " N"]
    """Undiscounted sum of the rewards of each episode."""
    lengths: Tensor
    """Number of steps of each episode, int64 [N]."""
    terminated: Bool[Tensor, " N"]
    """The episode ended for good before or at the horizon."""
    diverged: Bool[Tensor, " N"]
    """The episode was cut because a state, an observation or a reward was not finite."""
    states: Float[Tensor, "T1 N S"] | None
    """T + 1 states, the initial one first; a finished episode repeats its last. None unless recorded."""
    obs: Float[Tensor, "T1 N O"] | None
    """T + 1 observations. None unless recorded."""
    actions: Float[Tensor, "T N A"] | None
    """Actions as the policy gave them. None unless recorded."""
    rewards: Float[Tensor, "T N"] | None
    """Rewards, 0 after the end of an episode. None unless recorded."""


@torch.no_grad()
def rollout(
    physics: Physics,
    policy: Callable[[Tensor], Tensor],
    initial_state: Float[Tensor, "N S"],
    horizon: int | None = None,
    *,
    record: bool = False,
) -> Rollout:
    """Run N episodes from given states, without gradients and without resets.

    Args:
        physics: the physics; its task gives observation, reward and termination.
        policy: function from observations [N, O], of which it gets a copy, to actions [N, A] in [-1, 1].
        initial_state: initial states, [N, S]; converted to the physics' dtype and device.
        horizon: number of steps at most; the task's own by default.
        record: also return the states, observations, actions and rewards of every step.

    Raises:
        InputError: ``physics`` is not a physics, ``initial_state`` not a tensor, or the policy's actions have a wrong
            shape, dtype or device, or are not finite.
    """
    require_physics(physics)
    require_kind("initial_state", initial_state, Tensor, "a torch tensor of shape (N, S)")
    task = physics.task
    horizon = task.horizon if horizon is None else horizon
    if horizon < 1:
        raise InputError(f"{task.name}: a rollout of horizon {horizon} was asked for; give 1 or more steps")
    now = begin_episodes(physics, initial_state)
    states, observations, actions, rewards = [now.state], [now.obs], [], []
    for t in range(horizon):
        # The host waits for this answer, so it asks only every 32 steps.
        if t % 32 == 0 and t and not now.running.any():
            break
        now, action, reward = advance_episodes(physics, policy, now)
        if record:
            states.append(now.state)
            observations.append(now.obs)
            actions.append(action)
            rewards.append(reward)
    now.require_finite_actions(task.name)
    return Rollout(
        now.returns,
        now.lengths,
        now.terminated,
        now.diverged,
        torch.stack(states) if record else None,
        torch.stack(observations) if record else None,
        torch.stack(actions) if record else None,
        torch.stack(rewards) if record else None,
    )
