"""Pendulum swing-up with gymnasium's equations, written in torch."""

from __future__ import annotations

import math

import numpy as np
import torch

from mage_diffsim.envs.drawing import DARK, RED, Line, draw_lines
from mage_diffsim.envs.task import Task, uniform
from mage_diffsim.errors import unknown_name
from mage_diffsim.shapes import Bool, Float, Tensor

CLIP_ORDERS = ("v1", "v0")


class Pendulum(Task):
    """Swing up and balance a torque-limited pendulum.

    State: (theta [rad], theta_dot [rad/s]); theta is 0 upright and not wrapped. Observation: (cos theta, sin theta,
    theta_dot). Action: a torque in [-2, 2] N m. Reward: -(angle^2 + 0.1 theta_dot^2 + 0.001 torque^2). An episode never
    terminates.

    Args:
        clip_order: ``"v1"`` clips the new velocity to +-``max_speed`` and moves theta by it (gymnasium Pendulum-v1);
            ``"v0"`` moves theta by the unclipped velocity and clips afterwards (gym Pendulum-v0).

    Raises:
        InputError: another ``clip_order``.
    """

    name = "Pendulum"
    state_names = ("theta", "theta_dot")
    obs_names = ("cos_theta", "sin_theta", "theta_dot")
    action_names = ("torque",)
    action_low = (-2.0,)
    action_high = (2.0,)
    dt = 0.05
    horizon = 200
    source = "gymnasium Pendulum-v1, classic_control/pendulum.py; clip order of gym 0.15 Pendulum-v0 as an option"
    network_size = "small"
    solved_return = -200.0
    physics = {  # noqa: RUF012  (the base class declares it a ClassVar)
        "jax": "mage_diffsim.envs.jax.pendulum:make_step",
        "warp": "mage_diffsim.envs.warp.pendulum:make_kernels",
    }

    g = 10.0
    """Gravitational acceleration [m/s^2]."""
    m = 1.0
    """Mass of the rod [kg]."""
    l = 1.0  # noqa: E741  (the equations' own letter)
    """Length of the rod [m]."""
    max_speed = 8.0
    """Bound of the angular velocity [rad/s]."""

    def __init__(self, clip_order: str = "v1") -> None:
        if clip_order not in CLIP_ORDERS:
            raise unknown_name("clip_order of task Pendulum", clip_order, CLIP_ORDERS)
        self.clip_order = clip_order

    def step(self, state: Float[Tensor, "*batch S"], action: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch S"]:
        """One semi-implicit Euler step of theta_ddot = 3g/(2l) sin theta + 3/(m l^2) u."""
        theta, theta_dot = state.unbind(-1)
        torque = self.scale_action(action)[..., 0]
        acceleration = 1.5 * self.g / self.l * theta.sin() + 3.0 / (self.m * self.l**2) * torque
        unclipped = theta_dot + acceleration * self.dt
        clipped = unclipped.clamp(-self.max_speed, self.max_speed)
        moved_by = clipped if self.clip_order == "v1" else unclipped
        return torch.stack((theta + moved_by * self.dt, clipped), dim=-1)

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        theta, theta_dot = state.unbind(-1)
        return torch.stack((theta.cos(), theta.sin(), theta_dot), dim=-1)

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        """-(angle^2 + 0.1 theta_dot^2 + 0.001 torque^2) of the current observation and the clipped torque."""
        cos, sin, theta_dot = obs.unbind(-1)
        # A learned model can predict cos = sin = 0, where the derivative of atan2 is NaN: take angle 0 there.
        no_angle = cos.square() + sin.square() < torch.finfo(obs.dtype).tiny
        angle = torch.atan2(sin, cos.masked_fill(no_angle, 1.0))
        torque = self.scale_action(action.clamp(-1.0, 1.0))[..., 0]
        return -(angle.square() + 0.1 * theta_dot.square() + 0.001 * torque.square())

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        return uniform(n, (-math.pi, -1.0), (math.pi, 1.0), generator)

    def render(self, state: Float[Tensor, " S"]) -> np.ndarray:
        theta = float(state[0])
        tip = (0.7 * math.sin(theta), 0.7 * math.cos(theta))
        return draw_lines([Line((0.0, 0.0), tip, 0.09, RED), Line((0.0, 0.0), (0.0, 0.0), 0.03, DARK)])

    def __repr__(self) -> str:
        return f"Pendulum(clip_order={self.clip_order!r})"
