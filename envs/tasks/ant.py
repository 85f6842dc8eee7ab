"""Ant: a body on four legs, free in space, that runs forward."""

from __future__ import annotations

from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.model import MeanVelocity
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.shapes import Bool, Float, Tensor


class Ant(MujocoTask):
    """Run forward.

    Reward: the mean forward velocity plus 1 minus 0.5 |a|^2. Terminated: the height leaves 0.2 to 1 m. Observation: the
    mean forward velocity, qpos without x and y, qvel. Gymnasium adds contact forces and their cost, and its velocity
    lags one simulator step behind.
    """

    name = "Ant"
    mjcf = "gymnasium:ant.xml"
    frame_skip = 5
    horizon = 1000
    source = "gymnasium Ant-v5, without contact forces"
    readouts = {"x_velocity": MeanVelocity("root", 0)}  # noqa: RUF012
    position_noise, velocity_noise, normal_velocity = 0.1, 0.1, True

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return "x_velocity", *self.state_names[2:29]

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        return torch.cat([self.readout(state, "x_velocity"), state[..., 2:29]], dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        alive = torch.where(self.terminated(next_obs), 0.0, torch.ones_like(next_obs[..., 0]))
        return next_obs[..., 0] + alive - 0.5 * action.square().sum(-1)

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return ~((next_obs[..., 1] >= 0.2) & (next_obs[..., 1] <= 1.0) & next_obs.isfinite().all(-1))
