"""A PPO of your own on the batched environment: 64 pendulums on carts, stepped as one tensor.

    python examples/ppo.py

Expect the full return of 1000 within 40 iterations, in less than a minute.
"""

import torch
import tyro
from torch import nn
from torch.distributions import Normal

from mage_diffsim.envs import BatchedEnv, make_physics, make_task, rollout


def network(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


def main(iterations: int = 40, n: int = 64, window: int = 32, gamma: float = 0.99, lam: float = 0.95) -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    task = make_task("InvertedPendulum")
    physics = make_physics(task, "warp")
    env = BatchedEnv(task, physics, n, [generator])
    actor, critic = network(task.obs_dim, task.action_dim), network(task.obs_dim, 1)
    log_std = torch.full((task.action_dim,), -0.5, requires_grad=True)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters(), log_std])
    test_states = physics.reset(16, generator)

    obs = env.reset()
    for iteration in range(iterations + 1):
        if iteration % 10 == 0:
            print(f"iteration {iteration}: return {rollout(physics, actor, test_states).returns.mean():.0f}")
        steps = []
        for _ in range(window):
            with torch.no_grad():
                policy = Normal(actor(obs), log_std.exp())
                action = policy.sample()  # step() clips it to [-1, 1]
                t, value = env.step(action), critic(obs)[:, 0]
                delta = t.reward + gamma * ~t.terminated * critic(t.next_obs)[:, 0] - value
                steps.append((obs, action, policy.log_prob(action), value, delta, t.terminated | t.truncated))
            obs = env.obs  # after resets; t.next_obs is before them
        observations, actions, log_probs, values, deltas, ends = (torch.stack(x) for x in zip(*steps, strict=True))
        advantages, advantage = torch.zeros_like(deltas), torch.zeros(n)
        for k in reversed(range(window)):  # generalised advantage estimation
            advantage = advantages[k] = deltas[k] + gamma * lam * ~ends[k] * advantage
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - iteration / (iterations + 1))
        data = [x.flatten(0, 1) for x in (observations, actions, log_probs, advantages, advantages + values)]
        for rows in [rows for _ in range(8) for rows in torch.randperm(n * window).split(512)]:
            o, a, old, adv, target = (x[rows] for x in data)
            ratio = (Normal(actor(o), log_std.exp()).log_prob(a) - old).sum(-1).exp()
            adv = (adv - adv.mean()) / (adv.std() + 1e-8)
            gain = torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
            optimizer.zero_grad()
            (0.5 * (critic(o)[:, 0] - target).square().mean() - gain).backward()
            nn.utils.clip_grad_norm_([*actor.parameters(), *critic.parameters()], 0.5)
            optimizer.step()


if __name__ == "__main__":
    tyro.cli(main)
