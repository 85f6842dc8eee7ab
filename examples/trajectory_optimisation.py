"""Trajectory optimisation by gradient: the actions of a whole episode, improved through the simulator.

    python examples/trajectory_optimisation.py             # seconds on one core

The plan of each of 16 reachers is a tensor of actions [50, 2]; Adam follows the gradient of the return through all 50
steps of Warp's MuJoCo kernels. Expect the mean return to rise from -11.6 to -5.2.
"""

import torch
import tyro

from mage_diffsim.envs import make_physics, make_task


def main(iterations: int = 100, n: int = 16, seed: int = 0) -> None:
    task = make_task("Reacher")
    physics = make_physics(task, "warp")  # or "mujoco", "mjx": the same function
    start = physics.reset(n, torch.Generator().manual_seed(seed))
    plan = torch.zeros(task.horizon, n, task.action_dim, requires_grad=True)
    optimizer = torch.optim.Adam([plan], lr=0.02)

    def returns() -> torch.Tensor:
        """The return of each episode, [n]."""
        state, total = start, torch.zeros(n)
        for action in plan:
            next_state = physics.step(state, action)
            total = total + task.reward(task.observe(state), action, task.observe(next_state))
            state = next_state
        return total

    for iteration in range(iterations + 1):
        optimizer.zero_grad()
        total = returns()
        (-total.sum()).backward()  # the episodes do not interact: one sum optimises each by itself
        if iteration % 20 == 0:
            print(f"iteration {iteration}: mean return {total.mean():.2f}, worst {total.min():.2f}")
        optimizer.step()
        with torch.no_grad():
            plan.clamp_(-1.0, 1.0)  # step() clips actions too, and passes gradients at the bound


if __name__ == "__main__":
    tyro.cli(main)
