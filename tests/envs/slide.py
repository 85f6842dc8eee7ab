"""A mass on a rail, to be brought to rest at the origin."""

import torch

from mage_diffsim import Task
from mage_diffsim.envs import uniform


class Slide(Task):
    name = "SlideOfFiles"
    state_names = ("position", "velocity")  # [m], [m/s]
    obs_names = ("position", "velocity")
    action_names = ("force",)
    action_low, action_high = (-3.0,), (3.0,)  # what actions -1 and 1 stand for [N]
    dt = 0.05  # [s]
    horizon = 100
    source = "Newton's second law, 1 kg, semi-implicit Euler"
    network_size = "small"  # the paper's small networks

    def step(self, state, action):
        position, velocity = state.unbind(-1)
        velocity = velocity + self.dt * self.scale_action(action)[..., 0]
        return torch.stack([position + self.dt * velocity, velocity], dim=-1)

    def observe(self, state):
        return state

    def reward(self, obs, action, next_obs):
        return -(next_obs[..., 0].square() + 0.1 * next_obs[..., 1].square() + 0.01 * action[..., 0].square())

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 5.0

    def reset(self, n, generator):
        return uniform(n, (-1.0, 0.0), (1.0, 0.0), generator)
