"""The cart-pole's equations as a JAX function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mage_diffsim.bridges.jax import load_jax
from mage_diffsim.envs.task import Task


def make_step(task: Task) -> Callable[[Any, Any], Any]:
    """Returns ``step(state[4], action[1]) -> next_state[4]`` of a :class:`~mage_diffsim.envs.tasks.cartpole.CartPole`.

    State (x [m], x_dot [m/s], theta [rad], theta_dot [rad/s]), action in [-1, 1]; the constants are the task's.
    """
    jnp = load_jax().numpy
    cartpole: Any = task
    (low,), (high,) = task.action_low, task.action_high
    dt, length, masspole = cartpole.dt, cartpole.length, cartpole.masspole
    total_mass = cartpole.masscart + masspole
    polemass_length = masspole * length

    def step(state: Any, action: Any) -> Any:
        x, x_dot, theta, theta_dot = state
        force = low + (action[0] + 1.0) * (0.5 * (high - low))
        cos, sin = jnp.cos(theta), jnp.sin(theta)
        push = (force + polemass_length * theta_dot**2 * sin) / total_mass
        inertia = length * (4.0 / 3.0 - masspole * cos**2 / total_mass)
        theta_acc = (cartpole.gravity * sin - cos * push) / inertia
        x_acc = push - polemass_length * theta_acc * cos / total_mass
        return jnp.stack((x + dt * x_dot, x_dot + dt * x_acc, theta + dt * theta_dot, theta_dot + dt * theta_acc))

    return step
