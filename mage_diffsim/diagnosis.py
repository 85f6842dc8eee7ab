"""Diagnosis of a critic: its losses, its values and the sizes of its gradients."""

from __future__ import annotations

import torch

from mage_diffsim.agent import Agent
from mage_diffsim.buffer import Batch
from mage_diffsim.draws import Draws
from mage_diffsim.dynamics import Imagined
from mage_diffsim.shapes import Float, Tensor


def diagnose(agent: Agent, batch: Batch, draws: Draws, probe: Float[Tensor, "R B O"]) -> dict[str, Float[Tensor, " R"]]:
    """What the critic looks like on one batch: losses, values and the sizes of its gradients, each of shape [R].

    ``grad/dynamics_norm`` is the root mean square over the batch of the Frobenius norm of d next_obs / d action,
    estimated with one backward pass: with v standard normal, E ||v^T J||^2 = ||J||_F^2.

    Args:
        agent: whose critic is looked at.
        batch: transitions.
        draws: the random numbers of one critic update.
        probe: standard normal numbers.
    """
    target = agent.target(batch, draws)
    losses, _ = agent.critic_gradient(batch, target, draws)
    action = target.action.detach().clone().requires_grad_()
    q = agent.min_q(batch.obs, action)
    (q_gradient,) = torch.autograd.grad(q.sum(), action)
    metrics = {
        "loss/critic": losses.total.sum(dim=1),
        "loss/td": losses.guarded(),
        "td/abs_error": (target.y - q.detach()).abs().mean(dim=-1),
        "q/mean": q.detach().mean(dim=-1),
        "grad/q": q_gradient.norm(dim=-1).mean(dim=-1),
    }
    if target.action_gradient is None:
        return metrics
    metrics["grad/target"] = target.action_gradient.norm(dim=-1).mean(dim=-1)
    metrics["grad/td_error"] = (target.action_gradient - q_gradient).norm(dim=-1).mean(dim=-1)

    # Fig. 5 beside grad_a Q: d Q(s'(a), pi(s'(a))) / d a, through the dynamics, and d r(s, a, s'(a)) / d a
    imagined = agent.dynamics.step(Imagined(batch.obs, batch.state), action, draws.imagine)
    (probed,) = torch.autograd.grad(imagined.obs, action, probe, retain_graph=True)
    squared = probed.square().sum(dim=-1)
    metrics["grad/dynamics_norm"] = _finite_mean(squared).sqrt()
    next_q = agent.min_q(imagined.obs, agent.policy(imagined.obs))
    (through,) = torch.autograd.grad(next_q.sum(), action, retain_graph=True)
    metrics["grad/q_through_dynamics"] = _finite_mean(through.norm(dim=-1))
    reward = agent.reward(batch.obs, action, imagined.obs)
    reward_gradient = torch.zeros_like(action)
    if reward.requires_grad:
        (reward_gradient,) = torch.autograd.grad(reward.sum(), action, materialize_grads=True)
    metrics["grad/reward"] = reward_gradient.norm(dim=-1).mean(dim=-1)

    # ours: what the next state's action alone would change, grad_a' Q(s', a')
    next_obs = imagined.obs.detach()
    next_action = agent.policy(next_obs).detach().requires_grad_()
    (next_gradient,) = torch.autograd.grad(agent.min_q(next_obs, next_action).sum(), next_action)
    metrics["grad/q_next"] = next_gradient.norm(dim=-1).mean(dim=-1)
    return metrics


def _finite_mean(rows: Float[Tensor, "R B"]) -> Float[Tensor, " R"]:
    """Mean over the finite entries of each run; 0 where there are none."""
    finite = rows.isfinite()
    return torch.where(finite, rows, 0.0).sum(dim=-1) / finite.sum(dim=-1).clamp(min=1)
