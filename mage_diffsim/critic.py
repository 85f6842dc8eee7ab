"""The critic step of MAGE: the TD target, its action-gradient, and the losses on both.

With a = pi(s), s' ~ dynamics(s, a), a' = target policy of s' plus clipped noise (Algorithm 2, Eq. 13):

    y               = r(s, a, s') + gamma * (1 - terminated(s')) * min_i Q_target_i(s', a')
    delta_i         = y - Q_i(s, a)
    grad_a delta_i  = grad_a y - grad_a Q_i(s, a)
    loss_i          = huber(||grad_a delta_i||_2) + lambda * huber(|delta_i|)

Neither y nor grad_a y holds a critic parameter, so both are computed once, by one first-order backward pass shared by
the critics, and detached. Only grad_a Q_i needs a second-order pass. The dynamics therefore only ever have to supply a
first-order action derivative. The result equals the published, undetached formulation (a test holds them equal).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from mage_diffsim.autodiff import value_and_gradients, values_and_pull_back
from mage_diffsim.dynamics import Dynamics, Imagined
from mage_diffsim.methods import GRADIENT_FREE, WITHOUT_LAMBDA, CriticLoss, LossWeights
from mage_diffsim.shapes import Bool, Float, Tensor

RewardFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""r(obs [R,B,O], action [R,B,A], next_obs [R,B,O]) -> [R,B]."""
Bootstrap = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, tuple[Tensor, ...]]]
"""obs [R,B,O], action [R,B,A], next_obs [R,B,O] and a number n -> y [R,B] and its partial derivatives with respect to
the first n of action, next_obs and obs."""


class Derived(NamedTuple):
    """The detached TD target of a batch and its derivatives, which in some rows may not be finite."""

    y: Float[Tensor, "R B"]
    """TD target."""
    action: Float[Tensor, "R B A"]
    """The action that y belongs to."""
    action_gradient: Float[Tensor, "R B A"] | None = None
    """grad_a y; None for losses that do not use it."""
    start_gradient: Float[Tensor, "R B D"] | None = None
    """Gradient of y with respect to the simulator state (oracle) or the observation (learned), for ``sobolev``."""


class Target(NamedTuple):
    """The TD target and its derivatives as the critics see them: zero where they are not finite."""

    y: Float[Tensor, "R B"]
    action: Float[Tensor, "R B A"]
    action_gradient: Float[Tensor, "R B A"] | None
    start_gradient: Float[Tensor, "R B D"] | None
    finite: Bool[Tensor, "R B"]
    """False where y or a derivative is not finite; such rows are masked from the update."""


class Start(NamedTuple):
    """Where imagination starts, as a function of what ``sobolev`` differentiates with respect to."""

    at: Callable[[Tensor], Imagined]
    x: Float[Tensor, "R B D"]
    """The simulator state (oracle) or the observation (learned)."""


def td_target(
    at: Imagined,
    action: Float[Tensor, "R B A"],
    *,
    dynamics: Dynamics,
    noise: Float[Tensor, "R B O"] | None,
    bootstrap: Bootstrap,
    differentiate: bool = True,
    start: Start | None = None,
) -> Derived:
    """The TD target of imagined transitions and its gradient, by one first-order backward pass.

    The target is a function of s'. What it is and its partial derivatives come from ``bootstrap``; the dynamics alone
    are recorded, and pull the derivative with respect to s' back to the action. So ``bootstrap`` can be compiled where
    the dynamics are a simulator outside torch.

    Args:
        at: where imagination starts.
        action: pi(s), shape [R, B, A].
        dynamics: imagines s'.
        noise: standard normal numbers for it, shape [R, B, O]; None takes the mean.
        bootstrap: the target and its partial derivatives (:func:`bootstrapped`).
        differentiate: whether to compute gradients.
        start: given if the gradient with respect to it is wanted; imagination then starts there, not at ``at``.
    """
    x = () if start is None else (start.x,)

    def imagine(action: Tensor, *x: Tensor) -> tuple[Tensor, ...]:
        here = at if start is None else start.at(*x)
        return (dynamics.step(here, action, noise).obs, here.obs)[: 1 + len(x)]

    if not differentiate:
        with torch.no_grad():
            (next_obs,) = imagine(action)
        return Derived(bootstrap(at.obs, action, next_obs, 0)[0], action)
    (next_obs, *obs), pull_back = values_and_pull_back(imagine, action, *x)
    y, (direct, *partial) = bootstrap(obs[0] if obs else at.obs, action, next_obs, 2 + len(x))
    through, *start_gradient = pull_back(partial)
    return Derived(y, action, direct + through, *start_gradient)


def bootstrapped(
    obs: Float[Tensor, "R B O"],
    action: Float[Tensor, "R B A"],
    next_obs: Float[Tensor, "R B O"],
    derivatives: int,
    *,
    reward: RewardFunction,
    terminated: Callable[[Tensor], Tensor],
    target_value: Callable[[Tensor], Tensor],
    gamma: float,
) -> tuple[Float[Tensor, "R B"], tuple[Tensor, ...]]:
    """y = r(s, a, s') + gamma (1 - terminated(s')) min_i Q_target_i(s', a') and its partial derivatives.

    Args:
        obs: s.
        action: a.
        next_obs: s'.
        derivatives: with respect to how many of a, s' and s, in this order.
        reward: r(s, a, s').
        terminated: whether s' ends the episode; a hard mask without gradient.
        target_value: s' [R, B, O] -> min_i Q_target_i(s', a') [R, B], differentiable through a'.
        gamma: discount factor.
    """

    def y_of(action: Tensor = action, next_obs: Tensor = next_obs, obs: Tensor = obs) -> Tensor:
        ended = terminated(next_obs)
        # The target networks see an ended row's s instead of its s', whose value may overflow and is not used.
        value = target_value(torch.where(ended.unsqueeze(-1), obs, next_obs))
        return reward(obs, action, next_obs) + gamma * value.masked_fill(ended, 0.0)

    if not derivatives:
        with torch.no_grad():
            return y_of(), ()
    return value_and_gradients(y_of, *(action, next_obs, obs)[:derivatives])


def masked(derived: Derived) -> Target:
    """The target with zeros for what is not finite, and which rows are finite in all parts."""
    finite = torch.isfinite(derived.y)
    gradients = {"action_gradient": derived.action_gradient, "start_gradient": derived.start_gradient}
    for name, gradient in gradients.items():
        if gradient is not None:
            finite = finite & torch.isfinite(gradient).all(dim=-1)
            gradients[name] = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
    return Target(torch.nan_to_num(derived.y, 0.0, 0.0, 0.0), derived.action, finite=finite, **gradients)


def clip_norm(gradient: Float[Tensor, "R B A"], bound: float) -> Float[Tensor, "R B A"]:
    """Each sample's gradient scaled to a 2-norm of at most ``bound``; 0 leaves them as they are."""
    if not bound:
        return gradient
    norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    return gradient * (bound / norm.clamp(min=bound))


def huber(x: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """x^2 / 2 up to |x| = 1, |x| - 1/2 beyond."""
    return torch.nn.functional.smooth_l1_loss(x, torch.zeros_like(x), reduction="none")


def huber_norm(x: Float[Tensor, "*batch A"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch A"]]:
    """huber(||x||_2) and its derivative x / max(||x||_2, 1)."""
    squared = x.square().sum(dim=-1)
    norm = squared.clamp(min=1.0).sqrt()
    return torch.where(squared <= 1.0, 0.5 * squared, norm - 0.5), x / norm.unsqueeze(-1)


def control_gradient(
    loss: CriticLoss, gradient: Float[Tensor, "R B A"], finite: Bool[Tensor, "R B"], control: Tensor | None
) -> tuple[Float[Tensor, "R B A"], Bool[Tensor, "R B"]]:
    """The gradient that a loss is shown, its own or a negative control's, and which rows may be trained on.

    Args:
        loss: ``shuffled`` permutes the batch; ``random`` keeps each norm and takes another direction; any other loss
            gets ``gradient`` back.
        gradient: grad_a y.
        finite: rows whose own target and gradient are finite.
        control: permutations [R, B] for ``shuffled``, standard normal directions [R, B, A] for ``random``.
    """
    if loss == "shuffled":
        assert control is not None
        shuffled = gradient.gather(1, control.unsqueeze(-1).expand_as(gradient))
        return shuffled, finite & finite.gather(1, control)
    if loss == "random":
        assert control is not None
        norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        return control * (norm / torch.linalg.vector_norm(control, dim=-1, keepdim=True).clamp(min=1e-12)), finite
    return gradient, finite


def term_weights(
    loss: CriticLoss, weighting: LossWeights, lam: Float[Tensor, "R 1 1"]
) -> tuple[Float[Tensor, "R 1 1"], Float[Tensor, "R 1 1"]]:
    """Weights of the gradient term and of the TD term, of each run.

    ``paper`` has 1 and lambda (Algorithm 2). ``authors`` has 0.5 / lambda and 0.5: the published code weighs its terms
    by 5 = 1 / lambda and 1, and halves both. Where x^2 stands for huber(x) (``squared``), it halves no second time, so
    that x^2 / 2 has the weights 1 / lambda and 1. A loss without lambda has one weight for all of it, 1 or 0.5.

    Args:
        loss: the critic loss.
        weighting: ``paper`` or ``authors``.
        lam: lambda of each run; above 0 for ``authors``, if the loss has a lambda.
    """
    if loss in WITHOUT_LAMBDA:
        whole = torch.full_like(lam, 1.0 if weighting == "paper" else 0.5)
        return whole, whole
    if weighting == "paper":
        return torch.ones_like(lam), lam
    td = torch.full_like(lam, 1.0 if loss == "squared" else 0.5)
    return td / lam, td


class SampleLoss(NamedTuple):
    """Loss per sample and critic, and its derivatives."""

    value: Float[Tensor, "R C B"]
    by_delta: Float[Tensor, "R C B"]
    """With respect to the TD error."""
    by_action_error: Float[Tensor, "R C B A"] | None = None
    """With respect to its action-gradient; None for losses that do not use it."""


def critic_loss(
    loss: CriticLoss,
    delta: Float[Tensor, "R C B"],
    action_error: Float[Tensor, "R C B A"] | None,
    weights: tuple[Float[Tensor, "R 1 1"], Float[Tensor, "R 1 1"]],
    taylor_variance: float,
) -> SampleLoss:
    """Loss per sample and critic, with the weights g of the gradient term and t of the TD term.

    Args:
        loss: ``mage`` (and its controls ``shuffled``, ``random``): g huber(||grad_a delta||) + t huber(delta);
            ``td``: t huber(delta);
            ``squared``: the same as ``mage`` with x^2 / 2 for huber(x);
            ``taylor``: t delta^2 / 2 + g variance ||grad_a delta||^2 / 2, with g = t = 1 the expected squared TD error
            under Gaussian actions to first order (Taylor TD);
            ``sobolev``: ``mage``, to which :func:`start_loss` is added.
        delta: TD errors.
        action_error: grad_a delta.
        weights: g and t of each run (:func:`term_weights`).
        taylor_variance: the action variance of ``taylor``.
    """
    gradient_weight, td_weight = weights
    if loss in GRADIENT_FREE:
        return SampleLoss(td_weight * huber(delta), td_weight * delta.clamp(-1.0, 1.0))
    assert action_error is not None
    if loss in ("squared", "taylor"):
        scale = gradient_weight * (taylor_variance if loss == "taylor" else 1.0)
        value = 0.5 * (scale * action_error.square().sum(dim=-1) + td_weight * delta.square())
        return SampleLoss(value, td_weight * delta, scale.unsqueeze(-1) * action_error)
    size, by_error = huber_norm(action_error)
    value = gradient_weight * size + td_weight * huber(delta)
    return SampleLoss(value, td_weight * delta.clamp(-1.0, 1.0), gradient_weight.unsqueeze(-1) * by_error)


def start_loss(
    start_error: Float[Tensor, "R C B D"], weights: tuple[Float[Tensor, "R 1 1"], Float[Tensor, "R 1 1"]]
) -> Float[Tensor, "R C B"]:
    """What ``sobolev`` adds per sample: g huber of the norm of delta's gradient by where imagination starts."""
    return weights[0] * huber_norm(start_error)[0]


def masked_mean(per_sample: Float[Tensor, "R C B"], finite: Bool[Tensor, "R B"]) -> Float[Tensor, "R C"]:
    """Mean over the rows whose target is finite; zero for a run that has none."""
    return masked_shares(per_sample, finite).sum(dim=-1)


def masked_shares(per_sample: Float[Tensor, "R C B *A"], finite: Bool[Tensor, "R B"]) -> Float[Tensor, "R C B *A"]:
    """What each row adds to the mean over the rows whose target is finite."""
    rows = (len(finite), 1, finite.shape[1], *(1,) * (per_sample.ndim - 3))
    count = finite.sum(dim=1).clamp(min=1).view(-1, *(1,) * (per_sample.ndim - 1))
    return torch.where(finite.view(rows), per_sample, 0.0) / count
