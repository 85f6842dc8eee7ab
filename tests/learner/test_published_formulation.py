"""The learner's detached, member-only, hand-propagated critic step against the published, undetached formulation."""

from __future__ import annotations

import itertools

import pytest
import torch
from published import PublishedModelTraining, PublishedRewardTraining, PublishedUpdate, flatten

from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.learner.published_form import published_rows
from tests.tiny import HYPER

DEEP = HYPER | {
    "batch_size": 16,
    "warmup_steps": 30,
    "updates_per_step": 4,
    "actor_hidden": (8, 8),
    "critic_hidden": (12, 12),
    "ensemble_members": 4,
    "ensemble_hidden": (8, 8),
    "model_batches": 3,
    "learning_rate": 1e-3,
}


def trained(method: str, task: str = "Pendulum", **settings) -> Trainer:
    hyper = DEEP | settings.pop("hyper", {})
    config = make_config(task, method=method, steps=60, float64=True, hyper=hyper, **settings)
    trainer = Trainer(config)
    for _ in range(34):
        trainer.step()
    return trainer


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *itertools.product(("mage-td3", "mage-ddpg"), ({}, {"reward": "learned"})),
        ("dyna-td3", {}),
        ("mage-td3", {"dynamics": "oracle"}),
        ("data-efficient-td3", {}),
        *itertools.product(
            ("mage-td3", "mage-ddpg", "dyna-td3", "dyna-ddpg", "data-efficient-td3"),
            ({"preset": "authors", "lambdas": (0.05,)},),
        ),
        ("mage-td3", {"loss": "squared"}),
        ("mage-td3", {"loss": "squared", "preset": "authors", "lambdas": (0.05,)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("task", ["Pendulum", "CartPole"])
def test_critic_gradient_equals_the_undetached_all_members_formulation(task, method, settings):
    trainer = trained(method, task, **settings)
    (draws,) = trainer.draw(1)
    if task == "CartPole":  # in some rows the pole has just fallen
        trainer.buffer.rows[:, 0 : trainer.buffer.size : 3, [2, -2]] = 0.25
    published = PublishedUpdate(trainer).critic_gradient(*published_rows(trainer, draws))
    batch = trainer.buffer.gather(draws.index)
    _, gradient = trainer.agent.critic_gradient(batch, trainer.agent.target(batch, draws), draws)
    assert published.abs().max() > 1e-6
    error = (gradient[0] - published).norm() / published.norm()
    assert error <= 1e-10


def test_runs_of_several_lambdas_have_each_its_own_weights_under_preset_authors():
    trainer = trained("mage-td3", preset="authors", lambdas=(0.05, 0.2, 1.0))
    (draws,) = trainer.draw(1)
    batch = trainer.buffer.gather(draws.index)
    _, gradient = trainer.agent.critic_gradient(batch, trainer.agent.target(batch, draws), draws)
    for run in range(3):
        published = PublishedUpdate(trainer, run).critic_gradient(*published_rows(trainer, draws, run))
        assert (gradient[run] - published).norm() <= 1e-10 * published.norm()


@pytest.mark.parametrize("settings", [{}, {"preset": "authors", "lambdas": (0.05,), "hyper": {"clip_value": 0.05}}])
def test_a_hundred_updates_stay_equal_to_the_published_ones(settings):
    trainer = trained("mage-td3", **settings)
    published = PublishedUpdate(trainer)
    # the published optimiser starts fresh, so the learner's must too
    for optimizer in (trainer.agent.actor_optimizer, trainer.agent.critic_optimizer):
        optimizer.restart(torch.ones(1, dtype=torch.bool))
    for done in range(100):
        (draws,) = trainer.draw(1, ahead=done)
        published.update(*published_rows(trainer, draws))
        trainer.agent.improve(trainer.buffer, [draws], done)
    torch.testing.assert_close(trainer.agent.actor[0, 0], flatten(published.actor), rtol=0, atol=1e-9)
    for parameters, critic in zip(trainer.agent.critic[0], published.critics, strict=True):
        torch.testing.assert_close(parameters, flatten(critic), rtol=0, atol=1e-9)


def test_model_batches_stay_equal_to_the_published_ones():
    trainer = trained("mage-td3")
    ensemble = trainer.ensemble
    assert ensemble is not None
    published = PublishedModelTraining(trainer)
    ensemble.optimizer.restart(torch.ones(1, dtype=torch.bool))
    before = ensemble.parameters.clone()
    for _ in range(50):
        index = torch.randint(trainer.buffer.size, (1, ensemble.members, 16))
        batch = trainer.buffer.gather(index)
        rows = (x[0].view(ensemble.members, 16, -1) for x in (batch.obs, batch.action, batch.next_obs))
        loss = published.update(*rows)
        torch.testing.assert_close(float(ensemble.train_batch(batch)[0]), loss, rtol=1e-9, atol=0)
    for (weight, bias), layer in zip(
        ensemble.network.layers(ensemble.parameters), list(published.model)[::2], strict=True
    ):
        torch.testing.assert_close(weight, layer.weight.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(bias, layer.bias.detach(), rtol=0, atol=1e-9)
    assert (ensemble.parameters - before).abs().max() > 1e-3


def test_reward_model_batches_stay_equal_to_the_published_ones():
    trainer = trained("mage-td3", reward="learned", hyper={"model_learning_rate": 1e-2})
    model = trainer.reward_model
    assert model is not None and model.reward.std.item() > 1.0
    published = PublishedRewardTraining(trainer)
    model.optimizer.restart(torch.ones(1, dtype=torch.bool))
    before = model.parameters.clone()
    for _ in range(50):
        batch = trainer.buffer.gather(torch.randint(trainer.buffer.size, (1, 16)))
        loss = published.update(*(x[0] for x in (batch.obs, batch.action, batch.next_obs, batch.reward)))
        torch.testing.assert_close(model.train_batch(batch).item(), loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(model.parameters[0, 0], flatten(published.model.network), rtol=0, atol=1e-9)
    assert (model.parameters - before).abs().max() > 1e-3
