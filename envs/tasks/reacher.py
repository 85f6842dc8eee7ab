"""Reacher: a planar arm of two links that reaches for a point."""

from __future__ import annotations

import math
from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.model import BodyPosition
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.task import norm, uniform
from mage_diffsim.shapes import Bool, Float, Tensor


class Reacher(MujocoTask):
    """Reach the target with the fingertip.

    Reward: minus the distance of the fingertip from the target, minus |a|^2. Observation: cosine and sine of the
    joints, the target's position, the joints' velocities, fingertip minus target (x, y). Body positions are those at
    the end of the step; Gymnasium's lag one simulator step behind.
    """

    name = "Reacher"
    mjcf = "gymnasium:reacher.xml"
    frame_skip = 2
    horizon = 50
    source = "gymnasium Reacher-v5"
    network_size = "small"
    readouts = {"tip": BodyPosition("fingertip"), "goal": BodyPosition("target")}  # noqa: RUF012

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        angles = [f"{f}_{joint}" for f in ("cos", "sin") for joint in self.state_names[:2]]
        return *angles, *self.state_names[2:6], "distance_x", "distance_y"

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        angle, distance = state[..., :2], self.readout(state, "tip") - self.readout(state, "goal")
        return torch.cat([angle.cos(), angle.sin(), state[..., 2:6], distance[..., :2]], dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        return -norm(next_obs[..., 8:10]) - action.square().sum(-1)

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        arm = uniform(n, (-0.1, -0.1), (0.1, 0.1), generator)
        velocity = uniform(n, (-0.005, -0.005, 0.0, 0.0), (0.005, 0.005, 0.0, 0.0), generator)
        # Uniform on a disc of radius 0.2.
        polar = uniform(n, (0.0, -math.pi), (1.0, math.pi), generator)
        radius, angle = 0.2 * polar[:, 0].sqrt(), polar[:, 1]
        target = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
        return self.state_at(torch.cat([arm, target], dim=-1), velocity)
