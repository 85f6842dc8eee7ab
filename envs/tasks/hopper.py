"""Hopper: a planar body of one leg that hops forward."""

from __future__ import annotations

from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.model import MeanVelocity
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.shapes import Bool, Float, Tensor


class Hopper(MujocoTask):
    """Hop forward.

    Reward: the mean forward velocity plus 1 minus 1e-3 |a|^2. Terminated: it falls. Observation: the mean forward
    velocity, qpos without x, qvel clipped to +-10. As in the paper, contacts act within 1 mm (2 mm by the rule of newer
    MuJoCo), and the step that falls earns the 1 (not in Gymnasium's v5).
    """

    name = "Hopper"
    mjcf = "gymnasium:hopper.xml"
    contact_margin = "maximum"
    frame_skip = 4
    horizon = 1000
    source = "gym Hopper-v2 (model, reset; gymnasium ships the model); MAGE's published code (observation, reward)"
    readouts = {"x_velocity": MeanVelocity("rootx")}  # noqa: RUF012
    position_noise = velocity_noise = 5e-3

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return "x_velocity", *self.state_names[1:12]

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        velocity = self.qvel(state).clamp(-10.0, 10.0)
        return torch.cat([self.readout(state, "x_velocity"), self.qpos(state)[..., 1:], velocity], dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        return next_obs[..., 0] + 1.0 - 1e-3 * action.square().sum(-1)

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        bounded = (next_obs[..., 2:].abs() < 100.0).all(-1)  # false for NaN too
        return ~(bounded & (next_obs[..., 1] > 0.7) & (next_obs[..., 2].abs() < 0.2))
