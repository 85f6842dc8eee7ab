"""A task whose physics is a JAX function in the file beside it, boat_in_jax.py.

    python examples/own_jax_task.py
    mage-diffsim check-task examples/own_jax_task.py:Boat

Expect the return to rise from -350 to above -20 in half a minute.
"""

from pathlib import Path

import torch
import tyro

from mage_diffsim import Task, make_config, register_task, train
from mage_diffsim.envs import uniform


@register_task
class Boat(Task):
    """A boat in a whirling current, to be brought to the buoy at the origin."""

    name = "Boat"
    state_names = obs_names = ("x", "y", "vx", "vy")  # [m], [m/s]
    action_names = ("thrust_x", "thrust_y")
    action_low, action_high = (-2.0, -2.0), (2.0, 2.0)  # [N]
    dt = 0.1  # [s]
    horizon = 60
    source = "this file"
    network_size = "small"
    physics = {"jax": "boat_in_jax:make_step"}  # imported on first use

    def observe(self, state):
        return state

    def reward(self, obs, action, next_obs):
        return -(next_obs[..., :2].square().sum(-1) + 0.01 * action.square().sum(-1))

    def terminated(self, next_obs):
        return torch.zeros_like(next_obs[..., 0], dtype=torch.bool)

    def reset(self, n, generator):
        return uniform(n, (-1.5, -1.5, 0.0, 0.0), (1.5, 1.5, 0.0, 0.0), generator)


def main(out: Path = Path("runs/boat"), steps: int = 3000) -> None:
    config = make_config(Boat(), dynamics="oracle", preset="cpu", steps=steps, gradient_episodes=0)
    train(config, out, sinks=(lambda step, rows: print(f"step {step}: return {rows[0]['return_mean']:.1f}"),))


if __name__ == "__main__":
    tyro.cli(main)
