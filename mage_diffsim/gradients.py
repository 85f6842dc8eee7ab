"""How good the critic's action-gradients are: Eq. 14's error and the cosine, against the oracle's true gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from mage_diffsim.envs.physics import Physics
from mage_diffsim.envs.spot_check import Transitions, find_cuts
from mage_diffsim.shapes import Bool, Float, Tensor


class TrueGradients(NamedTuple):
    """Trajectories of a policy with the true action-gradients of their empirical return; T steps, N episodes."""

    obs: Float[Tensor, "T N O"]
    """Observations."""
    actions: Float[Tensor, "T N A"]
    """Actions pi(s_t)."""
    discounted: Float[Tensor, "T N A"]
    """gamma^t grad_a G(s_t, a_t), with G the discounted return from step t to the end of the episode; NaN throughout if
    a function of the task cuts the gradient, 0 if the reward is constant."""
    alive: Bool[Tensor, "T N"]
    """Whether the episode was still running at step t."""


def true_action_gradients(
    physics: Physics,
    policy: Callable[[Tensor], Tensor],
    initial_state: Float[Tensor, "N S"],
    gamma: float,
    horizon: int | None = None,
) -> TrueGradients:
    """Differentiate the empirical discounted return of whole trajectories through the oracle (appendix D.2).

    An addition e_t to the action of step t changes the return from step t on and nothing before, so one backward pass
    of the return of the whole trajectory gives d G_0 / d e_t = gamma^t grad_a G(s_t, a_t) for every t at once.

    Args:
        physics: the differentiable oracle.
        policy: obs [N, O] -> action [N, A], differentiable.
        initial_state: where the trajectories start, shape [N, S].
        gamma: discount factor.
        horizon: number of steps; None is the task's.
    """
    task, state, cut = physics.task, initial_state, False
    alive = torch.ones(state.shape[0], dtype=torch.bool, device=state.device)
    total = state.new_zeros(state.shape[0])
    record: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with torch.enable_grad():
        for t in range(task.horizon if horizon is None else horizon):
            obs = task.observe(state)
            addition = state.new_zeros(state.shape[0], task.action_dim).requires_grad_()
            action = policy(obs.clone()) + addition  # the policy gets a copy, to edit as it likes
            moved = physics.step(state, action)
            cut |= not moved.requires_grad
            finite = moved.isfinite().all(dim=-1)
            state = torch.where(finite.unsqueeze(-1), moved, initial_state)
            next_obs = task.observe(state)
            cut |= state.requires_grad and not next_obs.requires_grad
            total = total + gamma**t * torch.where(alive & finite, task.reward(obs, action, next_obs), 0.0)
            record.append((obs.detach(), action.detach(), addition, alive))
            alive = alive & finite & ~task.terminated(next_obs)
            # An ended episode goes on from its start: what its state would become must not reach the backward pass.
            state = torch.where(alive.unsqueeze(-1), state, initial_state)
            if t % 32 == 31 and not alive.any():
                break
        observations, actions, additions, running = zip(*record, strict=True)
        if not total.requires_grad:  # the reward is constant, or says nothing of what it depends on
            at = Transitions(*(x.detach().double() for x in (initial_state, action, obs, next_obs)))
            cut |= any(found.function == "reward" for found in find_cuts(task, at, step=False))
        if total.requires_grad and not cut:
            gradients = torch.autograd.grad(total.sum(), additions, materialize_grads=True)
        else:
            gradients = tuple(torch.full_like(a, torch.nan if cut else 0.0) for a in additions)
    return TrueGradients(torch.stack(observations), torch.stack(actions), torch.stack(gradients), torch.stack(running))


class GradientErrors(NamedTuple):
    """Per episode, shape [N]."""

    error: Float[Tensor, " N"]
    """Eq. 14: 1/H sum_t gamma^t ||grad_a G(s_t, a_t) - grad_a Q(s_t, a_t)||_1; not finite where the truth is not."""
    cosine: Float[Tensor, " N"]
    """Mean over steps of cos(grad_a G, grad_a Q), with one action the agreement in sign; NaN where the true gradient is
    zero throughout."""


def gradient_error(true: TrueGradients, critic_gradient: Float[Tensor, "T N A"], gamma: float) -> GradientErrors:
    """Compare grad_a Q at the points of ``true`` with the true gradients there; finished episodes are cut."""
    steps = torch.arange(true.alive.shape[0], dtype=true.discounted.dtype, device=true.discounted.device)
    discount = (gamma**steps).view(-1, 1, 1)
    length = true.alive.sum(dim=0)
    difference = (true.discounted - discount * critic_gradient).abs().sum(dim=-1)
    error = torch.where(true.alive, difference, 0.0).sum(dim=0) / length
    cosine = torch.nn.functional.cosine_similarity(true.discounted, discount * critic_gradient, dim=-1, eps=1e-30)
    counted = true.alive & (true.discounted != 0).any(dim=-1)
    n = counted.sum(dim=0)
    mean_cosine = torch.where(counted, cosine, 0.0).sum(dim=0) / n.clamp(min=1)
    return GradientErrors(error, torch.where(n > 0, mean_cosine, torch.nan))


def gradient_errors_of_runs(
    true: TrueGradients, min_q: Callable[[Tensor, Tensor], Tensor], runs: int, gamma: float, dtype: torch.dtype
) -> dict[str, Float[Tensor, " R"]]:
    """Eq. 14 and the cosine of grad_a min_i Q_i, the gradient that the actor follows, for each run.

    Args:
        true: trajectories of all runs, run-major.
        min_q: (obs [R, B, O], action [R, B, A]) -> [R, B].
        runs: number R of runs.
        gamma: discount factor.
        dtype: of ``min_q``.

    Returns:
        ``error`` and ``error_median`` over trajectories, ``cosine``, and ``nonfinite``, the trajectories left out.
    """
    episodes = true.alive.shape[1] // runs

    def by_run(x: Tensor) -> Tensor:  # [T, R*E, D] -> [R, T*E, D]
        return x.unflatten(1, (runs, episodes)).transpose(0, 1).flatten(1, 2).to(dtype)

    action = by_run(true.actions).requires_grad_()
    (gradient,) = torch.autograd.grad(min_q(by_run(true.obs), action).sum(), action)
    gradient = gradient.unflatten(1, (-1, episodes)).transpose(0, 1).flatten(1, 2).to(torch.float64)
    compared = gradient_error(true, gradient, gamma)
    finite = compared.error.isfinite().view(runs, episodes)
    error = torch.where(finite, compared.error.view(runs, episodes), torch.nan)
    return {
        "error": error.nanmean(dim=1),
        "error_median": error.nanmedian(dim=1).values,
        "cosine": compared.cosine.view(runs, episodes).nanmean(dim=1),
        "nonfinite": (~finite).sum(dim=1),
    }
