"""The tasks through Gymnasium: its own checker, time limits, seeds, bad actions and pictures."""

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mage_diffsim.envs import make_task, task_names
from mage_diffsim.envs.gymnasium_env import GymEnv
from mage_diffsim.errors import InputError

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
