"""Batched networks against ordinary modules; their second-order pass against autograd and differences."""

from __future__ import annotations

import pytest
import torch
from published import flatten, mlp

from mage_diffsim.networks import ALIGNMENT, MLP, ScalarPullback
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.tiny import HYPER


def taken(network: MLP) -> torch.Tensor:
    """Which of the flat parameters are a weight or a bias, [P]; the others are padding."""
    return network.join([torch.ones(1, n) for i, o in network.shapes for n in (i * o, o)])[0].bool()


def parameters(network: MLP, runs: int, copies: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.stack([network.initial(copies, generator, torch.float64) for _ in range(runs)])
    return drawn + 0.1 * torch.randn(drawn.shape, dtype=torch.float64, generator=generator) * taken(network)  # biases


def test_every_copy_equals_its_own_sequential_module():
    network = MLP((3, 7, 5, 2))
    theta = parameters(network, runs=2, copies=4)
    x = torch.randn(2, 4, 6, 3, dtype=torch.float64)
    y = network(theta, x)
    assert y.shape == (2, 4, 6, 2)
    for r in range(2):
        for k in range(4):
            module = mlp(network.sizes, theta[r, k])
            torch.testing.assert_close(y[r, k], module(x[r, k]))
            assert torch.equal(flatten(module), theta[r, k])


def test_shared_rows_go_to_every_copy():
    network = MLP((3, 7, 2))
    theta = parameters(network, runs=2, copies=3)
    x = torch.randn(2, 1, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(network(theta, x), network(theta, x.expand(2, 3, 6, 3)))


def test_weights_and_biases_begin_at_multiples_of_the_alignment():
    network = MLP((3, 7, 32, 2))
    theta = torch.arange(4.0 * network.n_parameters).view(2, 2, -1)
    for piece in (piece for layer in network.layers(theta) for piece in layer):
        assert (piece.flatten(1)[:, 0] % ALIGNMENT == 0).all()
        assert torch.equal(piece.flatten(1) - piece.flatten(1)[:, :1], torch.arange(piece[0].numel()).expand(4, -1))
    assert taken(network).sum() == 3 * 7 + 7 + 7 * 32 + 32 + 32 * 2 + 2 < network.n_parameters


def test_initial_parameters_are_the_draws_of_each_layer_in_turn():
    network, generator = MLP((3, 7, 2), last="normal"), torch.Generator().manual_seed(5)
    (first, _), (last, _) = network.layers(network.initial(4, torch.Generator().manual_seed(5), torch.float64)[None])
    drawn = 2.0 * torch.rand(4, 21, dtype=torch.float64, generator=generator) - 1.0
    assert torch.equal(first.flatten(1), (6.0 / 10.0) ** 0.5 * drawn)
    normal = torch.randn(4, 14, dtype=torch.float64, generator=generator)
    assert torch.equal(last.flatten(1), (2.0 / 9.0) ** 0.5 * normal)


@pytest.mark.parametrize("loss", ["mage", "td", "sobolev"])
def test_padding_stays_zero_through_training(loss):
    """Through initial values, gradients, clipping, decay, moments and target networks."""
    hyper = HYPER | {"critic_hidden": (9, 7), "clip_value": 0.01, "model_weight_decay": 0.1, "learning_rate": 1e-2}
    trainer = Trainer(make_config("Pendulum", loss=loss, reward="learned", steps=60, seeds=(0, 1), hyper=hyper))
    for _ in range(40):
        trainer.step()
    agent, ensemble, reward_model = trainer.agent, trainer.ensemble, trainer.reward_model
    assert ensemble is not None and reward_model is not None
    found = [
        (agent.actor_network, agent.actor_optimizer, agent.actor, agent.actor_target),
        (agent.critic_network, agent.critic_optimizer, agent.critic, agent.critic_target),
        (ensemble.network, ensemble.optimizer, ensemble.parameters),
        (reward_model.network, reward_model.optimizer, reward_model.parameters),
    ]
    for network, optimizer, *parameters in found:
        for x in (*parameters, optimizer.first, optimizer.second):
            assert (x[..., ~taken(network)] == 0.0).all() and (x[..., taken(network)] != 0.0).float().mean() > 0.9


WIDE = {
    "actor_hidden": (60, 200),
    "critic_hidden": (60, 200),
    "ensemble_members": 2,
    "ensemble_hidden": (60, 100),
    "reward_hidden": (60, 400),
}
"""Layers wide enough for statistics of their weights."""


@pytest.mark.parametrize(
    ("method", "name", "last_is"),
    [
        ("mage-td3", "actor", "uniform"),
        ("mage-td3", "critic", "uniform"),
        ("mage-ddpg", "critic", "uniform"),
        ("mage-td3", "ensemble", "normal"),
        ("mage-td3", "reward_model", "normal"),
    ],
)
def test_initial_weights_have_the_published_distribution(method, name, last_is):
    """Xavier's bound or standard deviation, and the kurtosis that tells uniform (9/5) from normal (3)."""
    seeds = tuple(range(20))  # the last layer of an actor has 200 weights a run
    trainer = Trainer(make_config("Pendulum", method=method, reward="learned", seeds=seeds, steps=1, hyper=WIDE))
    owner = getattr(trainer, name, None) or trainer.agent
    network = getattr(owner, f"{name}_network", None) or owner.network
    layers = network.layers(owner.parameters if hasattr(owner, "parameters") else getattr(owner, name))
    assert [tuple(weight.shape[1:]) for weight, _ in layers] == network.shapes and len(layers) == 3
    for layer, (weight, bias) in enumerate(layers):
        assert (bias == 0.0).all()
        variance = 2.0 / sum(weight.shape[1:])
        bound = (3.0 * variance) ** 0.5
        values = weight.double().flatten()
        assert values.var().item() == pytest.approx(variance, rel=0.05)
        kurtosis = ((values - values.mean()) / values.std(correction=0)).pow(4).mean().item()
        if layer == 2 and last_is == "normal":
            assert kurtosis == pytest.approx(3.0, abs=0.25) and values.abs().max() > 1.5 * bound
        else:
            assert kurtosis == pytest.approx(1.8, abs=0.05)
            assert 0.99 * bound < values.abs().max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("hidden", [(), (8,), (8, 5), (6, 5, 4)])
@pytest.mark.parametrize("shared", [True, False])
def test_pullback_equals_double_backward(hidden, shared):
    network = MLP((4, *hidden, 1))
    theta = parameters(network, runs=2, copies=2)
    x = torch.randn(2, 1 if shared else 2, 7, 4, dtype=torch.float64)

    def f(q, dq):
        return (q**2).sum() + (dq.norm(dim=-1) * q.sin()).sum()

    leaf, rows = theta.clone().requires_grad_(), x.expand(2, 2, 7, 4).clone().requires_grad_()
    q = network(leaf, rows).squeeze(-1)
    (dq,) = torch.autograd.grad(q.sum(), rows, create_graph=True)
    (expected,) = torch.autograd.grad(f(q, dq), leaf)

    pullback = ScalarPullback(network, theta, x)
    value, gradient = pullback.value, pullback.input_gradient()
    torch.testing.assert_close(value, q.detach())
    torch.testing.assert_close(gradient, dq.detach())
    c, u = torch.autograd.grad(f(value.requires_grad_(), gradient.requires_grad_()), (value, gradient))
    torch.testing.assert_close(pullback(c, u), expected, rtol=1e-12, atol=1e-13)


def test_pullback_equals_central_differences():
    network = MLP((3, 6, 5, 1))
    theta = parameters(network, runs=1, copies=1)
    x = torch.randn(1, 1, 4, 3, dtype=torch.float64)
    c, u = torch.randn(1, 1, 4, dtype=torch.float64), torch.randn(1, 1, 4, 3, dtype=torch.float64)

    def f(theta):
        pullback = ScalarPullback(network, theta, x)
        return (c * pullback.value).sum() + (u * pullback.input_gradient()).sum()

    step = 1e-5
    basis = torch.eye(network.n_parameters, dtype=torch.float64).view(-1, 1, 1, network.n_parameters) * step
    differences = torch.stack([(f(theta + e) - f(theta - e)) / (2 * step) for e in basis])
    pullback = ScalarPullback(network, theta, x)
    assert pullback.input_gradient().shape == x.shape
    torch.testing.assert_close(pullback(c, u).flatten(), differences, rtol=0, atol=1e-8)


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)])
def test_pullback_of_a_part_of_the_input_gradient_is_that_of_the_whole_with_zeros(hidden):
    network = MLP((4, *hidden, 1))
    theta = parameters(network, runs=2, copies=2)
    x = torch.randn(2, 1, 5, 4, dtype=torch.float64)
    c, u = torch.randn(2, 2, 5, dtype=torch.float64), torch.randn(2, 2, 5, 4, dtype=torch.float64)
    u[..., :3] = 0.0
    whole, part = ScalarPullback(network, theta, x), ScalarPullback(network, theta, x)
    torch.testing.assert_close(part.input_gradient(3), whole.input_gradient()[..., 3:])
    torch.testing.assert_close(part(c, u[..., 3:]), whole(c, u), rtol=1e-13, atol=1e-13)


def test_pullback_of_values_alone_is_the_first_order_gradient():
    network = MLP((3, 6, 1))
    theta = parameters(network, runs=2, copies=2).requires_grad_()
    x = torch.randn(2, 1, 5, 3, dtype=torch.float64)
    c = torch.randn(2, 2, 5, dtype=torch.float64)
    (expected,) = torch.autograd.grad((c * network(theta, x).squeeze(-1)).sum(), theta)
    pullback = ScalarPullback(network, theta.detach(), x)
    torch.testing.assert_close(pullback(c), expected)
