"""Training with MuJoCo C as the real environment and as the oracle, and what is reported about its derivatives."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mage_diffsim.checkpoints import load_checkpoint
from mage_diffsim.cli import main
from mage_diffsim.diagnosis import diagnose
from mage_diffsim.dynamics import Imagined
from mage_diffsim.envs import make_physics
from mage_diffsim.errors import InputError
from mage_diffsim.run_folder import read_config
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.tiny import HYPER


def config_of(task="InvertedPendulum", **settings):
    settings = {"steps": 40, "eval_every": 20, "eval_episodes": 2, "gradient_episodes": 1, "hyper": HYPER} | settings
    return make_config(task, **settings)


def test_the_real_environment_is_in_float64_and_the_learner_in_float32():
    trainer = Trainer(config_of())
    assert trainer.physics.backend == "mujoco" and trainer.physics.dtype == torch.float64
    for _ in range(30):
        trainer.step()
    assert trainer.env.state.dtype == torch.float64
    assert trainer.buffer.rows.dtype == trainer.agent.critic.dtype == torch.float32
    # the environment's trajectory is that of MuJoCo, unrounded
    again = make_physics(trainer.task, "mujoco", dtype=torch.float64)
    before = trainer.env.state.clone()
    trainer.step()
    action = trainer.buffer.gather(torch.tensor([[trainer.buffer.size - 1]])).action[0]
    if trainer.env.elapsed.item():
        assert torch.equal(again.step(before, action.double()), trainer.env.state)


@pytest.mark.parametrize("task", ["InvertedPendulum", "HalfCheetah", "Reacher"])
@pytest.mark.parametrize("dynamics", ["learned", "oracle", "hybrid-oracle-gradients", "hybrid-learned-gradients"])
def test_every_dynamics_trains(task, dynamics):
    config = config_of(task, dynamics=dynamics, steps=26)
    assert config.backend == "mujoco"
    trainer = Trainer(config)
    start = trainer.agent.critic.clone()
    for _ in range(26):
        trainer.step()
    assert trainer.agent.critic.isfinite().all() and not torch.equal(trainer.agent.critic, start)
    assert trainer.agent.nonfinite.item() == 0
    metrics = trainer.diagnose()
    assert metrics["grad/dynamics_norm"].item() > 0.0


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    config = config_of(dynamics="oracle", checkpoint_every=25)

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.env_step == 33:
            raise Killed

    train(config, tmp_path / "whole")
    with pytest.raises(Killed):
        train(config, tmp_path / "killed", progress=kill)
    assert read_config(tmp_path / "killed") == dataclasses.replace(config, environment="mujoco")
    resume(tmp_path / "killed")
    whole, killed = (
        load_checkpoint(tmp_path / name / "checkpoints" / "step_0000000040.json")["trainer"]
        for name in ("whole", "killed")
    )
    assert torch.equal(whole["agent"]["critic"], killed["agent"]["critic"])
    assert torch.equal(whole["env"]["state"], killed["env"]["state"])


@pytest.mark.parametrize("dynamics", ["learned", "oracle"])
def test_a_trained_policy_is_evaluated_and_filmed(dynamics, tmp_path, capsys):
    if dynamics == "oracle":
        pytest.importorskip("imageio")
    train(config_of(dynamics=dynamics, seeds=(0, 1)), tmp_path / "run")
    video = ["--video", str(tmp_path / "film.gif")] if dynamics == "oracle" else []
    assert main(["eval", str(tmp_path / "run"), "--episodes", "2", *video]) == 0
    assert "return of 2 episodes" in capsys.readouterr().out
    assert not video or (tmp_path / "film.gif").stat().st_size > 1000


def test_the_reported_size_of_the_dynamics_derivative_is_its_frobenius_norm():
    config = config_of("HalfCheetah", dynamics="oracle", float64=True, hyper=HYPER | {"batch_size": 400})
    trainer = Trainer(config)
    for _ in range(21):
        trainer.step()
    (draws,) = trainer.draw(1)
    batch = trainer.buffer.gather(draws.index)
    probe = torch.randn(1, 400, trainer.task.obs_dim, dtype=torch.float64)
    reported = diagnose(trainer.agent, batch, draws, probe)["grad/dynamics_norm"]

    action = trainer.agent.policy(batch.obs).detach().requires_grad_()
    next_obs = trainer.agent.dynamics.step(Imagined(batch.obs, batch.state), action).obs
    squared = sum(
        torch.autograd.grad(next_obs[..., j].sum(), action, retain_graph=True)[0].square().sum(-1)
        for j in range(trainer.task.obs_dim)
    )
    assert reported.item() == pytest.approx(squared.mean().sqrt().item(), rel=0.15)


def test_true_gradients_are_taken_over_the_tasks_gradient_horizon(monkeypatch):
    horizons = []

    def record(physics, policy, initial_state, gamma, horizon):
        horizons.append(horizon)
        raise InterruptedError

    monkeypatch.setattr("mage_diffsim.training.true_action_gradients", record)
    for settings in ({}, {"gradient_horizon": 7}, {"gradient_horizon": 10**6}):
        with pytest.raises(InterruptedError):
            Trainer(config_of(**settings)).evaluate()
    assert horizons == [50, 7, 1000]


def test_the_backend_defaults_to_the_tasks_first_and_a_wrong_one_is_refused():
    assert config_of().backend == "mujoco" and make_config("Pendulum").backend == "torch"
    with pytest.raises(InputError, match="unknown backend of task InvertedPendulum 'torch': choose one of mjx, mujoco"):
        Trainer(config_of(dynamics="oracle", backend="torch"))


def test_the_real_environment_may_be_another_backend():
    settings = {"steps": 3, "eval_episodes": 1, "gradient_episodes": 1, "gradient_horizon": 2}
    first, other = (Trainer(make_config("Pendulum", environment=name, **settings)) for name in (None, "jax"))
    assert (first.physics.backend, other.physics.backend, other.truth_physics.backend) == ("torch", "jax", "jax")
    for trainer in (first, other):
        for _ in range(3):
            trainer.step()
    torch.testing.assert_close(first.buffer.rows, other.buffer.rows, rtol=0.0, atol=1e-5)
    for name, value in other.evaluate().items():
        torch.testing.assert_close(value, first.evaluate()[name], rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match="unknown backend of task Pendulum 'mjx': choose one of jax, torch, warp"):
        Trainer(make_config("Pendulum", environment="mjx", **settings))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["HalfCheetah", "Hopper"])
def test_the_warp_oracle_trains_as_mujoco_c_does(task, monkeypatch):
    """From one seed, 20 updates with the oracle in float64: the actions, and so the states, are the same."""
    pytest.importorskip("warp")

    def trained(backend):
        hyper = HYPER | {"batch_size": 64, "learning_rate": 1e-2}
        config = config_of(task, dynamics="oracle", backend=backend, steps=40, hyper=hyper)
        trainer = Trainer(config)
        trainer.agent.dynamics.physics = _InDouble(make_physics(trainer.task, backend, dtype=torch.float64))
        for _ in range(40):
            trainer.step()
        return trainer.agent

    warp, mujoco = trained("warp"), trained("mujoco")
    assert warp.critic_optimizer.count.item() == mujoco.critic_optimizer.count.item() >= 20
    assert warp.nonfinite.item() == mujoco.nonfinite.item() == 0
    for name in ("critic", "actor"):
        torch.testing.assert_close(getattr(warp, name), getattr(mujoco, name), rtol=0.0, atol=1e-4)
    # That would mean little had the updates moved them by no more.
    fresh = Trainer(config_of(task, dynamics="oracle", backend="warp")).agent
    assert (warp.critic - fresh.critic).abs().max() > 1e-2


class _InDouble:
    """An oracle in float64 behind a learner in float32."""

    def __init__(self, physics):
        self.physics = physics

    def step(self, state, action):
        return self.physics.step(state.double(), action.double()).float()
