"""Cheetah: a planar body of two legs that runs."""

from __future__ import annotations

import math
from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.model import CentreOfMassVelocity, load_mujoco
from mage_diffsim.envs.tasks.dm_control.base import SuiteTask
from mage_diffsim.envs.tasks.dm_control.tolerance import tolerance
from mage_diffsim.shapes import Float, Tensor

SETTLING = 200
"""Simulator steps before an episode, without actions."""


class DmCheetah(SuiteTask):
    """Run: goal ``run`` (10 m/s).

    Reward: a tenth of the speed of the centre of mass, from 0 to 1. Observation: qpos without x, qvel; and that speed,
    which is not in dm_control's.
    """

    name = "DmCheetah"
    mjcf = "cheetah.xml"
    frame_skip = 1
    source = "dm_control 1.0.50, suite.cheetah"
    readouts = {"velocity": CentreOfMassVelocity("torso")}  # noqa: RUF012
    speeds = {"run": 10.0}  # noqa: RUF012

    def __init__(self, goal: str = "run") -> None:
        super().__init__(goal)

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return *self.state_names[1:18], "speed"

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        qpos = self.random_joints(n, generator)
        qvel = qpos.new_zeros(n, self.simulation.nv)
        qpos[:, :3] = 0.0
        mujoco, model = load_mujoco(), self.simulation.model
        for i in range(n):
            data = mujoco.MjData(model)
            data.qpos[:] = qpos[i].cpu().numpy()
            mujoco.mj_step(model, data, SETTLING)
            qpos[i], qvel[i] = torch.as_tensor(data.qpos), torch.as_tensor(data.qvel)
        return self.state_at(qpos, qvel)

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        return torch.cat([state[..., 1:18], self.readout(state, "velocity")[..., :1]], dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        speed = self.speed
        return tolerance(next_obs[..., 17], speed, math.inf, margin=speed, value_at_margin=0.0, sigmoid="linear")
