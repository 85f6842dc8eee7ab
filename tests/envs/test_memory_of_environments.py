"""What an environment hands out is the caller's own: editing all of it in place changes nothing that comes after."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from mage_diffsim.envs import BatchedEnv, make_physics, rollout
from mage_diffsim.envs.gymnasium_env import GymEnv, GymVectorEnv
from mage_diffsim.errors import InputError
from mage_diffsim.gradients import true_action_gradients
from tests.envs import slide


class Slide(slide.Slide):
    """Its observation is its state, the same tensor; its episodes are short."""

    name = "SlideOfMemory"
    horizon = 7

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 1.0


class Sliced(Slide):
    obs_names = ("velocity",)

    def observe(self, state):
        return state[..., 1:]

    def reward(self, obs, action, next_obs):
        return next_obs[..., 0]

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 0.4


class Broadcast(Slide):
    """Two columns of one memory."""

    def observe(self, state):
        return state[..., :1].expand(*state.shape[:-1], 2)


class Still(Slide):
    """Every function returns what it was given, or what it keeps."""

    def step(self, state, action):
        return state

    def reset(self, n, generator):
        if not hasattr(self, "start"):
            self.start = torch.linspace(-0.9, 0.9, 2 * 8, dtype=torch.float64).view(8, 2)
        return self.start[:n]

    def reward(self, obs, action, next_obs):
        return action[..., 0]

    def terminated(self, next_obs):
        if not hasattr(self, "never"):
            self.never = torch.zeros(8, dtype=torch.bool)
        return self.never[: len(next_obs)]


class Reused(Slide):
    """Writes each observation and each next state into one buffer."""

    def __init__(self):
        self.buffers = {}

    def _kept(self, key, value):
        buffer = self.buffers.setdefault((key, value.shape, value.dtype), torch.empty_like(value))
        return buffer.copy_(value)

    def step(self, state, action):
        return self._kept("step", super().step(state, action))

    def observe(self, state):
        return self._kept("observe", super().observe(state))


TASKS = [Slide, Sliced, Broadcast, Still]
SIMULATED = [*TASKS, Reused]  # without gradients


def scribble(*tensors):
    for x in tensors:
        if isinstance(x, np.ndarray):
            x[...] = 1 if x.dtype == np.bool_ else 77
        else:
            x.data.fill_(1 if x.dtype == torch.bool else 77)


def copies(*tensors):
    return [x.copy() if isinstance(x, np.ndarray) else x.clone() for x in tensors]


def batched(task, dtype, n=4):
    return BatchedEnv(task(), make_physics(task(), dtype=dtype), n, [torch.Generator().manual_seed(s) for s in (0, 1)])


def actions(steps, n, dtype):
    return torch.rand(steps, n, 1, generator=torch.Generator().manual_seed(5), dtype=dtype) * 2 - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("task", SIMULATED)
def test_a_batched_environment_does_not_notice_edits_of_what_it_gave(task, dtype):
    env, twin = batched(task, dtype), batched(task, dtype)
    got, expected = env.reset(), twin.reset()
    assert torch.equal(got, expected)
    scribble(got)
    for action in actions(20, 4, dtype):
        given = action.clone()
        before = [x.clone() for x in (twin.obs, twin.state)]
        ours, theirs = env.step(given), twin.step(action)
        for name, a, b in zip(ours._fields, ours, theirs, strict=True):
            assert torch.equal(a, b), name
        assert torch.equal(theirs.obs, before[0]) and torch.equal(theirs.state, before[1])
        for name in ("obs", "state", "elapsed"):
            assert torch.equal(getattr(env, name), getattr(twin, name)), name
        saved = env.state_dict()
        scribble(given, *ours, env.obs, env.state, env.elapsed, saved["state"], saved["elapsed"], *saved["generators"])


@pytest.mark.parametrize("task", SIMULATED)
def test_no_two_tensors_of_a_transition_share_memory(task):
    env = batched(task, torch.float32)
    env.reset()
    for action in actions(10, 4, torch.float32):
        handed = [*env.step(action), env.obs, env.state]
        kept = copies(*handed)
        for i, x in enumerate(handed):
            scribble(x)
            assert all(torch.equal(a, b) for a, b in zip(handed[i + 1 :], kept[i + 1 :], strict=True)), i


@pytest.mark.parametrize("task", SIMULATED)
def test_given_start_states_stay_the_callers(task):
    env, twin = batched(task, torch.float64), batched(task, torch.float64)
    start = torch.linspace(-0.3, 0.3, 8, dtype=torch.float64).view(4, 2)
    given = start.clone()
    scribble(env.reset(state=given), given)
    twin.reset(state=start)
    for action in actions(5, 4, torch.float64):
        assert all(torch.equal(a, b) for a, b in zip(env.step(action), twin.step(action), strict=True))


def test_environments_start_in_given_states_and_draw_nothing_for_them():
    env, twin = batched(Slide, torch.float64), batched(Slide, torch.float64)
    env.reset(), twin.reset()
    env.step(actions(1, 4, torch.float64)[0])
    state = env.state
    mask = torch.tensor([False, True, True, False])
    start = torch.full((4, 2), 0.25, dtype=torch.float64)
    start[0] = torch.nan  # a row that is not asked for may hold anything
    obs = env.reset(state=start, mask=mask)
    expected = torch.where(mask[:, None], start, state)
    assert torch.equal(env.state, expected) and torch.equal(obs, expected)
    assert env.elapsed.tolist() == [1, 0, 0, 1]
    # The streams were not touched: the next draws are the twin's.
    assert torch.equal(env.reset(), twin.reset())


def test_a_part_can_be_drawn_afresh_each_from_its_own_stream():
    env, twin = batched(Slide, torch.float64), batched(Slide, torch.float64)
    env.reset(), twin.reset()
    before = env.state
    mask = torch.tensor([False, True, False, False])
    env.reset(mask=mask)
    drawn = Slide().reset(1, twin.generators[0])
    assert torch.equal(env.state, torch.where(mask[:, None], drawn, before))
    assert torch.equal(env.generators[1].get_state(), twin.generators[1].get_state())


@pytest.mark.parametrize(
    "given, message",
    [
        ({"state": torch.zeros(3, 2)}, r"have shape \(3, 2\); accepted is \(4, 2\)"),
        ({"state": torch.full((4, 2), torch.inf)}, r"environment 0 from is \[inf, inf\], which is not finite"),
        ({"state": torch.full((4, 2), 1e300, dtype=torch.float64)}, "not finite as torch.float32"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"shape \(3,\)"),
        ({"mask": torch.zeros(4, dtype=torch.bool)}, "0 true entries"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_and_changes_nothing(given, message):
    env = batched(Slide, torch.float32)
    env.reset()
    before = env.state_dict()
    with pytest.raises(InputError, match=message):
        env.reset(**given)
    assert torch.equal(before["state"], env.state)
    assert all(torch.equal(a, g.get_state()) for a, g in zip(before["generators"], env.generators, strict=True))


def test_a_part_is_not_reset_before_all_were():
    with pytest.raises(InputError, match="before a reset of all"):
        batched(Slide, torch.float32).reset(mask=torch.tensor([True, False, False, False]))


def linear(obs):
    return -0.5 * obs.sum(-1, keepdim=True)


def scribbling(policy):
    """The same policy, by one who edits what it was given, keeps it, and gives the same memory every time."""
    memory = []

    def edits(obs):
        action = policy(obs)
        if not memory:
            memory.append(action.clone())
        memory[0].copy_(action)
        memory.append(obs)
        scribble(*memory[1:])
        return memory[0]

    return edits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("task", SIMULATED)
def test_a_rollout_does_not_notice_a_policy_that_edits_what_it_was_given(task, dtype):
    start = torch.linspace(-0.9, 0.9, 8, dtype=dtype).view(4, 2)
    kept = start.clone()
    ours = rollout(make_physics(task(), dtype=dtype), scribbling(linear), start, record=True)
    theirs = rollout(make_physics(task(), dtype=dtype), linear, start, record=True)
    for name, a, b in zip(ours._fields, ours, theirs, strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(start, kept)
    running = torch.arange(ours.actions.shape[0])[:, None] < ours.lengths
    assert torch.equal(ours.actions[running], linear(ours.obs[:-1])[running])


@pytest.mark.parametrize("task", TASKS)
def test_true_gradients_do_not_notice_a_policy_that_edits_what_it_was_given(task):
    weight = torch.tensor([0.5], dtype=torch.float64)
    start = torch.linspace(-0.4, 0.4, 8, dtype=torch.float64).view(4, 2)
    kept = start.clone()

    def policy(obs):
        return -(weight * obs.sum(-1, keepdim=True)).tanh()

    def edits(obs):
        action = policy(obs)
        obs.mul_(0.0)
        return action

    physics = make_physics(task(), dtype=torch.float64)
    ours = true_action_gradients(physics, edits, start, 0.99)
    theirs = true_action_gradients(physics, policy, start, 0.99)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=0.0, equal_nan=True)  # a task that cuts gradients has none
    assert torch.equal(start, kept)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("task", SIMULATED)
def test_gymnasium_environments_do_not_notice_edits_of_what_they_gave(task, dtype):
    env, twin = (gymnasium.wrappers.TimeLimit(GymEnv(task(), dtype=dtype), task.horizon) for _ in range(2))
    scribble(env.reset(seed=3)[0])
    twin.reset(seed=3)
    for action in actions(20, 1, torch.float32)[:, 0].numpy():
        given = action.copy()
        ours, theirs = env.step(given), twin.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4]
        np.testing.assert_array_equal(env.unwrapped.state, twin.unwrapped.state)
        scribble(ours[0], given, env.unwrapped.state)
        if ours[2] or ours[3]:
            scribble(env.reset()[0])
            twin.reset()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("task", SIMULATED)
def test_gymnasiums_vector_environment_does_not_notice_edits_of_what_it_gave(task, dtype):
    env, twin = (GymVectorEnv(task(), 4, dtype=dtype) for _ in range(2))
    scribble(env.reset(seed=3)[0])
    twin.reset(seed=3)
    for action in actions(20, 4, torch.float32).numpy():
        given = action.copy()
        ours, theirs = env.step(given), twin.step(action)
        for a, b in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(ours[4].get("final_obs", ()), theirs[4].get("final_obs", ()), strict=True):
            np.testing.assert_array_equal(a, b)
            if a is not None:
                scribble(a)
        scribble(*ours[:4], given, env.batch.obs, env.batch.state)
