"""HumanoidStandup: the humanoid lies on the ground and gets up."""

from __future__ import annotations

from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.shapes import Bool, Float, Tensor


class HumanoidStandup(MujocoTask):
    """Get up from the ground.

    Reward: the torso's height over the simulator's time step, which is 1/0.003 s, plus 1, minus 0.1 |u|^2 with controls
    u of up to 0.4. Observation: qpos without x and y, qvel. Gymnasium adds what follows from qpos, qvel and the last
    action (cinert, cvel, qfrc_actuator), and contact forces and their cost.
    """

    name = "HumanoidStandup"
    mjcf = "gymnasium:humanoidstandup.xml"
    frame_skip = 5
    horizon = 1000
    source = "gymnasium HumanoidStandup-v5, without cinert, cvel, qfrc_actuator and contact forces"
    position_noise = velocity_noise = 1e-2

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.state_names[2:]

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        return state[..., 2:]

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        timestep = self.dt / self.frame_skip
        return next_obs[..., 0] / timestep + 1.0 - 0.1 * self.scale_action(action).square().sum(-1)

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)
