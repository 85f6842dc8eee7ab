"""The pendulum's equations as Warp kernels, forward and adjoint."""

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
    """Returns the function dtype -> operation (state [N, 2], action [N, 1]) -> next state [N, 2] of a pendulum task.

    State (theta [rad], theta_dot [rad/s]), action in [-1, 1]; the constants and ``clip_order`` are the task's.
    """
    pendulum: Any = task
    (low,), (high,) = task.action_low, task.action_high
    constants = (
        1.5 * pendulum.g / pendulum.l,
        3.0 / (pendulum.m * pendulum.l**2),
        low,
        0.5 * (high - low),
        pendulum.dt,
        pendulum.max_speed,
        1 if pendulum.clip_order == "v1" else 0,
    )

    name = f"{task} warp kernels"
    return lambda dtype: from_warp(*_kernels(dtype), dtype=dtype, output_dim=2, constants=constants, name=name)


@functools.cache
def _kernels(dtype: torch.dtype) -> tuple[Any, Any]:
    wp = load_warp()
    real = wp.dtype_from_torch(dtype)

    @kernel
    def pendulum_forward(
        state: wp.array2d(dtype=real),
        action: wp.array2d(dtype=real),
        gravity: real,
        inverse_inertia: real,
        low: real,
        half_range: real,
        dt: real,
        max_speed: real,
        move_by_clipped: wp.int32,
        next_state: wp.array2d(dtype=real),
    ):
        row = wp.tid()
        theta = state[row, 0]
        torque = low + (action[row, 0] + real(1.0)) * half_range
        unclipped = state[row, 1] + (gravity * wp.sin(theta) + inverse_inertia * torque) * dt
        clipped = wp.clamp(unclipped, -max_speed, max_speed)
        moved_by = unclipped
        if move_by_clipped == 1:
            moved_by = clipped
        next_state[row, 0] = theta + moved_by * dt
        next_state[row, 1] = clipped

    @kernel
    def pendulum_adjoint(
        state: wp.array2d(dtype=real),
        action: wp.array2d(dtype=real),
        gravity: real,
        inverse_inertia: real,
        low: real,
        half_range: real,
        dt: real,
        max_speed: real,
        move_by_clipped: wp.int32,
        cotangent: wp.array2d(dtype=real),
        state_gradient: wp.array2d(dtype=real),
        action_gradient: wp.array2d(dtype=real),
    ):
        row = wp.tid()
        theta = state[row, 0]
        torque = low + (action[row, 0] + real(1.0)) * half_range
        unclipped = state[row, 1] + (gravity * wp.sin(theta) + inverse_inertia * torque) * dt
        # Derivative of the clip: 1 up to and including the bound, as torch.clamp.
        inside = real(1.0)
        if unclipped > max_speed or unclipped < -max_speed:
            inside = real(0.0)
        by_theta = cotangent[row, 0]
        by_clipped = cotangent[row, 1]
        by_unclipped = inside * by_clipped
        if move_by_clipped == 1:
            by_unclipped += inside * by_theta * dt
        else:
            by_unclipped += by_theta * dt
        state_gradient[row, 0] = by_theta + by_unclipped * dt * gravity * wp.cos(theta)
        state_gradient[row, 1] = by_unclipped
        action_gradient[row, 0] = by_unclipped * dt * inverse_inertia * half_range

    return pendulum_forward, pendulum_adjoint
