"""The tasks through Gymnasium: its own checker, time limits, seeds, vector form, and laziness of the import."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mage_diffsim.bridges.errors import InputError
from mage_diffsim.envs import make_task, registry, task_names
from mage_diffsim.envs.gymnasium_env import GymEnv, GymVectorEnv, register_gymnasium
from mage_diffsim.envs.tasks.cartpole import CartPole

UNBOUNDED = pytest.mark.filterwarnings("ignore:.*A Box observation space m(in|ax)imum value is -?infinity")


@UNBOUNDED
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", task_names())
def test_every_task_passes_gymnasiums_checker(name, dtype):
    env = gymnasium.make(f"mage_diffsim/{name}-v0", dtype=dtype, render_mode="rgb_array")
    check_env(env.unwrapped)
    assert env.observation_space.dtype == np.dtype(dtype)
    assert env.spec.max_episode_steps == make_task(name).horizon


def test_the_time_limit_truncates_at_the_horizon():
    env = gymnasium.make("mage_diffsim/Pendulum-v0")
    env.reset(seed=0)
    for step in range(1, 201):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not terminated and truncated == (step == 200)


def test_matches_gymnasiums_pendulum_from_the_same_state():
    ours, theirs = gymnasium.make("mage_diffsim/Pendulum-v0", dtype="float64"), gymnasium.make("Pendulum-v1")
    theirs.reset(seed=0)
    ours.reset(options={"state": theirs.unwrapped.state})
    rng = np.random.default_rng(0)
    for _ in range(200):
        a = rng.uniform(-1, 1, size=1)
        obs, reward, _, ended, _ = ours.step(a)
        their_obs, their_reward, _, their_ended, _ = theirs.step(2 * a)
        np.testing.assert_allclose(obs, their_obs, atol=1e-6)
        assert reward == pytest.approx(their_reward, abs=1e-6) and ended == their_ended


def test_cartpole_terminates_and_options_reach_the_task():
    env = gymnasium.make("mage_diffsim/CartPole-v0")
    env.reset(seed=0)
    steps, terminated = 0, False
    while not terminated:
        *_, terminated, truncated, _ = env.step(np.ones(1))
        steps += 1
    assert steps < 20 and not truncated
    env = gymnasium.make("mage_diffsim/Pendulum-v0", clip_order="v0")
    assert env.unwrapped.task.clip_order == "v0"


def test_optional_packages_are_imported_only_when_asked_for():
    code = """
import sys, mage_diffsim.envs, mage_diffsim.envs.contract
print([m for m in ("gymnasium", "jax", "warp", "mujoco", "matplotlib") if m in sys.modules])
import gymnasium
env = gymnasium.make("mage_diffsim.envs.gymnasium_env:mage_diffsim/CartPole-v0")
print(env.reset(seed=0)[0].shape, [m for m in ("jax", "warp", "mujoco") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "(4,) []"]


def test_a_task_of_ones_own_becomes_a_gymnasium_environment(monkeypatch):
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))

    class Short(CartPole):
        name = "ShortCartPole"
        horizon = 3

    registry.register_task(Short)
    try:
        assert register_gymnasium() == ("mage_diffsim/ShortCartPole-v0",)
        assert register_gymnasium() == ()
        assert gymnasium.make("mage_diffsim/ShortCartPole-v0").spec.max_episode_steps == 3
    finally:
        del gymnasium.registry["mage_diffsim/ShortCartPole-v0"]


def test_a_broken_installed_task_is_left_out_with_a_warning(monkeypatch):
    monkeypatch.setattr(registry, "_TASKS", registry._TASKS | {"Absent": "absent_package.tasks:Absent"})
    with pytest.warns(UserWarning, match="task Absent is not available in Gymnasium: .*no module"):
        assert register_gymnasium() == ()


@pytest.mark.parametrize("action", [np.zeros(2), np.array([np.nan]), np.array(0.5)])
def test_a_bad_action_is_refused(action):
    env = GymEnv("Pendulum")
    env.reset(seed=0)
    before = env.state
    with pytest.raises(InputError, match=r"accepted are finite numbers of shape \(1,\)"):
        env.step(action)
    assert np.array_equal(before, env.state)


def test_bad_options_are_refused():
    with pytest.raises(InputError, match="unknown dtype 'float16'"):
        GymEnv("Pendulum", dtype="float16")
    with pytest.raises(InputError, match="unknown render_mode 'human'"):
        GymEnv("Pendulum", render_mode="human")
    with pytest.raises(InputError, match=r"options \['clip_order'\]"):
        GymEnv(make_task("Pendulum"), clip_order="v0")
    env = GymEnv("Pendulum")
    with pytest.raises(InputError, match="call reset"):
        env.step(np.zeros(1))
    with pytest.raises(InputError, match="accepted are 2 finite numbers"):
        env.reset(options={"state": np.zeros(3)})


@pytest.mark.parametrize("name", task_names())
def test_the_picture_shows_the_state(name):
    env = GymEnv(name, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert first.dtype == np.uint8 and first.ndim == 3 and first.shape[2] == 3 and first.std() > 5
    for _ in range(20):
        env.step(np.ones(env.action_space.shape))
    assert not np.array_equal(first, env.render())
    assert GymEnv(name).render() is None


def vector(name, n=4, **options):
    return gymnasium.make_vec(f"mage_diffsim/{name}-v0", num_envs=n, vectorization_mode="vector_entry_point", **options)


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
