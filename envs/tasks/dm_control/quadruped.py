"""Quadruped of dm_control's suite: four legs driven by tendons, which walk or run forward."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch

from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.task import require_generator
from mage_diffsim.envs.tasks.dm_control.base import SuiteTask
from mage_diffsim.envs.tasks.dm_control.tolerance import tolerance
from mage_diffsim.envs.tasks.features import names, rotation
from mage_diffsim.shapes import Float, Tensor

STEP = 0.01
"""By how much a start is lifted until nothing touches [m]."""


class DmQuadruped(SuiteTask):
    """Walk or run forward: goal ``walk`` (0.5 m/s) or ``run`` (5 m/s).

    Reward: how upright the torso is, from 0 to 1, times a factor for its forward velocity. Observation: angles and
    velocities of joints, activations, the torso's velocity in its frame, how upright it is, and its angular velocity.
    dm_control adds the torso's acceleration, and forces and torques at the toes.
    """

    name = "DmQuadruped"
    mjcf = "quadruped.xml"
    frame_skip = 4
    source = "dm_control 1.0.50, suite.quadruped, without accelerometer, force and torque sensors"
    speeds = {"walk": 0.5, "run": 5.0}  # noqa: RUF012

    def __init__(self, goal: str = "walk") -> None:
        super().__init__(goal)

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return names(joint=16, joint_velocity=16, activation=12, velocity=3, upright=1, gyro=3)

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        """Any orientation, as low as nothing touches, to a centimetre."""
        require_generator(generator)
        like: dict[str, Any] = dict(dtype=torch.float64, device=generator.device)
        quaternion = torch.randn(n, 4, generator=generator, **like)
        qpos = torch.as_tensor(self.simulation.qpos0, **like).repeat(n, 1)
        qpos[:, :3], qpos[:, 3:7] = 0.0, quaternion / quaternion.norm(dim=1, keepdim=True)
        data = load_mujoco().MjData(self.simulation.model)
        for row in qpos:
            start = row.cpu().numpy().copy()
            while self.touches(data, start):
                start[2] += STEP
            row[2] = float(start[2])
        return self.at_rest(qpos)

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        qpos, qvel, turned = self.qpos(state), self.qvel(state), rotation(state[..., 3:7])
        velocity = (qvel[..., None, :3] @ turned).squeeze(-2)
        parts = [qpos[..., 7:], qvel[..., 6:], self.act(state), velocity, turned[..., 2, 2:], qvel[..., 3:6]]
        return torch.cat(parts, dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        upright = tolerance(next_obs[..., 47], 1.0, math.inf, margin=2.0, value_at_margin=0.0, sigmoid="linear")
        speed = self.speed
        moving = tolerance(next_obs[..., 44], speed, math.inf, margin=speed, value_at_margin=0.5, sigmoid="linear")
        return upright * moving
