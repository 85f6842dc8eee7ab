"""Inputs that try the steps of the tasks whose equations are written in torch, JAX and Warp."""

from __future__ import annotations

import torch


def samples(task, dtype=torch.float64, n=200):
    """States well beyond those an episode visits, actions beyond both bounds, and the exact bounds and zeros."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([20.0, 9.0] if task.name == "Pendulum" else [3.0, 5.0, 20.0, 9.0], dtype=torch.float64)
    state = scale * (2.0 * torch.rand(n, task.state_dim, dtype=torch.float64, generator=generator) - 1.0)
    action = 1.5 * (2.0 * torch.rand(n, task.action_dim, dtype=torch.float64, generator=generator) - 1.0)
    state[0] = 0.0
    action[0] = 0.0
    action[1], action[2] = 1.0, -1.0
    cotangent = torch.randn(n, task.state_dim, dtype=torch.float64, generator=generator)
    return state.to(dtype).requires_grad_(), action.to(dtype).requires_grad_(), cotangent.to(dtype)


def values_and_gradients(physics, state, action, cotangent):
    next_state = physics.step(state, action)
    return next_state.detach(), *torch.autograd.grad(next_state, (state, action), cotangent)
