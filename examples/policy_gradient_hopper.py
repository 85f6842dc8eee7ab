"""A SHAC-like policy gradient: the return of short rollouts, differentiated through Warp's Hopper.

    python examples/policy_gradient_hopper.py

An update moves 64 hoppers by 16 steps, adds a critic's value of where they end, and follows that sum's gradient through
the simulator (Xu et al., ICLR 2022). Expect the return of 300 steps to rise from 35 to above 200, with ups and downs.
"""

import torch
import tyro
from torch import nn

from mage_diffsim.envs import make_physics, make_task, rollout


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, outputs))


def main(updates: int = 200, n: int = 64, window: int = 16, gamma: float = 0.99, lam: float = 0.95) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    task = make_task("Hopper")
    physics = make_physics(task, "warp")
    actor, critic = network(task.obs_dim, task.action_dim).append(nn.Tanh()), network(task.obs_dim, 1)
    list(actor.parameters())[-2].data *= 0.01  # begin with actions near 0
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=5e-4, betas=(0.7, 0.95))
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=2e-3)
    test_states, state = physics.reset(16, generator), physics.reset(n, generator)

    for update in range(updates + 1):
        if update % 25 == 0:
            print(f"update {update}: return {rollout(physics, actor, test_states, 300).returns.mean():.1f}")
        objective, discount, steps, state = torch.zeros(n), torch.ones(n), [], state.detach()
        for _ in range(window):
            obs = task.observe(state)
            action = actor(obs) + 0.1 * torch.randn(n, task.action_dim)
            next_state = physics.step(state, action)  # autograd goes on through the simulator
            next_obs = task.observe(next_state)
            reward, ended = task.reward(obs, action, next_obs), task.terminated(next_obs)
            objective = objective + discount * reward
            discount = torch.where(ended, 1.0, discount * gamma)
            state = torch.where(ended[:, None], physics.reset(n, generator), next_state)
            steps.append((obs.detach(), reward.detach(), ended, next_obs.detach()))
        objective = objective + discount * critic(task.observe(state))[:, 0]
        actor_optimizer.zero_grad()
        (-objective.mean() / window).backward()
        nn.utils.clip_grad_norm_(actor.parameters(), 1.0, error_if_nonfinite=True)
        actor_optimizer.step()
        obs, reward, ended, next_obs = (torch.stack(x) for x in zip(*steps, strict=True))
        next_value, targets = critic(next_obs).detach()[..., 0], torch.zeros_like(reward)
        value = next_value[-1]
        for t in reversed(range(window)):  # TD(lambda)
            value = targets[t] = reward[t] + gamma * ~ended[t] * ((1 - lam) * next_value[t] + lam * value)
        for _ in range(16):
            critic_optimizer.zero_grad()
            (critic(obs)[..., 0] - targets).square().mean().backward()
            critic_optimizer.step()


if __name__ == "__main__":
    tyro.cli(main)
