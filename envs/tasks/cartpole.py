"""Balancing a pole on a cart with a continuous force: gymnasium's CartPole equations, written in torch."""

from __future__ import annotations

import math

import numpy as np
import torch

from mage_diffsim.envs.drawing import DARK, RED, Line, draw_lines
from mage_diffsim.envs.task import Task, uniform
from mage_diffsim.shapes import Bool, Float, Tensor


class CartPole(Task):
    """Balance a pole that is hinged on a cart.

    State and observation: (x [m], x_dot [m/s], theta [rad], theta_dot [rad/s]); theta is 0 upright. Action: a force in
    [-10, 10] N. Reward: 1 for every step. Terminated: beyond +-2.4 m or +-12 degrees.
    """

    name = "CartPole"
    state_names = ("x", "x_dot", "theta", "theta_dot")
    obs_names = ("x", "x_dot", "theta", "theta_dot")
    action_names = ("force",)
    action_low = (-10.0,)
    action_high = (10.0,)
    dt = 0.02
    horizon = 500
    source = "gymnasium CartPole-v1, classic_control/cartpole.py (Euler), with the force continuous"
    network_size = "small"
    solved_return = 475.0
    physics = {  # noqa: RUF012  (the base class declares it a ClassVar)
        "jax": "mage_diffsim.envs.jax.cartpole:make_step",
        "warp": "mage_diffsim.envs.warp.cartpole:make_kernels",
    }

    gravity = 9.8
    """Gravitational acceleration [m/s^2]."""
    masscart = 1.0
    """Mass of the cart [kg]."""
    masspole = 0.1
    """Mass of the pole [kg]."""
    length = 0.5
    """Half the length of the pole [m]."""
    x_threshold = 2.4
    """Cart position beyond which an episode terminates [m]."""
    theta_threshold = 12.0 * math.pi / 180.0
    """Pole angle beyond which an episode terminates [rad]."""

    def step(self, state: Float[Tensor, "*batch S"], action: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch S"]:
        """One explicit Euler step of the cart-pole equations (Florian 2007, without friction)."""
        x, x_dot, theta, theta_dot = state.unbind(-1)
        force = self.scale_action(action)[..., 0]
        total_mass = self.masscart + self.masspole
        cos, sin = theta.cos(), theta.sin()
        push = (force + self.masspole * self.length * theta_dot.square() * sin) / total_mass
        inertia = self.length * (4.0 / 3.0 - self.masspole * cos.square() / total_mass)
        theta_acc = (self.gravity * sin - cos * push) / inertia
        x_acc = push - self.masspole * self.length * theta_acc * cos / total_mass
        return torch.stack(
            (
                x + self.dt * x_dot,
                x_dot + self.dt * x_acc,
                theta + self.dt * theta_dot,
                theta_dot + self.dt * theta_acc,
            ),
            dim=-1,
        )

    def observe(self, state: Float[Tensor, "*batch S"]) -> Float[Tensor, "*batch O"]:
        return state.clone()

    def reward(
        self,
        obs: Float[Tensor, "*batch O"],
        action: Float[Tensor, "*batch A"],
        next_obs: Float[Tensor, "*batch O"],
    ) -> Float[Tensor, "*batch"]:
        """1 for every step, the terminating one included; its gradient is 0 rather than absent."""
        connected = obs[..., 0] + action[..., 0] + next_obs[..., 0]
        # It keeps the graph, and an infinite observation does not make the reward NaN.
        return connected.masked_fill(torch.ones_like(connected, dtype=torch.bool), 1.0)

    def terminated(self, next_obs: Float[Tensor, "*batch O"]) -> Bool[Tensor, "*batch"]:
        return (next_obs[..., 0].abs() > self.x_threshold) | (next_obs[..., 2].abs() > self.theta_threshold)

    def reset(self, n: int, generator: torch.Generator) -> Float[Tensor, "n S"]:
        return uniform(n, (-0.05,) * 4, (0.05,) * 4, generator)

    def render(self, state: Float[Tensor, " S"]) -> np.ndarray:
        x, theta = float(state[0]) / self.x_threshold, float(state[2])
        tip = (x + 0.8 * math.sin(theta), -0.5 + 0.8 * math.cos(theta))
        return draw_lines(
            [
                Line((-1.0, -0.62), (1.0, -0.62), 0.01, DARK),
                Line((x - 0.12, -0.5), (x + 0.12, -0.5), 0.08, DARK),
                Line((x, -0.5), tip, 0.04, RED),
            ]
        )
