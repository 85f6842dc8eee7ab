"""InvertedDoublePendulum: two poles, one on the other, balanced on a cart."""

from __future__ import annotations

from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.model import SitePosition
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.shapes import Bool, Float, Tensor


class InvertedDoublePendulum(MujocoTask):
    """Balance both poles.

    Reward: 10 for every step that does not fall, minus the tip's distance from (0, 2 m) and the poles' speed.
    Terminated: the tip is at 1 m or below. Observation: the cart's position, sine and cosine of the hinges, qvel, the
    tip's x and z at the end of the step. (In Gymnasium the tip lags one simulator step behind, and the observation has
    clipped velocities and a constraint force, which is not in the state.)
    """

    name = "InvertedDoublePendulum"
    mjcf = "gymnasium:inverted_double_pendulum.xml"
    frame_skip = 5
    horizon = 1000
    source = "gymnasium InvertedDoublePendulum-v5"
    network_size = "small"
    readouts = {"tip": SitePosition("tip")}  # noqa: RUF012
    position_noise, velocity_noise, normal_velocity = 0.1, 0.1, True

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        angles = [f"{f}_{joint}" for f in ("sin", "cos") for joint in self.state_names[1:3]]
        return self.state_names[0], *angles, *self.state_names[3:6], "tip_x", "tip_z"

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        angle, tip = self.qpos(state)[..., 1:], self.readout(state, "tip")
        parts = [state[..., :1], angle.sin(), angle.cos(), self.qvel(state), tip[..., ::2]]
        return torch.cat(parts, dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        v1, v2, x, z = next_obs[..., 6], next_obs[..., 7], next_obs[..., 8], next_obs[..., 9]
        distance, speed = 0.01 * x.square() + (z - 2.0).square(), 1e-3 * v1.square() + 5e-3 * v2.square()
        return torch.where(self.terminated(next_obs), 0.0, torch.full_like(x, 10.0)) - distance - speed

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return ~(next_obs[..., 9] > 1.0)  # true for NaN too
