"""What metrics.csv says of the critic's gradients, against central finite differences."""

from __future__ import annotations

import csv

import pytest
import torch

from mage_diffsim.diagnosis import diagnose
from mage_diffsim.dynamics import Imagined
from mage_diffsim.envs.physics import make_physics
from mage_diffsim.session import resume, train
from mage_diffsim.settings import make_config
from mage_diffsim.tables import METRIC_FIELDS, read_metrics
from mage_diffsim.training import Trainer
from tests.tiny import HYPER

FAST = HYPER | {"batch_size": 32, "warmup_steps": 30, "learning_rate": 1e-2, "updates_per_step": 2}


def differences(function, x, h=1e-6):
    """d function / d x of rows that do not depend on each other, by central differences; x [R, B, A]."""
    columns = []
    for j in range(x.shape[-1]):
        step = torch.zeros_like(x)
        step[..., j] = h
        columns.append((function(x + step) - function(x - step)) / (2.0 * h))
    return torch.stack(columns, dim=-1)


@pytest.mark.parametrize(
    ("task", "method", "dynamics"),
    [
        ("Pendulum", "mage-ddpg", "oracle"),
        ("Pendulum", "mage-td3", "learned"),
        ("CartPole", "mage-td3", "oracle"),
        ("Swimmer", "mage-td3", "learned"),
    ],
)
def test_the_gradients_of_fig_5_are_those_of_central_differences(task, method, dynamics):
    config = make_config(task, method=method, dynamics=dynamics, steps=60, seeds=(0, 1), float64=True, hyper=FAST)
    trainer = Trainer(config)
    for _ in range(45):
        trainer.step()
    agent = trainer.agent
    (draws,) = trainer.draw(1)
    batch = trainer.buffer.gather(draws.index)
    found = diagnose(agent, batch, draws, torch.ones(2, 32, trainer.task.obs_dim, dtype=torch.float64))

    @torch.no_grad()
    def imagined(action):
        if dynamics == "learned":
            return agent.dynamics.step(Imagined(batch.obs, batch.state), action, draws.imagine).obs
        physics = make_physics(trainer.task, "torch", dtype=torch.float64)
        flat = physics.step(batch.state.flatten(0, 1), action.flatten(0, 1))
        return trainer.task.observe(flat).view(*action.shape[:2], -1)

    @torch.no_grad()
    def next_q(action):
        next_obs = imagined(action)
        return agent.min_q(next_obs, agent.policy(next_obs))

    with torch.no_grad():
        action = agent.policy(batch.obs)
        next_obs = imagined(action)
        next_action = agent.policy(next_obs)
    for name, function, at in (
        ("grad/q", lambda a: agent.min_q(batch.obs, a), action),
        ("grad/q_through_dynamics", next_q, action),
        ("grad/reward", lambda a: agent.reward(batch.obs, a, imagined(a)), action),
        ("grad/q_next", lambda a: agent.min_q(next_obs, a), next_action),
    ):
        with torch.no_grad():
            expected = differences(function, at).norm(dim=-1).mean(dim=-1)
        torch.testing.assert_close(
            found[name], expected, rtol=1e-5, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert not torch.allclose(found["grad/q_through_dynamics"], found["grad/q_next"], rtol=0.1)


def test_a_run_that_an_earlier_version_began_keeps_its_columns(tmp_path):
    """Rows of more columns than the header has would shift every number behind the first new one."""
    config = make_config("Pendulum", dynamics="oracle", preset="cpu", steps=40, eval_every=20, checkpoint_every=20,
                         eval_episodes=1, gradient_episodes=0, hyper=FAST)  # fmt: skip
    train(config, tmp_path / "run")
    path = tmp_path / "run" / "metrics.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    old = [name for name in METRIC_FIELDS if name != "grad_q_through_dynamics"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, old, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    resume(tmp_path / "run", steps=60)
    *_, last = read_metrics(tmp_path / "run")
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(old)
    assert list(last) == list(METRIC_FIELDS) and last["grad_q_through_dynamics"] is None and last["grad_q"] > 0.0
    assert last["env_step"] == 60 and last["agent_restarts"] == 0
