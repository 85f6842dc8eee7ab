"""The cart-pole's equations as Warp kernels, forward and adjoint."""

# Warp's kernel annotations are values, not types.
# pyright: reportInvalidTypeForm=false

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from mage_diffsim.bridges.warp import WarpOp, from_warp, kernel, load_warp
from mage_diffsim.envs.task import Task


def make_kernels(task: Task) -> Callable[[torch.dtype], WarpOp]:
    """Returns the function dtype -> operation (state [N, 4], action [N, 1]) -> next state [N, 4] of a cart-pole task.

    State (x [m], x_dot [m/s], theta [rad], theta_dot [rad/s]), action in [-1, 1]; the constants are the task's.
    """
    cartpole: Any = task
    (low,), (high,) = task.action_low, task.action_high
    constants = (
        cartpole.gravity,
        cartpole.masspole,
        cartpole.masscart + cartpole.masspole,
        cartpole.length,
        low,
        0.5 * (high - low),
        cartpole.dt,
    )

    name = f"{task} warp kernels"
    return lambda dtype: from_warp(*_kernels(dtype), dtype=dtype, output_dim=4, constants=constants, name=name)


@functools.cache
def _kernels(dtype: torch.dtype) -> tuple[Any, Any]:
    wp = load_warp()
    real = wp.dtype_from_torch(dtype)

    @kernel
    def cartpole_forward(
        state: wp.array2d(dtype=real),
        action: wp.array2d(dtype=real),
        gravity: real,
        masspole: real,
        total_mass: real,
        length: real,
        low: real,
        half_range: real,
        dt: real,
        next_state: wp.array2d(dtype=real),
    ):
        row = wp.tid()
        x_dot = state[row, 1]
        theta = state[row, 2]
        theta_dot = state[row, 3]
        force = low + (action[row, 0] + real(1.0)) * half_range
        cos = wp.cos(theta)
        sin = wp.sin(theta)
        polemass_length = masspole * length
        push = (force + polemass_length * theta_dot * theta_dot * sin) / total_mass
        inertia = length * (real(4.0) / real(3.0) - masspole * cos * cos / total_mass)
        theta_acc = (gravity * sin - cos * push) / inertia
        x_acc = push - polemass_length * theta_acc * cos / total_mass
        next_state[row, 0] = state[row, 0] + dt * x_dot
        next_state[row, 1] = x_dot + dt * x_acc
        next_state[row, 2] = theta + dt * theta_dot
        next_state[row, 3] = theta_dot + dt * theta_acc

    @kernel
    def cartpole_adjoint(
        state: wp.array2d(dtype=real),
        action: wp.array2d(dtype=real),
        gravity: real,
        masspole: real,
        total_mass: real,
        length: real,
        low: real,
        half_range: real,
        dt: real,
        cotangent: wp.array2d(dtype=real),
        state_gradient: wp.array2d(dtype=real),
        action_gradient: wp.array2d(dtype=real),
    ):
        row = wp.tid()
        theta = state[row, 2]
        theta_dot = state[row, 3]
        force = low + (action[row, 0] + real(1.0)) * half_range
        cos = wp.cos(theta)
        sin = wp.sin(theta)
        polemass_length = masspole * length
        push = (force + polemass_length * theta_dot * theta_dot * sin) / total_mass
        inertia = length * (real(4.0) / real(3.0) - masspole * cos * cos / total_mass)
        theta_acc = (gravity * sin - cos * push) / inertia

        # The forward's lines in reverse; by_y is the derivative of the scalar by y.
        by_x_acc = dt * cotangent[row, 1]
        by_theta_acc = dt * cotangent[row, 3] - by_x_acc * polemass_length * cos / total_mass
        by_inertia = -by_theta_acc * theta_acc / inertia
        by_push = by_x_acc - by_theta_acc * cos / inertia
        by_cos = -by_x_acc * polemass_length * theta_acc / total_mass - by_theta_acc * push / inertia
        by_cos -= by_inertia * real(2.0) * length * masspole * cos / total_mass
        by_force = by_push / total_mass
        by_sin = by_theta_acc * gravity / inertia + by_force * polemass_length * theta_dot * theta_dot

        state_gradient[row, 0] = cotangent[row, 0]
        state_gradient[row, 1] = cotangent[row, 1] + dt * cotangent[row, 0]
        state_gradient[row, 2] = cotangent[row, 2] + by_sin * cos - by_cos * sin
        state_gradient[row, 3] = (
            cotangent[row, 3] + dt * cotangent[row, 2] + by_force * real(2.0) * polemass_length * theta_dot * sin
        )
        action_gradient[row, 0] = by_force * half_range

    return cartpole_forward, cartpole_adjoint
