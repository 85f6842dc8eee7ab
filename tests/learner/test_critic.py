"""The critic's losses and the TD target: values from closed forms, derivatives from differences."""

from __future__ import annotations

import functools
import itertools
from typing import get_args

import pytest
import torch

from mage_diffsim.critic import (
    bootstrapped,
    clip_norm,
    control_gradient,
    critic_loss,
    huber,
    huber_norm,
    masked,
    masked_mean,
    start_loss,
    td_target,
    term_weights,
)
from mage_diffsim.dynamics import Dynamics, Imagined
from mage_diffsim.methods import CriticLoss
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.tiny import HYPER


class Linear(Dynamics):
    """s' = A s + B a: everything about the target is known in closed form."""

    reads_state = False

    def __init__(self) -> None:
        self.a = torch.tensor([[0.9, 0.1], [0.0, 0.8]], dtype=torch.float64)
        self.b = torch.tensor([[0.0], [0.5]], dtype=torch.float64)

    def step(self, at, action, noise=None):
        return Imagined(at.obs @ self.a.T + action @ self.b.T, None)


def quadratic_target(obs, action, **changes):
    """r = -|a|^2 / 2, Q_target(s') = p . s' + |s'|^2 / 2."""
    p = torch.tensor([0.3, -0.7], dtype=torch.float64)
    dynamics = changes.pop("dynamics", Linear())
    settings = {
        "reward": lambda obs, action, next_obs: -0.5 * action.square().sum(-1),
        "terminated": lambda next_obs: next_obs[..., 0] > 100.0,
        "target_value": lambda next_obs: next_obs @ p + 0.5 * next_obs.square().sum(-1),
        "gamma": 0.9,
    } | changes
    bootstrap = functools.partial(bootstrapped, **settings)
    noise = torch.zeros_like(obs)
    return masked(td_target(Imagined(obs, None), action, dynamics=dynamics, noise=noise, bootstrap=bootstrap))


def test_target_and_its_action_gradient_have_the_closed_form():
    obs, action = torch.randn(2, 5, 2, dtype=torch.float64), torch.randn(2, 5, 1, dtype=torch.float64)
    target = quadratic_target(obs, action)
    linear, p = Linear(), torch.tensor([0.3, -0.7], dtype=torch.float64)
    next_obs = obs @ linear.a.T + action.detach() @ linear.b.T
    value = next_obs @ p + 0.5 * next_obs.square().sum(-1)
    torch.testing.assert_close(target.y, -0.5 * action.detach().square().sum(-1) + 0.9 * value)
    torch.testing.assert_close(target.action_gradient, -action.detach() + 0.9 * (p + next_obs) @ linear.b)
    assert target.finite.all() and not target.y.requires_grad and not target.action_gradient.requires_grad


def test_termination_masks_bootstrap_and_its_gradient():
    obs, action = torch.randn(1, 5, 2, dtype=torch.float64), torch.randn(1, 5, 1, dtype=torch.float64)
    target = quadratic_target(obs, action, terminated=lambda next_obs: torch.ones_like(next_obs[..., 0]).bool())
    torch.testing.assert_close(target.y, -0.5 * action.detach().square().sum(-1))
    torch.testing.assert_close(target.action_gradient, -action.detach())


def test_float64_targets_are_not_rounded_to_float32():
    obs, action = torch.zeros(1, 1, 2, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    target = quadratic_target(
        obs, action, gamma=0.99, target_value=lambda next_obs: next_obs.sum(-1) + torch.ones(1, 1, dtype=torch.float64)
    )
    assert target.y.item() == 0.99  # 0.99 in float32 is 0.99000001


def test_rows_with_a_derivative_that_is_not_finite_are_marked_and_zeroed():
    obs = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    action = torch.zeros(1, 2, 1, dtype=torch.float64)

    class Root(Linear):  # d sqrt(|s|^2 + a^2) / da is 0/0 in row 1
        def step(self, at, action, noise=None):
            return Imagined((at.obs.square().sum(-1, keepdim=True) + action.square()).sqrt().expand_as(at.obs), None)

    target = quadratic_target(obs, action, dynamics=Root())
    assert target.finite.tolist() == [[True, False]]
    assert torch.isfinite(target.action_gradient).all() and torch.isfinite(target.y).all()


def test_masked_mean_ignores_marked_rows():
    per_sample = torch.tensor([[[1.0, torch.nan, 3.0]]])
    assert masked_mean(per_sample, torch.tensor([[True, False, True]])).item() == 2.0
    assert masked_mean(per_sample, torch.zeros(1, 3, dtype=torch.bool)).item() == 0.0


def test_huber_norm_is_huber_of_the_norm_with_finite_derivatives_at_zero():
    x = torch.randn(200, 3, dtype=torch.float64)
    torch.testing.assert_close(huber_norm(x)[0], huber(x.norm(dim=-1)))
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(huber_norm(zero)[0].sum(), zero, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), zero)
    assert torch.equal(first.detach(), torch.zeros_like(first)) and torch.isfinite(second).all()
    x = (torch.randn(9, 3, dtype=torch.float64) * 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: huber_norm(x)[0], x)
    torch.testing.assert_close(torch.autograd.grad(huber_norm(x)[0].sum(), x)[0], huber_norm(x)[1])


@pytest.mark.parametrize("loss", get_args(CriticLoss))
def test_the_derivatives_of_every_loss_are_those_of_autograd(loss):
    delta = (2.0 * torch.randn(2, 2, 50, dtype=torch.float64)).requires_grad_()
    error = torch.randn(2, 2, 50, 3, dtype=torch.float64).requires_grad_()
    weights = torch.rand(2, 1, 1, dtype=torch.float64), torch.rand(2, 1, 1, dtype=torch.float64)
    found = critic_loss(loss, delta, error, weights, 0.3)
    expected = torch.autograd.grad(found.value.sum(), (delta, error), allow_unused=True)
    torch.testing.assert_close(found.by_delta, expected[0])
    assert (found.by_action_error is None) == (expected[1] is None) == (loss == "td")
    if found.by_action_error is not None:
        torch.testing.assert_close(found.by_action_error, expected[1])


def test_every_loss_has_its_formula():
    delta = torch.tensor([[[0.5, -3.0]]], dtype=torch.float64)
    g = torch.tensor([[[[0.3, 0.4], [3.0, 4.0]]]], dtype=torch.float64)
    s = torch.tensor([[[[0.0, 0.1], [0.0, 2.0]]]], dtype=torch.float64)
    lam = torch.full((1, 1, 1), 0.2, dtype=torch.float64)

    def value(name, weighting="paper"):
        weights = term_weights(name, weighting, lam)
        value = critic_loss(name, delta, g, weights, 0.25).value
        return (value + start_loss(s, weights) if name == "sobolev" else value)[0, 0].tolist()

    mage = [0.125 + 0.2 * 0.125, 4.5 + 0.2 * 2.5]
    assert value("td") == pytest.approx([0.125, 2.5])
    for name in ("mage", "shuffled", "random"):
        assert value(name) == pytest.approx(mage)
    assert value("squared") == pytest.approx([0.125 + 0.2 * 0.125, 12.5 + 0.2 * 4.5])
    assert value("taylor") == pytest.approx([0.125 + 0.125 * 0.25, 4.5 + 0.125 * 25])
    assert value("sobolev") == pytest.approx([mage[0] + 0.005, mage[1] + 1.5])
    for name in get_args(CriticLoss):  # lambda 0.2: 2.5 times as much, and half where there is no lambda
        factor = {"td": 0.5, "taylor": 0.5, "squared": 5.0}.get(name, 2.5)
        assert value(name, "authors") == pytest.approx([factor * x for x in value(name)])


@pytest.mark.parametrize("lam", [0.02, 0.05, 0.2, 1.0])
def test_the_authors_weigh_the_gradient_term_by_half_of_one_over_lambda_and_the_td_term_by_half(lam):
    weights = term_weights("mage", "authors", torch.full((1, 1, 1), lam, dtype=torch.float64))
    assert [w.item() for w in weights] == pytest.approx([0.5 / lam, 0.5])


def test_taylor_is_the_expected_squared_error_under_gaussian_actions():
    """For delta linear in the action the first-order expansion is exact: compare with quadrature over the Gaussian."""
    nodes, weights = torch.tensor([-(3.0**0.5), 0.0, 3.0**0.5]), torch.tensor([1 / 6, 2 / 3, 1 / 6])
    slope, offset, variance = torch.tensor([1.3, -0.4]), 0.7, 0.25
    expected = sum(
        wi * wj * 0.5 * (offset + slope @ (variance**0.5 * torch.stack([xi, xj]))) ** 2
        for (xi, wi), (xj, wj) in itertools.product(list(zip(nodes, weights, strict=True)), repeat=2)
    )
    loss = critic_loss(
        "taylor",
        torch.full((1, 1, 1), offset),
        slope.view(1, 1, 1, 2),
        (torch.ones(1, 1, 1), torch.ones(1, 1, 1)),
        variance,
    )
    assert loss.value.item() == pytest.approx(float(expected), rel=1e-5)


def test_controls_keep_what_they_should():
    gradient = torch.randn(2, 6, 3)
    order = torch.rand(2, 6).argsort(dim=-1)
    finite = torch.ones(2, 6, dtype=torch.bool)
    finite[0, 3] = False
    shuffled, allowed = control_gradient("shuffled", gradient, finite, order)
    # neither the bad row nor the row that is shown its gradient
    assert (~allowed[0]).nonzero().squeeze(-1).tolist() == sorted({3, int((order[0] == 3).nonzero())})
    assert allowed[1].all()
    for r in range(2):
        assert torch.equal(shuffled[r], gradient[r, order[r]])
    randomised, _ = control_gradient("random", gradient, finite, torch.randn(2, 6, 3))
    torch.testing.assert_close(randomised.norm(dim=-1), gradient.norm(dim=-1))
    assert torch.nn.functional.cosine_similarity(randomised, gradient, dim=-1).max() < 0.999
    assert control_gradient("mage", gradient, finite, None)[0] is gradient


def test_clip_norm_bounds_each_sample_and_keeps_its_direction():
    gradient = torch.tensor([[[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]])
    clipped = clip_norm(gradient, 1.0)
    torch.testing.assert_close(clipped, torch.tensor([[[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]]))
    assert clip_norm(gradient, 0.0) is gradient


@pytest.mark.parametrize("loss", get_args(CriticLoss))
@pytest.mark.parametrize("dynamics", ["learned", "oracle", "hybrid-oracle-gradients", "hybrid-learned-gradients"])
def test_every_loss_on_every_dynamics_has_the_gradient_that_differences_give(loss, dynamics):
    config = make_config(
        "Pendulum", loss=loss, dynamics=dynamics, steps=40, float64=True, hyper=HYPER | {"critic_hidden": (7, 6)}
    )
    trainer = Trainer(config)
    for _ in range(26):
        trainer.step()
    agent = trainer.agent
    (draws,) = trainer.draw(1)
    batch = trainer.buffer.gather(draws.index)
    target = agent.target(batch, draws)
    _, gradient = agent.critic_gradient(batch, target, draws)
    direction = torch.randn(agent.critic.shape, dtype=torch.float64)
    start, step = agent.critic.clone(), 1e-6

    def loss_at(parameters):
        agent.critic.copy_(parameters)
        return agent.critic_gradient(batch, target, draws)[0].total.sum()

    difference = (loss_at(start + step * direction) - loss_at(start - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(difference.item(), rel=1e-6)
