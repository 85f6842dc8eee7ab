"""Tasks with options."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override

from mage_diffsim.envs.task import Task, uniform

SLIDE = '''
import torch

from mage_diffsim import Task
from mage_diffsim.envs import uniform
from rail import FRICTION


class Slide(Task):
    """A mass on a rail."""

    name = "Slide"
    state_names = obs_names = ("position", "velocity")
    action_names = ("force",)
    action_low, action_high = (-3.0,), (3.0,)
    dt = 0.05
    horizon = 5
    source = "Newton's second law"
    network_size = "small"

    def __init__(self, mass=1.0, *, rail=(1, [2.0, None]), label="a", **more):
        self.mass, self.rail, self.label, self.more = mass, rail, label, more

    def step(self, state, action):
        position, velocity = state.unbind(-1)
        velocity = velocity + self.dt * (self.scale_action(action)[..., 0] - FRICTION * velocity) / self.mass
        return torch.stack([position + self.dt * velocity, velocity], dim=-1)

    def observe(self, state):
        return state.clone()

    def reward(self, obs, action, next_obs):
        return -next_obs[..., 0].square()

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 5.0

    def reset(self, n, generator):
        return uniform(n, (-1.0, 0.0), (1.0, 0.0), generator)
'''


def velocity_after_a_push(trainer: Any) -> float:
    """Of a slide at rest that is pushed with 3 N for one step of 0.05 s: 0.15 / mass."""
    state, action = torch.zeros(1, 2), torch.ones(1, 1)
    return trainer.physics.step(state.to(trainer.physics.dtype), action.to(trainer.physics.dtype))[0, 1].item()


class Base(Task):
    name = "Base"
    state_names = obs_names = ("x",)
    action_names = ("a",)
    action_low, action_high = (-1.0,), (1.0,)
    dt, horizon, source, network_size = 0.1, 5, "test", "small"

    @override
    def step(self, state, action):
        return state + action

    def observe(self, state):
        return state.clone()

    def reward(self, obs, action, next_obs):
        return -next_obs[..., 0]

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 5.0

    def reset(self, n, generator):
        return uniform(n, (-1.0,), (1.0,), generator)


class Plain(Base):
    def __init__(self, a=1, /, b=2, *rest, c=3, **more):
        self.values = (a, b, rest, c, more)


class Derived(Plain):
    def __init__(self, scale=1.0, b=2):
        super().__init__(b=b)
        self.scale = scale
