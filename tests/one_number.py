"""A task whose state is one number."""

from __future__ import annotations

import torch

from mage_diffsim.envs.task import Task, uniform


class OneNumber(Task):
    """A subclass gives the step."""

    name = "OneNumber"
    state_names = obs_names = ("x",)
    action_names = ("push",)
    action_low, action_high = (-1.0,), (1.0,)
    dt, horizon, source, network_size = 0.1, 200, "test", "small"

    def observe(self, state):
        return state.clone()

    def reward(self, obs, action, next_obs):
        return -next_obs[..., 0].square()

    def terminated(self, next_obs):
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)

    def reset(self, n, generator):
        return uniform(n, (-0.5,), (0.5,), generator)
