"""Resets of the real environment of a training: from each run's own stream, however the host keeps up."""

from __future__ import annotations

import copy

import pytest
import torch

from mage_diffsim import real_environment
from mage_diffsim.envs import make_physics, make_task
from mage_diffsim.envs.batched import advance
from mage_diffsim.errors import InputError
from mage_diffsim.randomness import Streams
from mage_diffsim.real_environment import LOOK_EVERY, STORE, RealEnvironment
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.learner.short_task import Short
from tests.one_number import OneNumber
from tests.tiny import HYPER


def environment(task, seeds=(3, 8), dtype=torch.float64) -> RealEnvironment:
    env = RealEnvironment(make_physics(task, dtype=dtype), Streams(seeds, torch.device("cpu"), dtype))
    env.reset()
    return env


def action_of(step: int) -> torch.Tensor:
    return 2.0 * torch.rand(1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(step)) - 1.0


def stepped(env: RealEnvironment, steps: int, first: int = 1):
    """Transitions of random actions, with the host's looks between them."""
    found = []
    for step in range(first, first + steps):
        found.append(env.step(action_of(step).expand(len(env.state), -1)))
        if step % LOOK_EVERY == 0:
            env.look()
    return found


class Ends(OneNumber):
    """Ends after every step: no episodes are shorter."""

    horizon = 1

    def step(self, state, action):
        return state + 0.1 * action


@pytest.mark.parametrize("task", [make_task("CartPole"), Ends()], ids=["CartPole", "every step ends"])
def test_every_episode_begins_in_the_state_of_its_number(task):
    env, steps = environment(task), 5 * STORE
    physics, streams = env.physics, env.streams
    moved = stepped(env, steps)
    for run in range(2):
        episode, elapsed = 0, 0
        state = task.reset(1, streams.generator(run, "environment", 0))
        for step, transition in enumerate(moved, 1):
            assert torch.equal(transition.state[run], state[0])
            expected = advance(physics, state, task.observe(state), action_of(step))
            assert torch.equal(transition.next_state[run], expected.next_state[0])
            elapsed += 1
            assert transition.truncated[run] == (elapsed >= task.horizon)
            state = expected.next_state
            if transition.terminated[run] or transition.truncated[run]:
                episode, elapsed = episode + 1, 0
                state = task.reset(1, streams.generator(run, "environment", episode))
        assert env.episode[run] == episode >= 2


def test_a_saved_environment_goes_on_between_two_looks():
    through = environment(Ends())
    stepped(through, STORE + 5)
    again = environment(Ends())
    again.load_state_dict({name: x.clone() for name, x in through.state_dict().items()})
    first, steps = STORE + 6, 3 * STORE
    for a, b in zip(stepped(through, steps, first), stepped(again, steps, first), strict=True):
        assert torch.equal(a.state, b.state) and torch.equal(a.obs, b.obs)


@pytest.mark.parametrize("every", [1, 7])
def test_training_does_not_depend_on_how_often_the_host_looks(monkeypatch, every):
    def trained():
        trainer = Trainer(make_config(Short(), seeds=(0, 1), steps=60, hyper=HYPER), Short())
        for _ in range(60):
            trainer.step()
        return trainer

    usual = trained()
    assert usual.env.episode.min() > 3
    monkeypatch.setattr(real_environment, "LOOK_EVERY", every)
    monkeypatch.setattr("mage_diffsim.training.LOOK_EVERY", every)
    monkeypatch.setattr(real_environment, "STORE", 2 * every + 1)
    other = trained()
    assert torch.equal(usual.buffer.rows, other.buffer.rows) and torch.equal(usual.agent.critic, other.agent.critic)


def test_an_action_that_is_not_finite_is_reported_at_a_look():
    env = environment(make_task("Pendulum"))
    env.step(torch.tensor([[0.0], [torch.nan]], dtype=torch.float64))
    assert env.state.isfinite().all()
    env.look()
    with pytest.raises(InputError, match="Pendulum: the policy of seed 8 gave an action that is not finite"):
        env.look()


def test_an_action_that_is_not_finite_is_reported_at_the_end_and_after_a_resumption():
    def trainer():
        return Trainer(make_config("Pendulum", seeds=(4, 2), steps=40, hyper=HYPER))

    first = trainer()
    while first.env_step < 36:  # after the last look
        first.step()
    first.env.bad_action[1] = True
    second = trainer()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for goes_on in (first, second):
        with pytest.raises(InputError, match="Pendulum: the policy of seed 2 gave an action that is not finite"):
            while goes_on.env_step < 40:
                goes_on.step()
        assert goes_on.env_step == 40


class Event:
    """Stands for :class:`torch.cuda.Event`."""

    def __init__(self) -> None:
        self.streams = []

    def record(self, stream=None) -> None:
        self.streams.append(stream)

    def synchronize(self) -> None:
        pass


def test_the_host_waits_for_the_stream_of_the_environments_device(monkeypatch):
    env = environment(make_task("Pendulum"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    monkeypatch.setattr(env.physics, "device", torch.device("cuda", 1))
    env._answered = Event()
    env._ask()
    assert env._answered.streams == ["stream of cuda:1"]
