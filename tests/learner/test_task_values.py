"""A task function whose values cannot be trained on is refused."""

from __future__ import annotations

import re

import pytest
import torch

from mage_diffsim.envs import make_physics, make_task, task_names
from mage_diffsim.envs.batched import advance
from mage_diffsim.envs.contract import check_task
from mage_diffsim.envs.spot_check import draw_transitions, find_cuts, require_values
from mage_diffsim.envs.tasks.cartpole import CartPole
from mage_diffsim.errors import InputError
from mage_diffsim.session import resume, train
from tests.learner.short_task import Detached, Short, settings


class Mean(Short):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs).mean()


class MeanOfRows(Short):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs) * 0.0 + super().reward(obs, action, next_obs).mean()


class FirstIndex(Short):
    """Written for [B, O]: of [R, B, O] it takes a run."""

    def reward(self, obs, action, next_obs):
        return -obs[:, 2].square()


class ObserveNormalised(Short):
    def observe(self, state):
        obs = super().observe(state)
        return obs / (1.0 + obs.flatten(0, -2).abs().amax(0))


class KeepsAxis(Short):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs)[..., None]


class InDouble(Short):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs).double()


class TerminatedFloat(Short):
    def terminated(self, next_obs):
        return super().terminated(next_obs).float()


class TerminatedScalar(Short):
    def terminated(self, next_obs):
        return torch.zeros((), dtype=torch.bool)


class TerminatedByMean(CartPole):
    def terminated(self, next_obs):
        return next_obs[..., 0] > next_obs[..., 0].mean()


class NaNReward(Short):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs) * torch.nan


class NaNStep(Short):
    def step(self, state, action):
        return super().step(state, action) * torch.nan


class ResetFloat(Short):
    def reset(self, n, generator):
        return super().reset(n, generator).float()


class ResetFlat(Short):
    def reset(self, n, generator):
        return super().reset(n, generator)[:, 0]


class ResetGlobal(Short):
    def reset(self, n, generator):
        return torch.rand(n, 2, dtype=torch.float64)


class ObserveWide(Short):
    def observe(self, state):
        return torch.cat([super().observe(state), state], -1)


class StepInDouble(Short):
    def step(self, state, action):
        return super().step(state, action).double()


class StepInPlace(Short):
    def step(self, state, action):
        following = super().step(state, action)
        state.zero_()
        return following


class StepMean(Short):
    def step(self, state, action):
        return super().step(state, action) + 1e-3 * state.mean(0)


class Raises(Short):
    def reward(self, obs, action, next_obs):
        raise RuntimeError("something\nof the user's own")


class NotATensor(Short):
    def terminated(self, next_obs):
        return False


class RewardFloat(Short):
    def reward(self, obs, action, next_obs):
        return 1.0


class RewardArray(Short):
    def reward(self, obs, action, next_obs):
        return super().reward(obs, action, next_obs).detach().numpy()


class ObserveList(Short):
    def observe(self, state):
        return list(super().observe(state).unbind(-1))


class StepTuple(Short):
    """As of gymnasium."""

    def step(self, state, action):
        return super().step(state, action), {}


class StepInPlaceOnly(Short):
    def step(self, state, action):
        state += 0.05


class ResetArray(Short):
    def reset(self, n, generator):
        return super().reset(n, generator).numpy()


class ObserveRaises(Short):
    def observe(self, state):
        raise KeyError("angle")


class RewardClamps(Short):
    """Changes what is stored and trained on, although not in the states of a first look."""

    def reward(self, obs, action, next_obs):
        next_obs.clamp_(-7.0, 7.0)
        return super().reward(obs, action, next_obs)


class ObserveClamps(Short):
    def observe(self, state):
        state[..., 1].clamp_(-7.0, 7.0)
        return super().observe(state)


class TerminatedClamps(Short):
    def terminated(self, next_obs):
        next_obs.clamp_(-7.0, 7.0)
        return super().terminated(next_obs)


class StepClamps(Short):
    def step(self, state, action):
        state[..., 1].clamp_(-7.0, 7.0)
        return super().step(state, action)


VALUES = {
    Mean: ("reward", r"\(\) torch.float64 on cpu; accepted is \(16,\) torch.float64"),
    MeanOfRows: ("reward", "differ|a row alone"),
    FirstIndex: ("reward", "leading axes"),
    ObserveNormalised: ("observe", "a row alone and in the batch differ"),
    KeepsAxis: ("reward", r"\(16, 1\) .*; accepted is \(16,\)"),
    InDouble: ("reward", "torch.float32 in gives torch.float64 out; keep the dtype"),
    TerminatedFloat: ("terminated", r"gave \(1,\) torch.float32; accepted is \(1,\) torch.bool"),
    TerminatedScalar: ("terminated", r"gave \(\) torch.bool; accepted is \(1,\)"),
    TerminatedByMean: ("terminated", "a row alone and in the batch differ"),
    NaNReward: ("reward", "16 of 16 are not finite"),
    NaNStep: ("step", "gave no finite state"),
    ResetFloat: ("reset", r"\(1, 2\) torch.float32; accepted is \(1, 2\) torch.float64"),
    ResetFlat: ("reset", r"\(1,\) torch.float64; accepted is \(1, 2\)"),
    ResetGlobal: ("reset", "global random stream"),
    ObserveWide: ("observe", r"gave \(1, 5\) torch.float32; accepted is \(1, 3\)"),
    StepInDouble: ("step", r"gave \(1, 2\) torch.float64; accepted is \(1, 2\) torch.float32"),
    StepInPlace: ("step", "input state is changed in place"),
    StepMean: ("step", "a row alone and in the batch differ"),
    Raises: ("reward", "raised RuntimeError: something of the user's own"),
    NotATensor: ("terminated", r"gave a bool; accepted is a tensor \(1,\) torch.bool"),
    RewardFloat: ("reward", r"gave a float; accepted is a tensor \(1,\) torch.float32"),
    RewardArray: ("reward", "gave a numpy.ndarray; accepted is a tensor"),
    ObserveList: ("observe", r"gave a list; accepted is a tensor \(1, 3\) torch.float32"),
    StepTuple: ("step", r"gave a tuple; accepted is a tensor \(1, 2\) torch.float32"),
    StepInPlaceOnly: ("step", "gave None; accepted is a tensor"),
    ResetArray: ("reset", r"gave a numpy.ndarray; accepted is a tensor \(1, 2\) torch.float64"),
    ObserveRaises: ("observe", "raised "),
    RewardClamps: ("reward", "input next_obs is changed in place"),
    ObserveClamps: ("observe", "input state is changed in place"),
    TerminatedClamps: ("terminated", "input next_obs is changed in place"),
    StepClamps: ("step", "input state is changed in place"),
}
KINDS = [task for task, (_, sentence) in VALUES.items() if "accepted is a tensor" in sentence]
CLAMPS = [RewardClamps, ObserveClamps, TerminatedClamps, StepClamps]


@pytest.mark.parametrize("task", [*KINDS, *CLAMPS, ObserveRaises, ResetFlat], ids=lambda t: t.__name__)
def test_check_task_says_the_same_of_what_is_no_tensor_or_changes_its_input(task):
    function, sentence = VALUES[task]
    failures = check_task(task(), "torch", samples=4, steps=4).failures
    assert {c.subject.partition(" ")[0] for c in failures} == {function}
    said = sentence.partition(r" \(")[0]  # what follows is of another number of states and in float64
    assert re.search(said if task is not ResetFlat else r"^\(4,\) torch.float64", failures[0].detail), failures


def test_a_reward_that_clamps_its_input_would_have_changed_what_is_stored():
    stored = {}
    for task in (Short(), RewardClamps()):
        physics = make_physics(task, dtype=torch.float64)
        state = torch.tensor([[1.0, 8.0]], dtype=torch.float64)
        action = torch.ones(1, 1, dtype=torch.float64)
        stored[type(task)] = advance(physics, state, task.observe(state), action).next_obs
    assert stored[Short][0, 2] == 8.0 and stored[RewardClamps][0, 2] == 7.0


@pytest.mark.parametrize("task", VALUES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("method", ["mage-td3", "dyna-td3", "td3"])
def test_a_function_whose_values_cannot_be_trained_on_is_refused_by_every_method(task, method, tmp_path):
    function, sentence = VALUES[task]
    config = settings(task(), method=method, dynamics="learned" if method == "td3" else "oracle")
    with pytest.raises(InputError, match=rf"^{function}\(\) of task \w+ .*({sentence})") as refused:
        train(config, tmp_path / "run", task=task())
    assert f"mage-diffsim check-task {__file__}:{task.__name__}" in str(refused.value)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_a_resumed_run_is_checked_again(tmp_path):
    train(settings(Short()), tmp_path / "run", task=Short())
    with pytest.raises(InputError, match=r"reward\(\) of task Pendulum cuts the gradient"):
        resume(tmp_path / "run", steps=6, task=Detached())


@pytest.mark.parametrize("name", task_names())
def test_every_task_passes_on_a_few_states(name):
    task = make_task(name)
    for dtype in (torch.float32, torch.float64):
        physics = make_physics(task, dtype=dtype)
        at = draw_transitions(task, physics, 3)
        assert len(at.state) == 18 and at.state.dtype == torch.float64
        require_values(task, at, physics)
        assert find_cuts(task, at, step=physics.backend == "torch") == ()
