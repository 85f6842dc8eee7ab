"""The vector form of a task in Gymnasium: seeds, automatic resets, options of a reset, divergence."""

import gymnasium
import numpy as np
import pytest
import torch

from mage_diffsim.envs import task_names
from mage_diffsim.envs.gymnasium_env import GymEnv, GymVectorEnv
from mage_diffsim.envs.tasks.pendulum import Pendulum
from mage_diffsim.errors import InputError
from tests.envs.vector_form import vector


@pytest.mark.parametrize("name", task_names())
def test_the_vector_form_has_gymnasiums_shapes_and_seeds(name):
    envs, same = vector(name, render_mode="rgb_array"), vector(name)
    assert isinstance(envs.unwrapped, GymVectorEnv)
    obs, _ = envs.reset(seed=5)
    assert obs in envs.observation_space
    np.testing.assert_array_equal(obs, same.reset(seed=5)[0])
    assert not np.array_equal(obs, envs.reset()[0]) and not np.array_equal(obs, envs.reset(seed=6)[0])
    obs, reward, terminated, truncated, _ = envs.step(envs.action_space.sample())
    assert obs in envs.observation_space and reward.shape == terminated.shape == truncated.shape == (4,)
    assert len(envs.render()) == 4


def test_the_vector_form_resets_in_the_same_step_and_keeps_the_last_observation():
    envs = vector("CartPole")
    envs.reset(seed=0)
    ended = 0
    for _ in range(100):
        obs, reward, terminated, truncated, infos = envs.step(np.ones((4, 1)))
        done = terminated | truncated
        assert (reward == 1.0).all()
        assert ("final_obs" in infos) == done.any()
        for i in np.flatnonzero(done):
            assert infos["_final_obs"][i] and abs(infos["final_obs"][i][2]) > 12 * np.pi / 180
            assert np.abs(obs[i]).max() <= 0.05
        ended += done.sum()
    assert ended > 4


def test_the_vector_form_takes_gymnasiums_time_limit():
    for envs, steps in ((vector("Pendulum"), 200), (vector("Pendulum", max_episode_steps=10), 10)):
        envs.reset(seed=0)
        truncations = [envs.step(np.zeros((4, 1)))[3].all() for _ in range(steps)]
        assert truncations == [False] * (steps - 1) + [True]


def test_the_vector_form_can_be_recorded_by_gymnasiums_wrapper():
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector("CartPole"))
    envs.reset(seed=0)
    lengths = []
    for _ in range(60):
        infos = envs.step(np.ones((4, 1)))[-1]
        if "episode" in infos:
            lengths += infos["episode"]["l"][infos["_episode"]].tolist()
    assert lengths and all(5 < length < 20 for length in lengths)


def test_the_vector_form_starts_where_it_is_told():
    envs = vector("Pendulum", dtype="float64")
    states = np.array([[0.1, 0.2], [1.0, -0.5], [-2.0, 3.0], [0.0, 0.0]])
    obs, infos = envs.reset(seed=0, options={"state": states})
    np.testing.assert_array_equal(envs.unwrapped.batch.state.numpy(), states)
    np.testing.assert_allclose(obs, np.stack([np.cos(states[:, 0]), np.sin(states[:, 0]), states[:, 1]], 1), atol=1e-15)
    assert infos == {}
    envs.reset(options={"state": states[1]})  # one state for all
    np.testing.assert_array_equal(envs.unwrapped.batch.state.numpy(), np.tile(states[1], (4, 1)))
    single = gymnasium.make("mage_diffsim/Pendulum-v0", dtype="float64")
    single.reset(options={"state": states[1]})
    action = np.array([0.3])
    stepped = envs.step(np.tile(action, (4, 1)))
    np.testing.assert_array_equal(stepped[0][2], single.step(action)[0])


def test_a_reset_mask_resets_what_gymnasiums_own_vector_environment_resets():
    """Each starts in a given state, so that the two draw nothing: they agree bit for bit."""
    start = np.array([0.5, -0.5])
    mask = np.array([True, False, True])
    sync = gymnasium.make_vec(
        "mage_diffsim/Pendulum-v0", num_envs=3, vectorization_mode="sync", dtype="float64", max_episode_steps=4
    )
    ours = vector("Pendulum", 3, dtype="float64", max_episode_steps=4)
    actions = np.array([[0.2], [-0.4], [0.6]])
    for envs in (sync, ours):
        envs.reset(seed=0, options={"state": start})
        for _ in range(2):
            envs.step(actions)
    a, b = (envs.reset(options={"reset_mask": mask.copy(), "state": start})[0] for envs in (sync, ours))
    np.testing.assert_array_equal(a, b)
    for truncated in ([False] * 3, [False, True, False]):
        theirs, mine = sync.step(actions), ours.step(actions)
        np.testing.assert_array_equal(theirs[1], mine[1])
        assert theirs[3].tolist() == mine[3].tolist() == truncated


def test_a_reset_mask_draws_new_states_for_its_environments_alone():
    envs = vector("CartPole", 4)
    before = envs.reset(seed=0)[0]
    obs = envs.reset(options={"reset_mask": np.array([False, True, False, True])})[0]
    np.testing.assert_array_equal(obs[[0, 2]], before[[0, 2]])
    assert (obs[[1, 3]] != before[[1, 3]]).any(axis=1).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stat": np.zeros((4, 2))}, "reset has no option 'stat'; accepted are: state, reset_mask"),
        ({"state": np.zeros((3, 2))}, r"options\['state'\] is .*of shape \(4, 2\) or \(2,\)"),
        ({"state": np.full((4, 2), np.nan)}, "2 finite numbers"),
        ({"state": np.full((4, 2), 1e300)}, "2 finite numbers"),
        ({"state": "upright"}, "options.'state'. is 'upright'"),
        ({"reset_mask": np.ones(3, dtype=bool)}, r"boolean array of shape \(4,\)"),
        ({"reset_mask": np.zeros(4, dtype=bool)}, "at least one entry true"),
        ({"reset_mask": np.ones(4)}, "boolean array"),
    ],
)
def test_bad_options_of_a_vector_reset_are_refused_and_change_nothing(options, message):
    envs = vector("Pendulum")
    envs.reset(seed=0)
    before = envs.unwrapped.batch.state_dict()
    with pytest.raises(InputError, match=message):
        envs.reset(options=options)
    after = envs.unwrapped.batch.state_dict()
    assert torch.equal(before["state"], after["state"]) and torch.equal(before["generators"][0], after["generators"][0])


def test_bad_options_of_a_single_reset_are_refused():
    env = GymEnv("Pendulum")
    for options, message in (
        ({"reset_mask": np.ones(1, dtype=bool)}, "no option 'reset_mask'; accepted are: state"),
        ({"state": np.full(2, 1e300)}, "2 finite numbers"),
        ({"state": ["up", "right"]}, "2 finite numbers"),
    ):
        with pytest.raises(InputError, match=message):
            env.reset(options=options)
    assert env.reset(options={})[0].shape == (3,)
    with pytest.raises(InputError, match=r"seed is \[1, 2\]; accepted is one whole number"):
        vector("Pendulum").reset(seed=[1, 2])


class Breaking(Pendulum):
    """What is named becomes NaN once the angle is above 0.5."""

    name = "BreakingPendulum"

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def _broken(self, what, angle, value):
        return torch.where(angle > 0.5, torch.nan, value) if self.what == what else value

    def step(self, state, action):
        return self._broken("state", state[..., :1], super().step(state, action))

    def observe(self, state):
        # it does not show in the reset, whose state is at 0.4
        return self._broken("observation", state[..., :1], super().observe(state))

    def reward(self, obs, action, next_obs):
        return self._broken(
            "reward", torch.atan2(next_obs[..., 1], next_obs[..., 0]), super().reward(obs, action, next_obs)
        )


@pytest.mark.parametrize("what", ["state", "observation", "reward", "nothing"])
def test_single_and_vector_environments_treat_what_is_not_finite_alike(what):
    start = {"state": np.array([0.4, 1.5])}
    action = np.array([0.9], dtype=np.float32)
    single = GymEnv(Breaking(what), dtype="float64")
    envs = GymVectorEnv(Breaking(what), 3, dtype="float64")
    sync = gymnasium.vector.SyncVectorEnv(
        [lambda: GymEnv(Breaking(what), dtype="float64")] * 3, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    single.reset(options=dict(start))
    for vectorised in (envs, sync):
        vectorised.reset(options=dict(start))
    diverged = False
    for _ in range(4):
        before = single.state
        obs, reward, terminated, truncated, info = single.step(action)
        many = [v.step(np.tile(action, (3, 1))) for v in (envs, sync)]
        diverged = info["diverged"]
        assert truncated == diverged and not terminated and np.isfinite(obs).all() and np.isfinite(reward)
        for _, rewards, _, truncations, infos in many:
            assert rewards.tolist() == [reward] * 3 and truncations.tolist() == [truncated] * 3
            if diverged:
                assert infos["final_info"]["diverged"].all() and infos["final_info"]["_diverged"].all()
                np.testing.assert_array_equal(np.stack(infos["final_obs"]), np.tile(obs, (3, 1)))
        infos = many[0][4]
        assert infos["diverged"].tolist() == [diverged] * 3 and infos["_diverged"].all()
        if diverged:
            np.testing.assert_array_equal(before, single.state)
            assert reward == 0.0
            break
    assert diverged == (what != "nothing")
