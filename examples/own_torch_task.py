"""Your own task in plain torch: its equations, its reward, and a short training on it.

    python examples/own_torch_task.py
    mage-diffsim check-task examples/own_torch_task.py:Slide
    mage-diffsim train --task examples/own_torch_task.py:Slide --dynamics oracle --preset cpu --steps 1000

Expect the return to rise from -12 to about -2 in half a minute, after a fall at the start.
"""

from pathlib import Path

import torch
import tyro

from mage_diffsim import Task, make_config, register_task, train
from mage_diffsim.envs import uniform


@register_task
class Slide(Task):
    """A mass on a rail, to be brought to rest at the origin."""

    name = "Slide"
    state_names = ("position", "velocity")  # [m], [m/s]
    obs_names = ("position", "velocity")
    action_names = ("force",)
    action_low, action_high = (-3.0,), (3.0,)  # what actions -1 and 1 stand for [N]
    dt = 0.05  # [s]
    horizon = 100
    source = "Newton's second law, 1 kg, semi-implicit Euler"
    network_size = "small"  # the paper's small networks

    def step(self, state, action):
        position, velocity = state.unbind(-1)
        velocity = velocity + self.dt * self.scale_action(action)[..., 0]
        return torch.stack([position + self.dt * velocity, velocity], dim=-1)

    def observe(self, state):
        return state

    def reward(self, obs, action, next_obs):
        return -(next_obs[..., 0].square() + 0.1 * next_obs[..., 1].square() + 0.01 * action[..., 0].square())

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 5.0

    def reset(self, n, generator):
        return uniform(n, (-1.0, 0.0), (1.0, 0.0), generator)


def main(out: Path = Path("runs/slide"), steps: int = 3000) -> None:
    config = make_config(Slide(), dynamics="oracle", preset="cpu", steps=steps, gradient_episodes=0)
    train(config, out, sinks=(lambda step, rows: print(f"step {step}: return {rows[0]['return_mean']:.1f}"),))


if __name__ == "__main__":
    tyro.cli(main)
