"""What tests on small MuJoCo models share."""

from __future__ import annotations

import torch

from mage_diffsim.envs.mujoco.task import MujocoTask


class Body(MujocoTask):
    """What every small model here shares."""

    frame_skip = 3
    horizon = 100
    source = "a test"
    position_noise, velocity_noise, normal_velocity = 0.05, 1.0, True

    def observe(self, state):
        return state

    def reward(self, obs, action, next_obs):
        return next_obs[..., 0]

    def terminated(self, next_obs):
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)


def jacobian(step, state, action):
    """The derivative by state and action [N, S, S + A] by reverse mode, a row of it per sweep."""
    state, action = state.detach().requires_grad_(), action.detach().requires_grad_()
    output = step(state, action)
    rows = [
        torch.cat(torch.autograd.grad(output[:, i].sum(), (state, action), retain_graph=True), dim=1)
        for i in range(output.shape[1])
    ]
    return torch.stack(rows, dim=1).detach()
