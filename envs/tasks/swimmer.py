"""Swimmer: a chain of three links that swims in a viscous fluid."""

from __future__ import annotations

from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.shapes import Bool, Float, Tensor


class Swimmer(MujocoTask):
    """Swim forward.

    Reward: the mean forward velocity minus 1e-4 |a|^2. Observation: qpos, qvel. The published code sums the control
    cost over the whole batch; here each row has its own.
    """

    name = "Swimmer"
    mjcf = "gymnasium:swimmer.xml"
    frame_skip = 4
    horizon = 1000
    source = "gym Swimmer-v2 (model, reset; gymnasium ships the model); MAGE's published code (observation, reward)"
    position_noise = velocity_noise = 0.1

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.state_names

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        return state.clone()

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        return (next_obs[..., 0] - obs[..., 0]) / self.dt - 1e-4 * action.square().sum(-1)

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)
