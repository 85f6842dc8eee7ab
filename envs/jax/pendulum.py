"""The pendulum's equations as a JAX function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mage_diffsim.bridges.jax import load_jax
from mage_diffsim.envs.task import Task


def make_step(task: Task) -> Callable[[Any, Any], Any]:
    """Returns ``step(state[2], action[1]) -> next_state[2]`` of a :class:`~mage_diffsim.envs.tasks.pendulum.Pendulum`.

    State (theta [rad], theta_dot [rad/s]), action in [-1, 1]; the constants and ``clip_order`` are the task's.
    """
    jnp = load_jax().numpy
    pendulum: Any = task
    (low,), (high,) = task.action_low, task.action_high
    gravity = 1.5 * pendulum.g / pendulum.l
    inverse_inertia = 3.0 / (pendulum.m * pendulum.l**2)
    bound = pendulum.max_speed

    def step(state: Any, action: Any) -> Any:
        theta, theta_dot = state
        torque = low + (action[0] + 1.0) * (0.5 * (high - low))
        acceleration = gravity * jnp.sin(theta) + inverse_inertia * torque
        unclipped = theta_dot + acceleration * pendulum.dt
        # jnp.clip has derivative 1/2 at the bound itself, torch.clamp and this have 1.
        clipped = jnp.where(unclipped > bound, bound, jnp.where(unclipped < -bound, -bound, unclipped))
        moved_by = clipped if pendulum.clip_order == "v1" else unclipped
        return jnp.stack((theta + moved_by * pendulum.dt, clipped))

    return step
