"""Humanoid of dm_control's suite: it stands, walks or runs in any direction."""

from __future__ import annotations

import math
from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.model import BodyPosition, CentreOfMassVelocity, load_mujoco
from mage_diffsim.envs.task import norm, uniform
from mage_diffsim.envs.tasks.dm_control.base import SuiteTask
from mage_diffsim.envs.tasks.dm_control.tolerance import tolerance
from mage_diffsim.envs.tasks.features import names, rotation
from mage_diffsim.shapes import Float, Tensor

LIMBS = ("left_hand", "left_foot", "right_hand", "right_foot")


class DmHumanoid(SuiteTask):
    """Stand, walk or run: goal ``stand``, ``walk`` (1 m/s) or ``run`` (10 m/s).

    Reward: how high the head and how upright the torso is, from 0 to 1, times factors for small actions and for the
    horizontal velocity of the centre of mass. Observation, as in dm_control: angles of joints, height of the head,
    hands and feet in the torso's frame, the vertical in that frame, velocity of the centre of mass, qvel.
    """

    name = "DmHumanoid"
    mjcf = "humanoid.xml"
    frame_skip = 5
    source = "dm_control 1.0.50, suite.humanoid"
    readouts = {  # noqa: RUF012
        "head": BodyPosition("head"),
        **{limb: BodyPosition(limb) for limb in LIMBS},
        "velocity": CentreOfMassVelocity("torso"),
    }
    speeds = {"stand": 0.0, "walk": 1.0, "run": 10.0}  # noqa: RUF012

    def __init__(self, goal: str = "walk") -> None:
        super().__init__(goal)

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return names(joint=21, head_height=1, extremity=12, vertical=3, centre_velocity=3, velocity=27)

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        """Random poses without a contact: others are drawn again."""
        data, found = load_mujoco().MjData(self.simulation.model), []
        while len(found) < n:
            qpos = self.random_joints(1, generator)[0]
            quaternion = uniform(1, (0.0,) * 4, (1.0,) * 4, generator)[0]
            qpos[3:7] = quaternion / quaternion.norm()
            if not self.touches(data, qpos.cpu().numpy()):
                found.append(qpos)
        return self.at_rest(torch.stack(found))

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        qpos, turned = self.qpos(state), rotation(state[..., 3:7])
        limbs = torch.stack([self.readout(state, limb) - qpos[..., :3] for limb in LIMBS], dim=-2) @ turned
        head, velocity = self.readout(state, "head")[..., 2:], self.readout(state, "velocity")
        parts = [qpos[..., 7:], head, limbs.flatten(-2), turned[..., 2, :], velocity, self.qvel(state)]
        return torch.cat(parts, dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        standing = tolerance(next_obs[..., 21], 1.4, math.inf, margin=0.35)
        upright = tolerance(next_obs[..., 36], 0.9, math.inf, margin=1.9, value_at_margin=0.0, sigmoid="linear")
        small = tolerance(action, margin=1.0, value_at_margin=0.0, sigmoid="quadratic").mean(-1)
        reward = (4.0 + small) / 5.0 * standing * upright
        velocity, speed = next_obs[..., 37:39], self.speed
        if speed == 0.0:
            return reward * tolerance(velocity, margin=2.0).mean(-1)
        moving = tolerance(norm(velocity), speed, math.inf, margin=speed, value_at_margin=0.0, sigmoid="linear")
        return reward * (5.0 * moving + 1.0) / 6.0
