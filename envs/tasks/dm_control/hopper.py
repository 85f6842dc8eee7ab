"""Hopper: a planar body on one leg that stands or hops."""

from __future__ import annotations

import math
from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.model import CentreOfMass, CentreOfMassVelocity
from mage_diffsim.envs.tasks.dm_control.base import SuiteTask
from mage_diffsim.envs.tasks.dm_control.tolerance import tolerance
from mage_diffsim.shapes import Float, Tensor

TORSO = 1.0
"""The torso's height at rootz = 0 [m]."""


class DmHopper(SuiteTask):
    """Stand or hop forward: goal ``stand``, or ``hop`` (2 m/s).

    Reward: 1 while the torso's centre of mass is 0.6 to 2 m above the foot's, else 0; times a factor for small actions
    (stand) or for the speed of the centre of mass (hop). Observation: qpos without x, qvel; and that height and speed,
    which are not in dm_control's. dm_control adds forces of contacts at toe and heel.
    """

    name = "DmHopper"
    mjcf = "hopper.xml"
    frame_skip = 4
    source = "dm_control 1.0.50, suite.hopper, without touch sensors"
    readouts = {"velocity": CentreOfMassVelocity("torso"), "foot": CentreOfMass("foot")}  # noqa: RUF012
    speeds = {"stand": 0.0, "hop": 2.0}  # noqa: RUF012

    def __init__(self, goal: str = "hop") -> None:
        super().__init__(goal)

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return *self.state_names[1:14], "height", "speed"

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        return self.at_rest(self.random_joints(n, generator))

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        x, _, z = self.simulation.model.body("torso").ipos.tolist()
        height, angle = state[..., 1:2], state[..., 2:3]
        torso = TORSO + height - x * angle.sin() + z * angle.cos()
        foot, speed = self.readout(state, "foot")[..., 2:], self.readout(state, "velocity")[..., :1]
        return torch.cat([state[..., 1:14], torso - foot, speed], dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        standing = tolerance(next_obs[..., 13], 0.6, 2.0)
        if self.speed == 0.0:
            small = tolerance(action, margin=1.0, value_at_margin=0.0, sigmoid="quadratic").mean(-1)
            return standing * (small + 4.0) / 5.0
        hopping = tolerance(
            next_obs[..., 14], self.speed, math.inf, margin=self.speed / 2, value_at_margin=0.5, sigmoid="linear"
        )
        return standing * hopping
