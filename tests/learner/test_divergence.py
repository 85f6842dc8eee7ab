"""The divergence guard: one definition for every loss, and restarts that take effect after the actor's update."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from published import PublishedUpdate, flatten

from mage_diffsim.agent import FRESH
from mage_diffsim.draws import Draws
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.methods import METHODS
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.learner.poisoned import Poisoned
from tests.learner.published_form import published_rows
from tests.tiny import HYPER

OFTEN = HYPER | {
    "batch_size": 16,
    "warmup_steps": 50,
    "updates_per_step": 5,
    "actor_hidden": (8, 8),
    "critic_hidden": (8, 8),
    "learning_rate": 3e-3,
    "polyak": 0.05,
}


def warm(seeds=(0, 1, 2), **settings) -> Trainer:
    """A trainer with a filled buffer, a trained model, fresh agents and nothing learned yet."""
    hyper = OFTEN | settings.pop("hyper", {})
    trainer = Trainer(make_config("Pendulum", seeds=seeds, steps=200, float64=True, hyper=hyper, **settings))
    while trainer.env_step < 49:
        trainer.step()
    return trainer


class LooksAtLosses:
    """One run in the published form, which looks at the losses after every update and acts after the actor's."""

    def __init__(self, trainer: Trainer, run: int) -> None:
        self.trainer, self.run = trainer, run
        self.published = PublishedUpdate(trainer, run)
        self.diverged = False
        self.restarts = 0

    def update(self, draws: Draws) -> dict[str, float]:
        agent, dtype = self.trainer.agent, torch.float64
        logged = self.published.update(*published_rows(self.trainer, draws, self.run))
        self.diverged |= self.published.has_diverged(logged)
        if self.diverged and self.published.updates % agent.method.policy_delay == 0:
            generator = self.trainer.streams.generator(self.run, "initialise", 1 + self.restarts % FRESH)
            actor = agent.actor_network.initial(1, generator, dtype)
            self.published.renew(actor, agent.critic_network.initial(agent.method.critics, generator, dtype))
            self.restarts += 1
            self.diverged = False
        return logged


def assert_equal(trainer: Trainer, references: list[LooksAtLosses]) -> None:
    agent = trainer.agent
    for reference in references:
        run, published = reference.run, reference.published
        pairs = [(agent.actor[run], [published.actor]), (agent.actor_target[run], [published.actor_target])]
        pairs += [(agent.critic[run], published.critics), (agent.critic_target[run], published.critic_targets)]
        for ours, theirs in pairs:
            for parameters, network in zip(ours, theirs, strict=True):
                torch.testing.assert_close(parameters, flatten(network), rtol=0, atol=1e-9)
    assert agent.restarts.tolist() == [reference.restarts for reference in references]


def set_bounds(trainer: Trainer, **bounds: float) -> None:
    trainer.hyper = trainer.agent.hyper = replace(trainer.hyper, **bounds)


def bound_that_some_updates_exceed(trainer: Trainer, what: str, share: float) -> float:
    """The size that a share of a dry run's updates exceeds."""
    trial = copy.copy(trainer)
    sizes = []
    for run in range(len(trainer.config.runs)):
        reference = PublishedUpdate(trial, run)
        for draws in trainer.draw(20):
            sizes.append(abs(reference.update(*published_rows(trainer, draws, run)).get(what, 0.0)))
    return sorted(sizes)[int((1.0 - share) * len(sizes))]


CASES = [
    *((method, {}, "td_error") for method in METHODS),
    *((method, {}, "actor_loss") for method in ("mage-td3", "dyna-ddpg", "td3")),
    *((method, {"preset": "authors", "lambdas": (0.05,)}, "td_error") for method in ("mage-td3", "dyna-td3")),
    ("mage-td3", {"dynamics": "oracle", "loss": "squared"}, "td_error"),
]


@pytest.mark.parametrize(("method", "settings", "what"), CASES, ids=str)
def test_restarts_equal_those_of_a_loop_that_looks_at_every_loss(method, settings, what):
    trainer = warm(method=method, **settings)
    field = {"td_error": "diverged_critic_loss", "actor_loss": "diverged_actor_loss"}[what]
    bound = bound_that_some_updates_exceed(trainer, what, 0.2)
    set_bounds(trainer, **{field: bound})
    references = [LooksAtLosses(trainer, run) for run in range(3)]
    for round_ in range(8):
        draws = trainer.draw(5, ahead=round_)
        for reference, drawn in itertools.product(references, draws):
            reference.update(drawn)
        trainer.agent.improve(trainer.buffer, draws, done=5 * round_)
        assert_equal(trainer, references)
    assert 3 <= trainer.agent.restarts.sum() < 8 * 5 * 3


def test_an_agent_that_diverges_in_every_update_is_renewed_after_every_update_of_the_actor():
    trainer = warm(seeds=(0,))
    set_bounds(trainer, diverged_critic_loss=1e-12)
    reference = LooksAtLosses(trainer, 0)
    draws = trainer.draw(2 * FRESH + 3)
    for drawn in draws:
        reference.update(drawn)
    trainer.agent.improve(trainer.buffer, draws)
    assert trainer.agent.restarts.tolist() == [FRESH + 1]  # the last of them with the first fresh networks again
    assert trainer.agent.diverged.tolist() == [True]
    assert_equal(trainer, [reference])


def test_the_guard_sees_the_same_number_whatever_the_loss_and_its_weights_are():
    settings = [
        {},
        {"lambdas": (0.0,)},
        {"lambdas": (1.0,)},
        {"preset": "authors", "lambdas": (0.05,), "hyper": {"model_epochs": False}},
        *({"loss": loss} for loss in ("td", "squared", "taylor", "sobolev", "random", "shuffled")),
        {"method": "dyna-td3"},
    ]
    numbers = []
    for chosen in settings:
        trainer = warm(seeds=(0,), **chosen)
        (draws,) = trainer.draw(1)
        batch = trainer.buffer.gather(draws.index)
        target = trainer.agent.target(batch, draws)
        losses, _ = trainer.agent.critic_gradient(batch, target, draws)
        numbers.append(losses.guarded().item())
    q = trainer.agent.q(batch.obs.unsqueeze(1), target.action.unsqueeze(1))
    error = (target.y.unsqueeze(1) - q).abs()
    huber = torch.where(error < 1.0, 0.5 * error.square(), error - 0.5)
    assert numbers == pytest.approx([0.5 * huber.mean(dim=-1).sum().item()] * len(settings), rel=1e-12)


def test_the_bound_is_of_the_td_error_alone():
    """A gradient term of a thousand times the bound does not restart a run."""

    class Steep(Pendulum):
        name = "Steep"

        def reward(self, obs, action, next_obs):
            return 1e-2 * torch.sin(1e7 * action[..., 0])

    config = make_config(Steep(), dynamics="oracle", backend="torch", steps=200, float64=True, hyper=OFTEN)
    trainer = Trainer(config, Steep())
    while trainer.env_step < 55:
        trainer.step()
    metrics = trainer.diagnose()
    assert metrics["loss/critic"].item() > 1e3 and metrics["loss/td"].item() < 10.0
    assert trainer.agent.restarts.item() == 0


def test_rows_that_are_not_finite_are_not_counted_between_a_divergence_and_the_fresh_agent():
    config = make_config("Pendulum", dynamics="oracle", seeds=(0, 1), steps=200, float64=True, hyper=OFTEN)

    def counted(renewing: bool, which: slice = slice(None)) -> tuple[list[int], list[int]]:
        trainer = Trainer(config)
        trainer.agent.dynamics = Poisoned(trainer.agent.dynamics, "value")
        while trainer.env_step < 49:
            trainer.step()
        if renewing:
            set_bounds(trainer, diverged_critic_loss=1e-12)
        trainer.agent.improve(trainer.buffer, trainer.draw(5)[which])
        return trainer.agent.nonfinite.tolist(), trainer.agent.restarts.tolist()

    (plain, none), (renewed, restarts) = counted(False, slice(None, None, 2)), counted(True)
    assert none == [0, 0] and restarts == [2, 2]
    assert plain == renewed and min(plain) > 0  # which rows are bad depends on the observation alone


def test_a_training_goes_on_from_a_checkpoint_between_a_divergence_and_the_fresh_agent():
    bound = bound_that_some_updates_exceed(warm(method="td3"), "td_error", 0.1)
    hyper = OFTEN | {"diverged_critic_loss": bound}
    config = make_config("Pendulum", method="td3", seeds=(0, 1), steps=300, float64=True, hyper=hyper)

    def until(trainer: Trainer, step: int) -> Trainer:
        while trainer.env_step < step:
            trainer.step()
        return trainer

    through = until(Trainer(config), 50)
    while not through.agent.diverged.any() and through.env_step < 150:
        through.step()
    assert through.agent.diverged.any() and through.env_step < 150
    again = Trainer(config)
    again.load_state_dict(copy.deepcopy(through.state_dict()))
    last = through.env_step + 20
    until(through, last), until(again, last)
    assert through.agent.restarts.sum() > 0 and torch.equal(through.agent.restarts, again.agent.restarts)
    assert torch.equal(through.agent.critic, again.agent.critic) and torch.equal(through.agent.actor, again.agent.actor)
