"""Go1: Unitree's robot on four legs walks at a speed that it is given."""

from __future__ import annotations

from functools import cached_property

import torch

from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.tasks.features import names, rotation
from mage_diffsim.errors import InputError
from mage_diffsim.shapes import Bool, Float, Tensor


class Go1(MujocoTask):
    """Walk forward at a given speed without turning; only the feet touch the ground.

    Reward: that of mujoco_playground's Go1JoystickFlatTerrain for the trunk's motion, without its weight dt:
    exp(-|v - command|^2 / 0.25) of the horizontal velocity in the trunk's frame, 0.5 exp(-w_z^2 / 0.25) of its turning,
    -0.5 v_z^2, -0.05 |w_xy|^2 and -5 |z_xy|^2 of the tilt. Costs of torques, of changes of the action and of feet are
    left out. Terminated: upside down. Actions are angles of joints around the pose ``home``, up to 0.5 rad away.
    Observation: velocity, angular velocity and the vertical in the trunk's frame, angles of joints from ``home``, their
    velocities.

    Args:
        speed: the forward velocity that is asked for [m/s].

    Raises:
        InputError: the speed is not a number from 0 to 2.
    """

    name = "Go1"
    mjcf = "go1.xml"
    frame_skip = 5
    horizon = 1000
    source = "mujoco_playground, Go1JoystickFlatTerrain (model, terms of the reward); our own task"
    position_noise, velocity_noise = 0.03, 0.1

    def __init__(self, speed: float = 0.5) -> None:
        if not 0.0 <= speed <= 2.0:
            raise InputError(f"task Go1: speed is {speed!r}; accepted is a number from 0 to 2")
        self.speed = speed

    @cached_property
    def obs_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return names(velocity=3, gyro=3, vertical=3, joint=12, joint_velocity=12)

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        start = super().reset(n, generator)
        model = self.simulation.model
        home = torch.as_tensor(model.key("home").qpos - model.qpos0).to(start)
        return self.state_at(self.qpos(start) + home, self.qvel(start))

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        qpos, qvel, turned = self.qpos(state), self.qvel(state), rotation(state[..., 3:7])
        home = torch.as_tensor(self.simulation.model.key("home").qpos[7:]).to(state)
        velocity = (qvel[..., None, :3] @ turned).squeeze(-2)
        return torch.cat([velocity, qvel[..., 3:6], turned[..., 2, :], qpos[..., 7:] - home, qvel[..., 6:]], dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        velocity, gyro, vertical = next_obs[..., :3], next_obs[..., 3:6], next_obs[..., 6:9]
        away = (velocity[..., 0] - self.speed).square() + velocity[..., 1].square()
        rising = (velocity * vertical).sum(-1)
        reward = (-away / 0.25).exp() + 0.5 * (-gyro[..., 2].square() / 0.25).exp() - 0.5 * rising.square()
        # The world's vertical in the trunk's frame tilts as much as the trunk's in the world.
        return reward - 0.05 * gyro[..., :2].square().sum(-1) - 5.0 * vertical[..., :2].square().sum(-1)

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return ~(next_obs[..., 8] >= 0.0)
