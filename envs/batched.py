"""Steps many environments of one task as one tensor on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from mage_diffsim.envs.definition import require_task
from mage_diffsim.envs.physics import Physics
from mage_diffsim.envs.task import Task, require_generator
from mage_diffsim.errors import InputError, require_kind
from mage_diffsim.shapes import Bool, Float, Int, Tensor


class Transition(NamedTuple):
    """One step of N environments, on the physics' device. Each tensor has memory of its own."""

    obs: Float[Tensor, "N O"]
    """Observation the action was chosen in."""
    next_obs: Float[Tensor, "N O"]
    """Observation after the step and *before* any reset; the environment goes on from :attr:`BatchedEnv.obs`."""
    reward: Float[Tensor, " N"]
    """r(s, a, s')."""
    terminated: Bool[Tensor, " N"]
    """The episode ended for good in s'."""
    truncated: Bool[Tensor, " N"]
    """The episode reached the horizon (or diverged); never a reason to mask a bootstrap."""
    state: Float[Tensor, "N S"]
    """Simulator state before the step."""
    next_state: Float[Tensor, "N S"]
    """Simulator state after the step and before any reset."""
    diverged: Bool[Tensor, " N"]
    """State, observation or reward were not finite: leave the row out of training (s' repeats s, the reward is 0)."""


class Moved(NamedTuple):
    """One step without a reset. No tensor shares memory with the step's arguments or with another."""

    next_state: Float[Tensor, "N S"]
    """Simulator state after the step; the old one where the step diverged."""
    next_obs: Float[Tensor, "N O"]
    """Observation after the step; the old one where the step diverged."""
    reward: Float[Tensor, " N"]
    """r(s, a, s'); 0 where the step diverged."""
    terminated: Bool[Tensor, " N"]
    """The episode ended for good in s'."""
    diverged: Bool[Tensor, " N"]
    """State, observation or reward were not finite."""


def advance(
    physics: Physics, state: Float[Tensor, "N S"], obs: Float[Tensor, "N O"], action: Float[Tensor, "N A"]
) -> Moved:
    """Step physics, observation, reward and termination once; every environment and rollout does it by this function.

    Args:
        physics: the physics; its task gives observation, reward and termination.
        state: simulator states, [N, S].
        obs: their observations, [N, O].
        action: actions, [N, A], clipped to [-1, 1].

    Raises:
        InputError: a shape, dtype or device is not that of ``physics``.
    """
    task = physics.task
    next_state = physics.step(state, action)
    next_obs = task.observe(next_state)
    reward = task.reward(obs, action, next_obs)
    diverged = ~(next_state.isfinite().all(-1) & next_obs.isfinite().all(-1) & reward.isfinite())
    # A task may return a view of its argument, or a tensor that it keeps: each line below copies.
    next_state = torch.where(diverged[:, None], state, next_state)
    next_obs = torch.where(diverged[:, None], obs, next_obs)
    terminated = task.terminated(next_obs) & ~diverged
    return Moved(next_state, next_obs, reward.masked_fill(diverged, 0.0), terminated, diverged)


def require_physics(physics: object) -> None:
    """Check that this is a physics.

    Raises:
        InputError: it is something else.
    """
    require_kind("physics", physics, Physics, "a physics, as make_physics gives it")


class BatchedEnv:
    """``n`` environments of one task in one [n, S] state tensor, with same-step automatic reset.

    The environments form R = ``len(generators)`` equal groups, the run axis: environments ``r * n / R`` to
    ``(r + 1) * n / R - 1`` draw their resets from ``generators[r]`` alone, so R groups behave exactly as R separate
    BatchedEnvs would. The physics runs without gradients; observation, reward and termination come from the task.
    All tensors that it gives out are copies: editing one in place changes nothing here.

    Args:
        task: the task; the one ``physics`` was made for.
        physics: its physics, which fixes dtype and device.
        n: number of environments, a multiple of the number of generators.
        generators: one random stream per group, on any device.
        horizon: steps after which an episode is truncated; the task's own by default.

    Raises:
        InputError: an argument is of another type, the sizes do not divide, a generator is shared, the horizon is below
            1, or ``physics`` belongs to another task.
    """

    def __init__(
        self,
        task: Task,
        physics: Physics,
        n: int,
        generators: Sequence[torch.Generator],
        *,
        horizon: int | None = None,
    ) -> None:
        require_task(task)
        require_physics(physics)
        require_kind("generators", generators, Sequence, "a list of one torch.Generator per group of environments")
        for generator in generators:
            require_generator(generator)
        if physics.task.name != task.name:
            raise InputError(
                f"task {task.name} was given the physics of task {physics.task.name}: make them of one task"
            )
        if len(generators) < 1 or n < 1 or n % len(generators):
            raise InputError(
                f"{n} environments do not form {len(generators)} equal groups: give n a positive multiple of the "
                "number of generators"
            )
        if len({id(g) for g in generators}) < len(generators):
            raise InputError("the same generator was given to two groups: give each group its own")
        self.horizon = task.horizon if horizon is None else horizon
        """Steps after which an episode is truncated."""
        if self.horizon < 1:
            raise InputError(f"{task.name}: a horizon of {horizon} was asked for; give 1 or more steps")
        self.task = task
        self.physics = physics
        self.n = n
        self.generators = tuple(generators)
        self.group_size = n // len(generators)
        # NaN before the first reset
        self._state = torch.full((n, task.state_dim), torch.nan, dtype=physics.dtype, device=physics.device)
        self._obs = self._state.new_full((n, task.obs_dim), torch.nan)
        self._elapsed = torch.zeros(n, dtype=torch.int64, device=physics.device)
        self._started = False

    @property
    def state(self) -> Float[Tensor, "N S"]:
        """A copy of the current simulator states, [n, S]; NaN before the first reset."""
        return self._state.clone()

    @property
    def obs(self) -> Float[Tensor, "N O"]:
        """A copy of the current observations, [n, O]; NaN before the first reset."""
        return self._obs.clone()

    @property
    def elapsed(self) -> Int[Tensor, " N"]:
        """A copy of the numbers of steps since each environment's last reset, int64 [n]."""
        return self._elapsed.clone()

    def reset(
        self, *, state: Float[Tensor, "N S"] | None = None, mask: Bool[Tensor, " N"] | None = None
    ) -> Float[Tensor, "N O"]:
        """Start environments afresh.

        Args:
            state: where to start, finite, [n, S], converted to the physics' dtype and device; drawn by the task if
                None. Given states leave the random streams as they are.
            mask: which environments to start, [n]; the others go on as they were. None is all of them.

        Returns:
            the observations of all environments, [n, O].

        Raises:
            InputError: a wrong shape, states that are not finite, a mask of another dtype or that holds no True; or a
                mask before all environments were started once. The environments are then as they were.
        """
        name, device = self.task.name, self.physics.device
        if mask is not None:
            if tuple(mask.shape) != (self.n,) or mask.dtype != torch.bool or not mask.any():
                raise InputError(
                    f"{name}: the mask of a reset has shape {tuple(mask.shape)}, dtype {mask.dtype} and "
                    f"{int(mask.sum())} true entries; accepted is a mask of shape ({self.n},), dtype bool, at least "
                    "one of them true"
                )
            if not self._started and not mask.all():
                raise InputError(f"{name}: a part was to be reset before a reset of all: call reset() without a mask")
            mask = mask.to(device)
        if state is not None:
            if tuple(state.shape) != (self.n, self.task.state_dim):
                raise InputError(
                    f"{name}: the states to start from have shape {tuple(state.shape)}; accepted is ({self.n}, "
                    f"{self.task.state_dim})"
                )
            state = state.detach().to(device, self.physics.dtype)
            bad = ~state.isfinite().all(-1)
            bad = bad if mask is None else bad & mask
            if bad.any():
                row = int(bad.nonzero()[0])
                raise InputError(
                    f"{name}: the state to start environment {row} from is {state[row].tolist()}, which is not finite "
                    f"as {self.physics.dtype}; give finite numbers"
                )
        with torch.no_grad():
            if mask is None:
                mask = torch.ones(self.n, dtype=torch.bool, device=device)
            chosen = self._draw(mask.view(-1, self.group_size).sum(1).tolist()) if state is None else state[mask]
            self._begin(mask, self._state, chosen, self._elapsed)
        self._started = True
        return self.obs

    def _begin(
        self,
        which: Bool[Tensor, " N"],
        state: Float[Tensor, "N S"],
        chosen: Float[Tensor, "K S"],
        elapsed: Int[Tensor, " N"],
    ) -> None:
        """Go on from ``state`` and ``elapsed``; the environments of the mask start in the ``chosen`` states, at 0."""
        state = state.clone()
        state[which] = chosen
        obs = self.task.observe(state).clone()
        self._state, self._obs, self._elapsed = state, obs, elapsed.masked_fill(which, 0)

    def step(self, action: Float[Tensor, "N A"]) -> Transition:
        """Advance every environment by one step, then reset those that ended.

        Args:
            action: one action in [-1, 1] per environment, [n, A], the physics' dtype and device; clipped to the bounds.

        Returns:
            the transition; ``self.obs`` and ``self.state`` are those after any reset.

        Raises:
            InputError: wrong shape, dtype or device, an action that is not finite, or no ``reset`` yet. The
                environments are then as they were.
        """
        if not self._started:
            raise InputError(f"{self.task.name}: step() before reset(); call reset() first")
        require_kind(f"{self.task.name}: action", action, Tensor, "a torch tensor")
        if tuple(action.shape) != (self.n, self.task.action_dim):
            raise InputError(
                f"{self.task.name}: action has shape {tuple(action.shape)}; accepted is ({self.n}, "
                f"{self.task.action_dim})"
            )
        with torch.no_grad():
            action = action.detach()
            state, obs = self._state, self._obs
            moved = advance(self.physics, state, obs, action)
            elapsed = self._elapsed + 1
            truncated = (elapsed >= self.horizon) | moved.diverged
            done = moved.terminated | truncated

            # The host waits for the device here only: how many resets each group needs, and whether actions are finite.
            per_group = done.view(len(self.generators), self.group_size).sum(1)
            *counts, bad_actions = torch.cat((per_group, (~action.isfinite()).sum()[None])).tolist()
            if bad_actions:
                row = int((~action.isfinite()).any(-1).nonzero()[0])
                raise InputError(
                    f"{self.task.name}: the action of environment {row} is {action[row].tolist()}; give finite numbers"
                )

            if any(counts):
                self._begin(done, moved.next_state, self._draw(counts), elapsed)
            else:
                self._state, self._obs, self._elapsed = moved.next_state.clone(), moved.next_obs.clone(), elapsed
        # The caller owns ``state`` and ``obs`` now: nothing in this object refers to them.
        return Transition(
            obs, moved.next_obs, moved.reward, moved.terminated, truncated, state, moved.next_state, moved.diverged
        )

    def _draw(self, counts: Sequence[int]) -> Float[Tensor, "K S"]:
        """``counts[r]`` initial states from generator r, in the order of the environments."""
        drawn = [self.task.reset(k, g) for k, g in zip(counts, self.generators, strict=True) if k]
        return torch.cat([x.to(self.physics.device, self.physics.dtype) for x in drawn])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit: states, step counters and the generators' states (CPU copies)."""
        return {
            "task": self.task.name,
            "state": self.state.cpu(),
            "elapsed": self.elapsed.cpu(),
            "generators": [g.get_state() for g in self.generators],
            "started": self._started,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            InputError: it was saved by another task, another n, another dtype or another number of groups.
        """
        mine = (self.task.name, tuple(self._state.shape), self._state.dtype, len(self.generators))
        given = (saved["task"], tuple(saved["state"].shape), saved["state"].dtype, len(saved["generators"]))
        if given != mine:
            raise InputError(
                f"the saved environments are (task, shape, dtype, groups) = {given}; these ones accept {mine}"
            )
        self._state = saved["state"].to(self.physics.device, copy=True)
        self._elapsed = saved["elapsed"].to(self.physics.device, copy=True)
        for generator, generator_state in zip(self.generators, saved["generators"], strict=True):
            generator.set_state(generator_state)
        self._started = saved["started"]
        with torch.no_grad():
            self._obs = self.task.observe(self._state).clone()

    def __repr__(self) -> str:
        return f"BatchedEnv({self.physics!r}, n={self.n}, groups={len(self.generators)})"
