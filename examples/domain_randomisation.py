"""Domain randomisation: a reacher's policy is trained on models that differ in masses, damping and gears.

    python examples/domain_randomisation.py

Every episode has numbers of its own, and the gradient of the return goes through Warp's steps with these numbers. The
policy is tried on models that it has not seen. Expect the mean return there to rise from -34 to -9.
"""

import torch
import tyro
from torch import nn

from mage_diffsim.envs import make_physics, make_task

NAMES = "body_mass", "dof_damping", "actuator_gear"


def main(iterations: int = 60, n: int = 128, spread: float = 0.7) -> None:
    task = make_task("Reacher")
    physics = make_physics(task, "warp", parameters=NAMES)
    own = physics.parameters()

    def drawn(generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The model's numbers times random factors, [n, ...]: one factor per field and environment."""
        factors = (spread * torch.randn(n, len(NAMES), generator=generator)).exp()
        return {name: x * factors[:, i].view(n, *[1] * x.ndim) for i, (name, x) in enumerate(own.items())}

    def returns(policy: nn.Module, numbers: dict[str, torch.Tensor], generator: torch.Generator) -> torch.Tensor:
        """The return of each episode, [n]."""
        state, total = physics.reset(n, generator), torch.zeros(n)
        for _ in range(task.horizon):
            obs = task.observe(state)
            action = policy(obs)
            state = physics.step(state, action, numbers)
            total = total + task.reward(obs, action, task.observe(state))
        return total

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    layers = nn.Linear(task.obs_dim, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, task.action_dim)
    policy = nn.Sequential(*layers, nn.Tanh())
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for iteration in range(iterations + 1):
        if iteration % 20 == 0:
            unseen = torch.Generator().manual_seed(1)
            with torch.no_grad():
                tried = returns(policy, drawn(unseen), unseen)
            print(f"iteration {iteration}: mean return {tried.mean():.2f} on unseen models, worst {tried.min():.2f}")
        optimizer.zero_grad()
        (-returns(policy, drawn(generator), generator).mean()).backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()


if __name__ == "__main__":
    tyro.cli(main)
