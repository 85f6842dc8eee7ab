"""Walker: a planar body of two legs that stands, walks or runs."""

from __future__ import annotations

import math
from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.model import CentreOfMassVelocity
from mage_diffsim.envs.tasks.dm_control.base import SuiteTask
from mage_diffsim.envs.tasks.dm_control.tolerance import tolerance
from mage_diffsim.envs.tasks.features import names
from mage_diffsim.shapes import Float, Tensor

TORSO = 1.3
"""The torso's height at rootz = 0 [m]."""


class DmWalker(SuiteTask):
    """Stand, walk or run upright: goal ``stand``, ``walk`` (1 m/s) or ``run`` (8 m/s).

    Reward: how upright and high the torso is, from 0 to 1; in motion, times one sixth to one for the speed of the
    centre of mass. Observation: cosine and sine of every body's angle, the torso's height, qvel; and that speed, which
    is not in dm_control's.
    """

    name = "DmWalker"
    mjcf = "walker.xml"
    frame_skip = 10
    source = "dm_control 1.0.50, suite.walker"
    readouts = {"velocity": CentreOfMassVelocity("torso")}  # noqa: RUF012
    speeds = {"stand": 0.0, "walk": 1.0, "run": 8.0}  # noqa: RUF012

    def __init__(self, goal: str = "walk") -> None:
        super().__init__(goal)

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return names(orientation=14, height=1, velocity=9, speed=1)

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        return self.at_rest(self.random_joints(n, generator))

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        qpos = self.qpos(state)
        torso = qpos[..., 2:3]
        legs = [torso - qpos[..., at : at + 3].cumsum(-1) for at in (3, 6)]  # their axes point the other way
        angles = torch.cat([torso, *legs], dim=-1)
        orientation = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(-2)
        speed = self.readout(state, "velocity")[..., :1]
        return torch.cat([orientation, TORSO + qpos[..., :1], self.qvel(state), speed], dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        standing = tolerance(next_obs[..., 14], 1.2, math.inf, margin=0.6)
        stand = (3.0 * standing + (1.0 + next_obs[..., 0]) / 2.0) / 4.0
        if self.speed == 0.0:
            return stand
        moving = tolerance(
            next_obs[..., 24], self.speed, math.inf, margin=self.speed / 2, value_at_margin=0.5, sigmoid="linear"
        )
        return stand * (5.0 * moving + 1.0) / 6.0
