"""Pusher: a seven-jointed arm that pushes an object to a goal."""

from __future__ import annotations

from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.model import BodyPosition
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.task import norm, uniform
from mage_diffsim.shapes import Bool, Float, Tensor


class Pusher(MujocoTask):
    """Push the object to the goal.

    Reward: minus |object - goal|, minus 0.5 |object - tip|, minus 0.1 |a|^2 with a in the actuators' units (+-2). The
    distances are those in s, as in the paper and in Gymnasium up to v4; v5 takes them in s'. Observation: the arm's
    qpos and qvel, and the positions of tip, object and goal at the end of the step (Gymnasium's lag one simulator
    step). As in the paper, contacts act within 2 mm (4 mm by the rule of newer MuJoCo). The object of Gymnasium's v5 is
    600 times as heavy.
    """

    name = "Pusher"
    mjcf = "gymnasium:pusher.xml"
    contact_margin = "maximum"
    frame_skip = 5
    horizon = 100
    source = "gym Pusher-v2 (model, reset, control cost; gymnasium ships the model); MAGE's published code (reward)"
    readouts = {  # noqa: RUF012
        "tip": BodyPosition("tips_arm"),
        "object": BodyPosition("object"),
        "goal": BodyPosition("goal"),
    }

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return *self.state_names[:7], *self.state_names[11:18], *self.state_names[22:]

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        return torch.cat([state[..., :7], state[..., 11:18], state[..., 22:]], dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        tip, thing, goal = obs[..., 14:17], obs[..., 17:20], obs[..., 20:23]
        effort = self.scale_action(action).square().sum(-1)
        return -norm(thing - goal) - 0.5 * norm(thing - tip) - 0.1 * effort

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        qpos = torch.as_tensor(self.simulation.qpos0, device=generator.device).repeat(n, 1)
        qpos[:, 9:11] = 0.0
        missing = torch.ones(n, dtype=torch.bool, device=generator.device)
        while missing.any():  # the object starts at least 0.17 m from the goal
            qpos[missing, 7:9] = uniform(int(missing.sum()), (-0.3, -0.2), (0.0, 0.2), generator)
            missing = norm(qpos[:, 7:9]) <= 0.17
        bound = (0.005,) * 7 + (0.0,) * 4
        return self.state_at(qpos, uniform(n, [-b for b in bound], bound, generator))
