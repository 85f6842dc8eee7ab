"""The size of the true action-gradient over the horizon, and what oracles on different backends say of it."""

from __future__ import annotations

import csv

import pytest
import torch

from mage_diffsim.envs.physics import make_physics
from mage_diffsim.experiments import horizons
from mage_diffsim.experiments.cells import Cell, Outcome
from mage_diffsim.session import train
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer
from tests.tiny import SWEPT


@pytest.fixture(scope="module")
def trainer():
    return Trainer(make_config("Pendulum", dynamics="oracle", backend="torch", **SWEPT))


def test_rows_are_differences_of_the_return_over_each_horizon(trainer):
    rows = horizons.horizon_rows(trainer, "curve")
    assert [h for h in horizons.HORIZONS if h <= 200] == sorted({r["horizon"] for r in rows})
    assert len(rows) == 8 * 2 * horizons.EPISODES
    physics = make_physics(trainer.task, dtype=torch.float64)
    start = trainer.initial_states(horizons.EPISODES, trainer.streams.generators("evaluate", 0))

    def value(first: float, horizon: int) -> torch.Tensor:
        state, total = start, 0.0
        for t in range(horizon):
            obs = trainer.task.observe(state)
            with torch.no_grad():
                action = trainer.policy(obs) + (first if t == 0 else 0.0)
            state = physics.step(state, action)
            total = total + 0.99**t * trainer.task.reward(obs, action, trainer.task.observe(state))
        return total

    for horizon, eps in ((1, 1e-4), (5, 1e-3)):  # the policy computes in float32: larger steps than rounding
        expected = ((value(eps, horizon) - value(-eps, horizon)) / (2 * eps)).abs().view(2, -1)
        for run, seed in enumerate((0, 1)):
            found = [r["norm"] for r in rows if (r["horizon"], r["seed"]) == (horizon, seed)]
            torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected[run], rtol=2e-3, atol=2e-4)


def test_oracles_agree_and_a_wrong_one_is_seen(trainer, monkeypatch):
    pytest.importorskip("jax")
    pytest.importorskip("warp")
    found = horizons.disagreement(trainer, 200, 2)  # a whole episode
    assert set(found) == {"jax", "warp"} and max(x.max() for x in found.values()) < 1e-8

    real = horizons.oracle

    def wrong(trainer, backend):
        physics = real(trainer, backend)
        step = physics.step
        monkeypatch.setattr(physics, "step", lambda state, action: step(state, 1.001 * action))
        return physics

    monkeypatch.setattr(horizons, "oracle", wrong)
    assert min(x.median() for x in horizons.disagreement(trainer, 50, 2).values()) > 1e-4


def test_a_backend_that_cannot_be_had_is_left_out(trainer):
    assert horizons.oracle(trainer, "mujoco") is None


def test_files_hold_every_curve_and_nothing_is_measured_twice(tmp_path, monkeypatch, capsys):
    config = make_config("Pendulum", dynamics="oracle", backend="torch", **{**SWEPT, "steps": 20})
    train(config, tmp_path / "a")
    outcome = Outcome(Cell("a", config), tmp_path / "a", "done")
    horizons.write_horizons([("one", outcome), ("two", outcome)], tmp_path, "tiny actors", longest=100)
    with open(tmp_path / "horizon.csv") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == horizons.FIELDS and {r["curve"] for r in rows} == {"one", "two"}
    assert (tmp_path / "horizon.png").stat().st_size > 10_000
    assert {r["horizon"] for r in rows} == {str(h) for h in horizons.HORIZONS if h <= 100}
    assert capsys.readouterr().out.count("measuring the true gradient over the horizon, 1 of 2: a") == 1

    first = (tmp_path / "horizon.csv").read_text()
    monkeypatch.setattr(horizons, "load_trainer", lambda *_, **__: pytest.fail("measured again"))
    horizons.write_horizons([("one", outcome), ("two", outcome)], tmp_path, "tiny actors")
    assert (tmp_path / "horizon.csv").read_text() == first and not capsys.readouterr().out


def test_the_trajectories_of_a_run_count_as_one_value():
    rows = [dict(curve="c", seed=s, horizon=5, norm=n) | {"lambda": 0.2} for s in (0, 1) for n in (1.0, 100.0)]
    assert [(r["env_step"], pytest.approx(r["norm"])) for r in horizons._by_run(rows)] == [(5, 10.0), (5, 10.0)]
