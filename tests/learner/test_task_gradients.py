"""A task function that cuts the gradient is refused where a loss needs it, and Eq. 14 is left empty elsewhere."""

from __future__ import annotations

import csv
import logging
import math

import pytest
import torch

from mage_diffsim.envs import make_physics, spot_check
from mage_diffsim.envs.tasks.cartpole import CartPole
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError
from mage_diffsim.gradients import gradient_error, true_action_gradients
from mage_diffsim.session import train
from mage_diffsim.tables import read_evaluations
from mage_diffsim.training import Trainer
from tests.learner.short_task import Detached, Short, settings


class Numpy(Short):
    def reward(self, obs, action, next_obs):
        return torch.from_numpy(super().reward(obs, action, next_obs).numpy())


class DetachedNumpy(Short):
    def reward(self, obs, action, next_obs):
        return torch.from_numpy(super().reward(obs, action, next_obs).detach().numpy())


class NoGrad(Short):
    def reward(self, obs, action, next_obs):
        with torch.no_grad():
            return super().reward(obs, action, next_obs)


class Items(Short):
    def reward(self, obs, action, next_obs):
        values = super().reward(obs, action, next_obs).flatten().tolist()
        return torch.tensor(values, dtype=obs.dtype).view(obs.shape[:-1])


class OneTermDetached(Short):
    """The cost of the action goes through numpy, the rest does not."""

    def reward(self, obs, action, next_obs):
        return super().reward(obs, action.detach(), next_obs)


class NextObsDetached(Short):
    def reward(self, obs, action, next_obs):
        return -next_obs.detach()[..., 2].square() - action[..., 0].square()


class WrongSign(Short):
    def reward(self, obs, action, next_obs):
        reward = -next_obs[..., 2].square()
        return 2.0 * reward.detach() - reward


class NotANumber(Short):
    """Its value is right everywhere; the square root that is not chosen has no derivative."""

    def reward(self, obs, action, next_obs):
        x = next_obs[..., 2]
        return torch.where(x > 0.0, x.sqrt(), 0.0) - x - action[..., 0].square()


class ObserveDetached(Short):
    def observe(self, state):
        return super().observe(state).detach()


class VelocityDetached(Short):
    def observe(self, state):
        theta, velocity = state.unbind(-1)
        return super().observe(torch.stack([theta, velocity.detach()], -1))


class StepDetached(Short):
    def step(self, state, action):
        return super().step(state, action.detach())


class StepNumpy(Short):
    def step(self, state, action):
        return torch.from_numpy(super().step(state.detach(), action.detach()).numpy())


CUTS = {
    Detached: "reward",
    Numpy: "reward",
    DetachedNumpy: "reward",
    NoGrad: "reward",
    Items: "reward",
    OneTermDetached: "reward",
    NextObsDetached: "reward",
    WrongSign: "reward",
    NotANumber: "reward",
    ObserveDetached: "observe",
    VelocityDetached: "observe",
    StepDetached: "step",
    StepNumpy: "step",
}


@pytest.mark.parametrize("task", CUTS, ids=lambda t: t.__name__)
def test_a_function_that_cuts_the_gradient_is_refused_where_the_loss_needs_it(task, tmp_path):
    sentence = rf"^{CUTS[task]}\(\) of task Pendulum .*the critic's loss needs it; .*; `mage-diffsim check-task \S+`"
    for loss in ("mage", "sobolev"):
        with pytest.raises(InputError, match=sentence):
            train(settings(task(), loss=loss), tmp_path / "run", task=task())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "task", [Numpy, DetachedNumpy, OneTermDetached, ObserveDetached, StepDetached, StepNumpy], ids=lambda t: t.__name__
)
def test_where_no_gradient_is_needed_a_cut_is_no_fault_and_equation_14_is_left_empty(task, tmp_path, caplog):
    for i, method in enumerate(("dyna-td3", "td3")):
        caplog.clear()
        more = {"dynamics": "oracle"} if method == "dyna-td3" else {"dynamics": "learned"}
        config = settings(task(), method=method, eval_every=2, **more)
        train(config, tmp_path / str(i), task=task())
        rows = read_evaluations(tmp_path / str(i))
        assert [row["env_step"] for row in rows] == [0, 2, 4]
        for row in rows:
            assert math.isfinite(row["return_mean"])
            assert [v for k, v in row.items() if k.startswith("gradient_")] == [None] * 4
        with open(tmp_path / str(i) / "eval.csv") as file:
            assert [row["gradient_cosine"] for row in csv.DictReader(file)] == [""] * 3
        records = [r for r in caplog.records if r.name != "mage_diffsim.settings"]  # settings that td3 does not use
        said = [r.getMessage() for r in records if r.levelno >= logging.WARNING]
        assert len(said) == 1 and f"are left empty, as {CUTS[task]}() " in said[0]


@pytest.mark.parametrize("task", [ObserveDetached, StepDetached, StepNumpy], ids=lambda t: t.__name__)
def test_dynamics_whose_gradients_are_learned_do_not_need_those_of_the_simulator(task, tmp_path):
    for dynamics in ("learned", "hybrid-learned-gradients"):
        train(settings(task(), dynamics=dynamics), tmp_path / dynamics, task=task())
        assert read_evaluations(tmp_path / dynamics)[-1]["gradient_error"] is None
    with pytest.raises(InputError, match=r"\(\) of task Pendulum cuts the gradient"):
        train(settings(task(), dynamics="hybrid-oracle-gradients"), tmp_path / "run", task=task())


def test_a_learned_reward_does_not_need_the_gradient_of_the_tasks_reward(tmp_path):
    train(settings(Detached(), reward="learned"), tmp_path / "run", task=Detached())
    assert read_evaluations(tmp_path / "run")[-1]["gradient_error"] is None


class OfObs(Short):
    """Depends on neither action nor next_obs."""

    def reward(self, obs, action, next_obs):
        return -obs[..., 2].square()


class View(Short):
    """Gives a view of what it is given."""

    def reward(self, obs, action, next_obs):
        return next_obs[..., 0]


class Rounded(Short):
    """A sensor with a resolution: its derivative is 0 almost everywhere."""

    def observe(self, state):
        return (super().observe(state) * 50.0).round() / 50.0


class StraightThrough(Short):
    """The same with a derivative of choice where the function has none."""

    def observe(self, state):
        obs = super().observe(state)
        return obs + ((obs * 50.0).round() / 50.0 - obs).detach()


class RoundedByLayout(Short):
    """As of matrix products, which other shapes let another kernel compute."""

    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs) * (1.0 + 4e-16 * (obs.ndim > 2))


class Kinked(Short):
    def reward(self, obs, action, next_obs):
        return -next_obs[..., 2].abs() - action[..., 0].abs().clamp(min=0.5)


@pytest.mark.parametrize(
    "task", [CartPole, OfObs, View, Rounded, RoundedByLayout, StraightThrough, Kinked], ids=lambda t: t.__name__
)
def test_what_is_constant_or_has_kinks_cuts_nothing(task, tmp_path, caplog):
    train(settings(task()), tmp_path / "run", task=task())
    row = read_evaluations(tmp_path / "run")[-1]
    assert row["gradient_error"] is not None and math.isfinite(row["gradient_error"])
    assert not [r for r in caplog.records if "left empty" in r.getMessage()]


def test_a_constant_reward_has_an_error_and_no_cosine(tmp_path):
    train(settings(CartPole()), tmp_path / "run", task=CartPole())
    row = read_evaluations(tmp_path / "run")[-1]
    assert row["gradient_error"] > 0.0 and row["gradient_cosine"] is None and row["gradient_nonfinite"] == 0


class Wide(Pendulum):
    """A chain of 64 states, each of which moves the next; ``cut`` detaches what moves the last."""

    name = "Wide"
    state_names = obs_names = tuple(f"x{i}" for i in range(64))
    physics = {}  # noqa: RUF012

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.cut = cut

    def observe(self, state):
        return state.clone()

    def step(self, state, action):
        moved = 0.9 * state + 0.1 * state.roll(1, -1) + 0.1 * action
        return torch.cat([moved[..., :-1], moved[..., -1:].detach()], -1) if self.cut else moved

    def reward(self, obs, action, next_obs):
        return -next_obs.square().mean(-1)

    def terminated(self, next_obs):
        return next_obs[..., 0] > 1e9

    def reset(self, n, generator):
        return torch.rand(n, 64, dtype=torch.float64, generator=generator)


def test_of_a_wide_task_some_derivatives_are_looked_at(monkeypatch):
    task, calls = Wide(), []
    physics = make_physics(task, dtype=torch.float64)
    at = spot_check.draw_transitions(task, physics, 1)
    step = Wide.step
    monkeypatch.setattr(Wide, "step", lambda self, *inputs: calls.append(1) or step(self, *inputs))
    assert spot_check.find_cuts(task, at, step=True) == ()
    few = len(calls)
    monkeypatch.setattr(spot_check, "MOST", 64)
    cuts = spot_check.find_cuts(Wide(cut=True), at, step=True)
    assert [(cut.function, cut.wrt) for cut in cuts] == [("step", "state"), ("step", "action")]
    assert all(f"d step[63] / d {cut.wrt}[" in cut.detail for cut in cuts)
    assert few < 0.6 * (len(calls) - few)


def test_looking_draws_from_no_stream_of_the_training():
    config = settings(Short(), seeds=(0, 1))
    stream = torch.get_rng_state()
    with_check, without = Trainer(config, check=True), Trainer(config)
    assert torch.equal(stream, torch.get_rng_state())
    for _ in range(4):
        with_check.step()
        without.step()
    assert torch.equal(with_check.buffer.rows, without.buffer.rows)
    assert torch.equal(with_check.agent.critic, without.agent.critic)


@pytest.mark.parametrize(
    "task", [Detached, DetachedNumpy, NoGrad, ObserveDetached, StepNumpy], ids=lambda t: t.__name__
)
def test_true_gradients_through_a_cut_are_nan_and_not_zero(task):
    physics = make_physics(task(), dtype=torch.float64)
    initial = task().reset(2, torch.Generator().manual_seed(0))
    true = true_action_gradients(physics, lambda obs: obs[:, :1], initial, 0.99, 4)
    assert true.discounted.isnan().all()
    compared = gradient_error(true, torch.ones_like(true.actions), 0.99)
    assert compared.error.isnan().all() and compared.cosine.isnan().all()
