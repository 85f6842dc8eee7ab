"""Nothing that is not finite is ever trained on."""

from __future__ import annotations

import functools

import pytest
import torch

from mage_diffsim.critic import bootstrapped, masked, td_target
from mage_diffsim.dynamics import Imagined, OracleDynamics
from mage_diffsim.envs import make_physics
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.gradients import true_action_gradients
from mage_diffsim.session import train
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.learner.poisoned import Poisoned
from tests.one_number import OneNumber
from tests.tiny import HYPER

UPDATED = HYPER | {"batch_size": 32, "warmup_steps": 40, "updates_per_step": 2}


def poisoned_trainer(what: str, method: str = "mage-td3", **settings) -> Trainer:
    config = make_config(
        "Pendulum", method=method, dynamics="oracle", steps=80, float64=True, hyper=UPDATED, **settings
    )
    trainer = Trainer(config)
    trainer.agent.dynamics = Poisoned(trainer.agent.dynamics, what)
    return trainer


@pytest.mark.parametrize("what", ["value", "derivative"])
def test_rows_with_a_bad_derivative_are_counted_masked_and_remembered(what):
    trainer = poisoned_trainer(what)
    while trainer.env_step < 80:
        trainer.step()
    agent = trainer.agent
    for parameters in (agent.actor, agent.critic, agent.actor_target, agent.critic_target):
        assert parameters.isfinite().all()
    assert agent.restarts.item() == 0
    imagined = 41 * 2 * 32
    assert 0.2 * imagined < agent.nonfinite.item() < 0.8 * imagined
    assert agent.nonfinite_state[0, 1] < 0.0  # a state in which the pendulum does move clockwise
    assert trainer.diagnose()["grad/nonfinite"].item() == agent.nonfinite.item()


def test_the_gradient_is_the_mean_over_the_good_rows_alone():
    trainer = poisoned_trainer("derivative")
    while trainer.env_step < 45:
        trainer.step()
    agent = trainer.agent
    (draws,) = trainer.draw(1)
    batch = trainer.buffer.gather(draws.index)
    masked = agent.target(batch, draws)
    assert 0 < masked.finite.sum() < 32
    _, gradient = agent.critic_gradient(batch, masked, draws)

    agent.dynamics = agent.dynamics.oracle
    clean = agent.target(batch, draws)
    good = masked.finite[0].nonzero().squeeze(-1)
    kept = type(batch)(*(x[:, good] for x in batch))
    assert clean.action_gradient is not None
    kept_target = clean._replace(
        y=clean.y[:, good],
        action_gradient=clean.action_gradient[:, good],
        action=clean.action[:, good],
        finite=clean.finite[:, good],
    )
    _, expected = agent.critic_gradient(kept, kept_target, draws)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_one_poisoned_run_leaves_its_neighbour_alone():
    together = poisoned_trainer("derivative", seeds=(0, 1))
    alone = poisoned_trainer("derivative", seeds=(1,))
    for trainer in (together, alone):
        while trainer.env_step < 60:
            trainer.step()
    torch.testing.assert_close(together.agent.critic[1], alone.agent.critic[0], rtol=0, atol=1e-9)


def test_dyna_masks_values_too():
    trainer = poisoned_trainer("value", method="dyna-td3")
    while trainer.env_step < 50:
        trainer.step()
    assert trainer.agent.nonfinite.item() > 0 and trainer.agent.critic.isfinite().all()


@pytest.mark.gpu
def test_training_on_a_gpu_follows_the_cpu():
    """Same parameters, batch and noise: the critic's update on the GPU is the CPU's to rounding."""
    config = make_config("Pendulum", dynamics="oracle", steps=60, float64=True, hyper=UPDATED)
    cpu = Trainer(config)
    while cpu.env_step < 50:
        cpu.step()
    gpu = Trainer(make_config("Pendulum", dynamics="oracle", steps=60, float64=True, hyper=UPDATED, device="cuda"))
    for name in ("actor", "critic", "actor_target", "critic_target"):
        getattr(gpu.agent, name).copy_(getattr(cpu.agent, name))
    gpu.agent.obs.load_state_dict(cpu.agent.obs.state_dict())
    (draws,) = cpu.draw(1)
    batch = cpu.buffer.gather(draws.index)
    _, expected = cpu.agent.critic_gradient(batch, cpu.agent.target(batch, draws), draws)
    draws = type(draws)(*(None if x is None else x.cuda() for x in draws))
    batch = type(batch)(*(x.cuda() for x in batch))
    _, gradient = gpu.agent.critic_gradient(batch, gpu.agent.target(batch, draws), draws)
    torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-9, atol=1e-11)
    while gpu.env_step < 60:
        gpu.step()
    assert gpu.agent.critic.isfinite().all() and gpu.evaluate()["return/mean"].isfinite().all()


class Cliff(OneNumber):
    """x' = x + 0.2 + 0.1 a + x^3, which overflows a few steps after the end of an episode."""

    horizon = 60

    def step(self, state, action):
        return state + 0.2 + 0.1 * action + state**3

    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs) - action[..., 0].square()

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 3.0


def test_true_gradients_of_ended_episodes_are_finite_although_the_physics_overflows():
    physics = make_physics(Cliff(), dtype=torch.float64)
    initial = Cliff().reset(4, torch.Generator().manual_seed(0))
    true = true_action_gradients(physics, lambda obs: 0.1 * obs, initial, 0.99)
    assert not true.alive[-1].any() and true.discounted.isfinite().all()
    step = 1e-6  # the gradient of the last step by differences
    for episode in range(4):
        last = int(true.alive[:, episode].sum()) - 1
        obs, action = true.obs[last, episode], true.actions[last, episode]

        def value(action, obs=obs):
            return Cliff().reward(obs, action, Cliff().step(obs, action))

        difference = (value(action + step) - value(action - step)) / (2 * step)
        assert true.discounted[last, episode, 0].item() == pytest.approx(0.99**last * difference.item(), rel=1e-6)


def test_an_ended_row_keeps_its_target_although_its_bootstrap_overflows():
    action = torch.zeros(1, 2, 1, dtype=torch.float64)
    start = torch.tensor([[[0.1], [9.0]]], dtype=torch.float64)
    bootstrap = functools.partial(
        bootstrapped,
        reward=Cliff().reward,
        terminated=Cliff().terminated,
        target_value=lambda next_obs: (1000.0 * next_obs[..., 0]).exp(),
        gamma=0.9,
    )
    dynamics = OracleDynamics(make_physics(Cliff(), dtype=torch.float64))
    target = masked(td_target(Imagined(start, start), action, dynamics=dynamics, noise=None, bootstrap=bootstrap))
    assert target.finite.all()
    next_x = 9.0 + 0.2 + 9.0**3
    assert target.y[0, 1].item() == pytest.approx(-(next_x**2))
    assert target.action_gradient is not None
    assert target.action_gradient[0, 1, 0].item() == pytest.approx(-2 * next_x * 0.1)


class InfiniteReward(Pendulum):
    """The reward is infinite in a part of the state space."""

    name = "InfiniteReward"

    def reward(self, obs, action, next_obs):
        reward = super().reward(obs, action, next_obs)
        return torch.where(obs[..., 1] > 0.9, torch.inf, reward)


def then_break_run_0(step):
    def broken(parameters, gradient):
        step(parameters, gradient)
        parameters[0] = torch.nan

    return broken


@pytest.mark.parametrize("broken", ["reward", "actor", "model"])
def test_what_breaks_one_run_leaves_the_other_equal_to_its_solo_run(broken, monkeypatch):
    task = InfiniteReward() if broken == "reward" else Pendulum()

    def train(seeds):
        config = make_config(task, dynamics="learned", seeds=seeds, steps=100, float64=True, hyper=UPDATED)
        trainer = Trainer(config, task)
        while trainer.env_step < 100:
            trainer.step()
            if trainer.env_step == 60 and seeds[0] == 0:
                if broken == "actor":  # by the very last update of an environment step
                    with monkeypatch.context() as patch:
                        optimizer = trainer.agent.actor_optimizer
                        patch.setattr(optimizer, "step", then_break_run_0(optimizer.step))
                        trainer.step()
                if broken == "model":
                    assert trainer.ensemble is not None
                    trainer.ensemble.parameters[0] = torch.nan
        return trainer

    together, alone = train((0, 1)), train((1,))
    torch.testing.assert_close(together.agent.critic[1], alone.agent.critic[0], rtol=0, atol=1e-9)
    assert together.buffer.rows.isfinite().all()
    assert together.agent.actor.isfinite().all() and together.agent.critic.isfinite().all()
    assert together.ensemble is not None and together.ensemble.parameters.isfinite().all()
    if broken == "reward":
        assert together.env_divergences[0] > 0
    if broken == "actor":
        assert together.agent.restarts.tolist() == [1, 0]


def test_masked_derivatives_are_reported_with_task_seed_and_state(tmp_path, caplog, monkeypatch):
    config = make_config("Pendulum", dynamics="oracle", steps=50, eval_episodes=1, gradient_episodes=0, hyper=UPDATED)
    made = Trainer._make_dynamics
    monkeypatch.setattr(Trainer, "_make_dynamics", lambda self: Poisoned(made(self), "derivative"))
    train(config, tmp_path / "run")
    assert "Pendulum (oracle, torch), seed 0, lambda 0.2" in caplog.text
    assert "not finite were masked so far, the last at state [" in caplog.text
