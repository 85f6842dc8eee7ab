"""HalfCheetah: a planar body of two legs that runs forward."""

from __future__ import annotations

from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.model import MeanVelocity
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.shapes import Bool, Float, Tensor


class HalfCheetah(MujocoTask):
    """Run forward.

    Reward: the mean forward velocity minus 0.1 |a|^2. Observation: the mean forward velocity, qpos without x, qvel.
    """

    name = "HalfCheetah"
    mjcf = "gymnasium:half_cheetah.xml"
    frame_skip = 5
    horizon = 1000
    source = "gym HalfCheetah-v2 (model, reset; gymnasium ships the model); MAGE's published code (observation, reward)"
    gradient_horizon = 10  # the gradient grows tenfold every six steps once a policy runs
    readouts = {"x_velocity": MeanVelocity("rootx")}  # noqa: RUF012
    position_noise, velocity_noise, normal_velocity = 0.1, 0.1, True

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return "x_velocity", *self.state_names[1:18]

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        return torch.cat([self.readout(state, "x_velocity"), state[..., 1:18]], dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        return next_obs[..., 0] - 0.1 * action.square().sum(-1)

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)
