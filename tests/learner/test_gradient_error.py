"""Eq. 14 against closed forms and finite differences."""

from __future__ import annotations

import pytest
import torch

from mage_diffsim.envs.physics import backends_of, make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.gradients import TrueGradients, gradient_error, true_action_gradients
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer

GAMMA = 0.9


def policy(obs: torch.Tensor) -> torch.Tensor:
    return torch.tanh(obs @ torch.tensor([[0.2], [-0.7], [-0.3]], dtype=obs.dtype))


def discounted_return(task, state, actions_added, horizon):
    total = torch.zeros(state.shape[0], dtype=state.dtype)
    for t in range(horizon):
        obs = task.observe(state)
        action = policy(obs) + actions_added[t]
        state = task.step(state, action.clamp(-1.0, 1.0))
        total = total + GAMMA**t * task.reward(obs, action, task.observe(state))
    return total


def test_true_gradients_equal_central_differences_of_the_return():
    task, horizon = make_task("Pendulum"), 12
    initial = task.reset(3, torch.Generator().manual_seed(0))
    true = true_action_gradients(make_physics(task, dtype=torch.float64), policy, initial, GAMMA, horizon)
    assert true.discounted.shape == (horizon, 3, 1) and true.alive.all()
    step = 1e-5
    for t in (0, 5, 11):
        added = torch.zeros(horizon, 3, 1, dtype=torch.float64)
        added[t] = step
        difference = discounted_return(task, initial, added, horizon) - discounted_return(
            task, initial, -added, horizon
        )
        torch.testing.assert_close(true.discounted[t, :, 0], difference / (2 * step), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("backend", [b for b in backends_of(make_task("Pendulum")) if b != "torch"])
def test_every_oracle_gives_the_same_truth(backend):
    pytest.importorskip(backend)
    task = make_task("Pendulum")
    initial = task.reset(4, torch.Generator().manual_seed(1))
    expected = true_action_gradients(make_physics(task, dtype=torch.float64), policy, initial, 0.99, 60)
    given = true_action_gradients(make_physics(task, backend, dtype=torch.float64), policy, initial, 0.99, 60)
    torch.testing.assert_close(given.discounted, expected.discounted, rtol=1e-4, atol=1e-8)


def test_a_constant_reward_has_zero_gradient_and_no_cosine():
    task = make_task("CartPole")
    initial = task.reset(3, torch.Generator().manual_seed(0))
    true = true_action_gradients(
        make_physics(task, dtype=torch.float64), lambda obs: torch.ones_like(obs[:, :1]), initial, GAMMA, 60
    )
    assert true.discounted.abs().max() == 0.0
    assert not true.alive[-1].any() and true.alive[0].all()  # pushed one way, every pole falls
    compared = gradient_error(true, torch.ones_like(true.actions), GAMMA)
    assert compared.cosine.isnan().all()
    length = true.alive.sum(dim=0)
    expected = torch.tensor([sum(GAMMA**t for t in range(int(n))) / int(n) for n in length], dtype=torch.float64)
    torch.testing.assert_close(compared.error, expected)


def test_error_and_cosine_have_the_formula_of_equation_14():
    steps, episodes, actions = 3, 2, 2
    truth, critic = torch.randn(2, steps, episodes, actions, dtype=torch.float64)
    discount = (GAMMA ** torch.arange(steps, dtype=torch.float64)).view(-1, 1, 1)
    alive = torch.tensor([[True, True], [True, True], [True, False]])
    true = TrueGradients(
        torch.zeros(steps, episodes, 1), torch.zeros(steps, episodes, actions), discount * truth, alive
    )
    compared = gradient_error(true, critic, GAMMA)
    for e, length in enumerate((3, 2)):
        error = sum(GAMMA**t * (truth[t, e] - critic[t, e]).abs().sum() for t in range(length)) / length
        cosine = sum(torch.cosine_similarity(truth[t, e], critic[t, e], dim=0) for t in range(length)) / length
        assert compared.error[e].item() == pytest.approx(error.item())
        assert compared.cosine[e].item() == pytest.approx(cosine.item())


def test_the_trainer_reports_zero_error_for_a_critic_with_the_true_gradient(monkeypatch):
    """Q(s, a) = r(s, a) with gamma = 0 is the true value, so its action-gradient is the true one."""
    config = make_config("Pendulum", steps=1, gradient_episodes=3, eval_episodes=1, float64=True, hyper={"gamma": 0.0})
    trainer = Trainer(config)
    monkeypatch.setattr(trainer.agent, "min_q", lambda obs, action: trainer.task.reward(obs, action, obs))
    metrics = trainer.evaluate()
    assert metrics["gradient/error"].item() < 1e-12
    assert metrics["gradient/cosine"].item() == pytest.approx(1.0)
