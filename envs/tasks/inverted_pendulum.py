"""InvertedPendulum: a pole balanced on a cart."""

from __future__ import annotations

from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.shapes import Bool, Float, Tensor


class InvertedPendulum(MujocoTask):
    """Balance the pole.

    Reward: 1 for every step that does not fall. Terminated: the angle is beyond 0.2 rad. Observation: qpos, qvel.
    """

    name = "InvertedPendulum"
    mjcf = "gymnasium:inverted_pendulum.xml"
    frame_skip = 2
    horizon = 1000
    source = "gymnasium InvertedPendulum-v5"
    network_size = "small"
    solved_return = 1000.0
    position_noise = velocity_noise = 0.01

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
        return torch.where(self.terminated(next_obs), 0.0, torch.ones_like(next_obs[..., 0]))

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return ~(next_obs[..., 1].abs() <= 0.2)  # true for NaN too
