"""The physics of own_jax_task.py: one boat's step in JAX."""

import jax.numpy as jnp


def make_step(task):
    def step(state, action):
        """Next state [4] of a state [4] and an action [2] in [-1, 1]; float32 stays float32, float64 stays float64."""
        position, velocity = state[:2], state[2:]
        current = 0.5 * jnp.stack([jnp.sin(position[1]), -jnp.sin(position[0])])  # [m/s]
        thrust = task.action_high[0] * action  # [N]
        velocity = velocity + task.dt * (thrust - (velocity - current))  # 1 kg, drag 1 N s/m
        return jnp.concatenate([position + task.dt * velocity, velocity])

    return step
