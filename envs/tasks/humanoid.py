"""Humanoid: a body with legs and arms, free in space, that walks forward."""

from __future__ import annotations

from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.model import CentreOfMass, MeanVelocity
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.shapes import Bool, Float, Tensor


class Humanoid(MujocoTask):
    """Walk forward without falling.

    Reward: 1.25 times the mean forward velocity of the centre of mass, plus 5, minus 0.1 |u|^2 with controls u of up to
    0.4. Terminated: the torso's height leaves 1 to 2 m. Observation: the torso's mean forward velocity, how far the
    centre of mass is ahead of it, qpos without x and y, qvel. Gymnasium adds what follows from qpos, qvel and the last
    action (cinert, cvel, qfrc_actuator), and contact forces and their cost. Its velocity lags one simulator
    step behind.
    """

    name = "Humanoid"
    mjcf = "gymnasium:humanoid.xml"
    frame_skip = 5
    horizon = 1000
    source = "gymnasium Humanoid-v5, without cinert, cvel, qfrc_actuator and contact forces"
    readouts = {"x_velocity": MeanVelocity("root", 0), "centre": CentreOfMass("torso")}  # noqa: RUF012
    position_noise = velocity_noise = 1e-2

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return "x_velocity", "centre_ahead", *self.state_names[2:47]

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        ahead = self.readout(state, "centre")[..., :1] - state[..., :1]
        return torch.cat([self.readout(state, "x_velocity"), ahead, state[..., 2:47]], dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        velocity = next_obs[..., 0] + (next_obs[..., 1] - obs[..., 1]) / self.dt
        alive = torch.where(self.terminated(next_obs), 0.0, torch.full_like(velocity, 5.0))
        return 1.25 * velocity + alive - 0.1 * self.scale_action(action).square().sum(-1)

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return ~((next_obs[..., 2] > 1.0) & (next_obs[..., 2] < 2.0))
