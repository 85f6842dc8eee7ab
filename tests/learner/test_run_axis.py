"""R runs in one process are R separate runs."""

from __future__ import annotations

import pytest
import torch

from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.tiny import HYPER

DEEP = HYPER | {
    "updates_per_step": 2,
    "learning_rate": 1e-3,  # parameters move by far more than the tolerance
    "actor_hidden": (8, 8),
    "critic_hidden": (8, 8),
    "ensemble_hidden": (8, 8),
}


def train(seeds, diverging_seed=None, steps=50, **settings) -> Trainer:
    config = make_config("Pendulum", seeds=seeds, steps=50, hyper=DEEP, **settings)
    trainer = Trainer(config)
    while trainer.env_step < steps:
        trainer.step()
        if trainer.env_step == 35 and diverging_seed in seeds:
            trainer.agent.critic[seeds.index(diverging_seed)] *= 1e6  # its next loss exceeds the bound
    return trainer


def parameters(trainer: Trainer, run: int) -> torch.Tensor:
    agent = trainer.agent
    found = [agent.actor[run], agent.critic[run], agent.actor_target[run], agent.critic_target[run]]
    for model in (trainer.ensemble, trainer.reward_model):
        if model is not None:
            found.append(model.parameters[run])
    return torch.cat([p.flatten() for p in found])


@pytest.mark.parametrize(
    "settings",
    [
        {"dynamics": "learned", "reward": "learned"},
        {"dynamics": "hybrid-oracle-gradients", "loss": "shuffled"},
        {"method": "data-efficient-td3"},
    ],
    ids=["learned", "hybrid-shuffled", "model-free"],
)
def test_three_runs_equal_three_processes_although_one_diverges(settings):
    seeds = (5, 1, 9)
    together = train(seeds, diverging_seed=1, **settings)
    assert together.agent.restarts.tolist() == [0, 1, 0]
    for run, seed in enumerate(seeds):
        alone = train((seed,), diverging_seed=1, **settings)
        torch.testing.assert_close(parameters(together, run), parameters(alone, 0), rtol=0, atol=1e-6)
        torch.testing.assert_close(together.buffer.rows[run], alone.buffer.rows[0], rtol=0, atol=1e-5)
    assert (parameters(together, 0) - parameters(together, 2)).abs().max() > 0.1  # different seeds differ


def test_lambdas_share_the_axis_with_seeds():
    together = train((0, 1), lambdas=(0.05, 1.0))
    assert together.config.runs == ((0, 0.05), (1, 0.05), (0, 1.0), (1, 1.0))
    for run, (seed, lam) in enumerate(together.config.runs):
        alone = train((seed,), lambdas=(lam,))
        torch.testing.assert_close(parameters(together, run), parameters(alone, 0), rtol=0, atol=1e-6)
    assert (parameters(together, 0) - parameters(together, 2)).abs().max() > 1e-4  # lambda matters


def test_a_diverged_run_gets_a_fresh_agent_with_finite_parameters():
    trainer = train((3,), steps=30)
    trainer.agent.critic[0, 0, 0] = torch.nan
    before = trainer.agent.actor.clone()
    trainer.step()
    agent = trainer.agent
    assert agent.restarts.tolist() == [1]
    assert agent.critic.isfinite().all()
    assert agent.critic_optimizer.count.item() == agent.actor_optimizer.count.item() == 0
    assert not agent.critic_optimizer.first.any() and not agent.actor_optimizer.second.any()
    assert (agent.actor - before).abs().max() > 1e-3
    assert torch.equal(agent.actor, agent.actor_target)


def test_same_seed_equal_other_seed_different():
    first, second, other = train((4,)), train((4,)), train((5,))
    assert torch.equal(parameters(first, 0), parameters(second, 0))
    assert not torch.equal(parameters(first, 0), parameters(other, 0))
