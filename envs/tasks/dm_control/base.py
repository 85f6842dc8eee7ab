"""What the tasks of dm_control's suite have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.task import require_generator, uniform
from mage_diffsim.errors import unknown_name
from mage_diffsim.shapes import Bool, Float, Tensor


class SuiteTask(MujocoTask):
    """A task of the suite: episodes of 1000 steps that never terminate, rewards from 0 to 1.

    Args:
        goal: one of :attr:`speeds`.

    Raises:
        InputError: there is no such goal.
    """

    speeds: ClassVar[Mapping[str, float]]
    """The task's goals, and the speed that each asks for [m/s]."""
    horizon = 1000

    def __init__(self, goal: str) -> None:
        if goal not in self.speeds:
            raise unknown_name(f"goal of task {self.name}", goal, self.speeds)
        self.goal, self.speed = goal, self.speeds[goal]

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)

    def random_joints(self, n: int, generator: torch.Generator) -> Float[Tensor, "n nq"]:
        """Positions with limited joints uniform in their ranges, other hinges uniform in -pi to pi."""
        require_generator(generator)
        model, mujoco = self.simulation.model, load_mujoco()
        low, high = self.simulation.qpos0, self.simulation.qpos0
        for joint, at in enumerate(model.jnt_qposadr):
            if model.jnt_limited[joint]:
                low[at], high[at] = model.jnt_range[joint]
            elif model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE:
                low[at], high[at] = -math.pi, math.pi
        return uniform(n, low.tolist(), high.tolist(), generator)

    def at_rest(self, qpos: Float[Tensor, "n nq"]) -> Float[Tensor, "n S"]:
        """The state of bodies that do not move."""
        return self.state_at(qpos, qpos.new_zeros(len(qpos), self.simulation.nv))

    def touches(self, data: Any, qpos: np.ndarray) -> bool:
        """Whether there is a contact at positions [nq]; ``data`` is a ``mujoco.MjData``."""
        data.qpos[:] = qpos
        load_mujoco().mj_fwdPosition(self.simulation.model, data)
        return data.ncon > 0
