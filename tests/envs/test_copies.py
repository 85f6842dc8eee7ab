"""copy.deepcopy and pickle of tasks, physics and environments: a copy goes on as the original would, apart from it."""

from __future__ import annotations

import copy
import functools
import inspect
import multiprocessing
import pickle

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import mage_diffsim.envs.gymnasium_env as gymnasium_env
from mage_diffsim.bridges import from_jax
from mage_diffsim.envs import BatchedEnv, Physics, backends_of, make_physics, make_task, task_names
from mage_diffsim.envs.identity.options import options_of as options_of_task
from mage_diffsim.errors import InputError
from tests.marks import BORROWED, LARGE, slow_but

pytest.importorskip("mujoco")

COMPILING = ("mjx", "mujoco-warp")
"""Backends that take seconds to make and a minute to step: made here for a few tasks, not stepped."""
HOWS = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}
EXTRAS = {"jax": "jax", "mjx": "mujoco.mjx", "warp": "warp", "mujoco-warp": "mujoco_warp"}


def every_physics():
    for name in task_names():
        for backend in () if name in BORROWED else backends_of(make_task(name)):
            if backend not in COMPILING or name in ("InvertedPendulum", "Reacher"):
                yield name, backend


FAST = [(name, backend) for name, backend in every_physics() if not (backend == "warp" and name in LARGE)]


@functools.cache
def made(name, backend):
    """The physics in float64 where the backend has it; made once for both ways of copying."""
    if backend in EXTRAS:
        pytest.importorskip(EXTRAS[backend])
    dtype = torch.float32 if backend == "mujoco-warp" else torch.float64
    try:
        return make_physics(make_task(name), backend, dtype=dtype)
    except InputError as refused:
        pytest.skip(str(refused))


def options_of(physics):
    return {k: v for k, v in vars(physics).items() if isinstance(v, (str, bool, torch.dtype, torch.device))}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("name", "backend"), slow_but(FAST, every_physics()))
def test_copied_physics_give_the_same_steps_and_gradients(name, backend, how):
    physics = made(name, backend)
    again = HOWS[how](physics)
    assert type(again) is type(physics) and options_of(again) == options_of(physics)
    assert again.task is not physics.task and repr(again) == repr(physics)
    assert {"task", *physics._options()} == set(inspect.signature(type(physics)).parameters)
    assert again.task.state_names == physics.task.state_names
    if backend in COMPILING:
        assert again.simulation.fingerprint == physics.simulation.fingerprint
        return
    state = physics.task.reset(3, torch.Generator().manual_seed(0)).to(physics.dtype)
    action = torch.linspace(-0.9, 0.9, 3 * physics.task.action_dim, dtype=physics.dtype).view(3, -1)

    def step_and_gradients(of: Physics):
        inputs = state.clone().requires_grad_(), action.clone().requires_grad_()
        moved = of.step(*inputs)
        return moved.detach(), *torch.autograd.grad(moved.square().sum(), inputs)

    for expected, found in zip(step_and_gradients(physics), step_and_gradients(again), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("name", "backend", "options"),
    [
        ("Pendulum", "jax", {"derivative": "fd"}),
        ("Pendulum", "jax", {"residuals": "keep"}),
        ("Pendulum", "warp", {"derivative": "fd", "dtype": torch.float64}),
        ("InvertedPendulum", "mujoco", {"derivative": "fd-forward"}),
        ("InvertedPendulum", "mjx", {"derivative": "implicit", "residuals": "keep"}),
    ],
)  # fmt: skip
def test_copied_physics_keep_their_options(name, backend, options, how):
    pytest.importorskip(EXTRAS.get(backend, "mujoco"))
    again = HOWS[how](make_physics(make_task(name), backend, **options))
    assert options.items() <= vars(again).items()


def test_a_copy_keeps_the_solver():
    task = make_task("HalfCheetah")
    physics = make_physics(task, "mujoco", dtype=torch.float64)
    state = task.reset(16, torch.Generator().manual_seed(0))
    state[:, 1] -= 0.1  # feet in the ground
    action = torch.ones(16, 6, dtype=torch.float64)
    own = make_physics(task, "mujoco", dtype=torch.float64, solver="model")
    stopped = own.step(state, action)
    assert not torch.equal(stopped, physics.step(state, action))
    assert torch.equal(copy.deepcopy(own).step(state, action), stopped)


@pytest.mark.parametrize("how", HOWS)
def test_a_copied_task_keeps_its_options_and_its_model_to_itself(how):
    assert HOWS[how](make_task("Pendulum", clip_order="v0")).clip_order == "v0"
    task = make_task("InvertedPendulum")
    task.simulation.model.body_mass[1] = 7.0
    before = task.simulation.fingerprint
    again = HOWS[how](task)
    assert again.simulation.model.body_mass[1] == 7.0 and again.simulation.fingerprint == before
    again.simulation.model.body_mass[1] = 8.0
    assert task.simulation.model.body_mass[1] == 7.0
    assert again.simulation.fingerprint != before == task.simulation.fingerprint  # compiled kernels are not shared


ENVIRONMENTS = {
    "batched": lambda: BatchedEnv(
        task := make_task("Pendulum"),
        make_physics(task, "torch"),
        4,
        [torch.Generator().manual_seed(k) for k in (1, 2)],
        horizon=7,
    ),
    "batched jax": lambda: BatchedEnv(
        task := make_task("CartPole"), make_physics(task, "jax"), 4, [torch.Generator()], horizon=7
    ),
    "batched mujoco": lambda: BatchedEnv(
        task := make_task("Hopper"), make_physics(task, "mujoco"), 4, [torch.Generator()], horizon=7
    ),
}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("which", ENVIRONMENTS)
def test_a_copied_batched_environment_goes_on_as_the_original_does_apart_from_it(which, how):
    env = ENVIRONMENTS[which]()
    env.reset()
    action = 0.5 * torch.ones(4, env.task.action_dim)
    for _ in range(5):
        env.step(action)
    again = HOWS[how](env)
    before = env.state.clone()
    ahead = [again.step(action) for _ in range(12)]  # through resets
    assert torch.equal(env.state, before)
    for expected in ahead:
        found = env.step(action)
        for a, b in zip(expected, found, strict=True):
            assert torch.equal(a, b)
    assert torch.equal(env.state, again.state) and torch.equal(env.obs, again.obs)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(env.generators, again.generators, strict=True))


def gym_env(name, backend, vector):
    if backend in EXTRAS:
        pytest.importorskip(EXTRAS[backend])
    if vector:
        return gymnasium_env.GymVectorEnv(name, 3, max_episode_steps=6, backend=backend)
    return gymnasium.make(f"mage_diffsim/{name}-v0", max_episode_steps=6, backend=backend)


def run(env, vector, steps=15):
    """Observations, rewards and ends of some steps, a single environment reset where it ends."""
    taken = []
    for t in range(steps):
        obs, reward, terminated, truncated, _ = env.step(np.full(env.action_space.shape, 0.3 * (-1) ** t, np.float32))
        if not vector and (terminated or truncated):
            obs, _ = env.reset()
        taken.append(np.concatenate([np.ravel(x).astype(np.float64) for x in (obs, reward, terminated, truncated)]))
    return np.array(taken)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize(
    ("name", "backend"),
    [("Pendulum", "torch"), ("Pendulum", "jax"), ("Pendulum", "warp"), ("Reacher", "mujoco"), ("Reacher", "warp")],
)
def test_copied_gymnasium_environments_go_on_as_the_originals_do_apart_from_them(name, backend, vector, how):
    env = gym_env(name, backend, vector)
    env.reset(seed=3)
    run(env, vector, 4)
    again = HOWS[how](env)
    expected = run(again, vector)
    np.testing.assert_array_equal(run(env, vector), expected)
    assert len(np.unique(expected[:, 0])) > 10


def test_a_copy_made_before_the_first_reset_draws_the_same_start():
    env = gym_env("Pendulum", "torch", False)
    again = copy.deepcopy(env)
    np.testing.assert_array_equal(env.reset(seed=5)[0], again.reset(seed=5)[0])


def test_environments_reach_a_spawned_process_and_come_back():
    envs = [gym_env("Pendulum", "torch", False), gym_env("Hopper", "mujoco", True), gym_env("CartPole", "jax", True)]
    for env in envs:
        env.reset(seed=1)
    vectors = (False, True, True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.starmap(run_and_return, list(zip(envs, vectors, strict=True)))
    for env, vector, (taken, back) in zip(envs, vectors, there, strict=True):
        np.testing.assert_array_equal(run(env, vector), taken)
        np.testing.assert_array_equal(run(env, vector), run(back, vector))


def run_and_return(env, vector):
    return run(env, vector), env


PUCK = """
import torch
from mage_diffsim.envs import Task, uniform
from friction import LOSS


class Puck(Task):
    name, source = "Puck", "test"
    state_names = obs_names = ("x",)
    action_names, action_low, action_high = ("push",), (-1.0,), (1.0,)
    dt, horizon = 0.1, 10

    def __init__(self, mass=1.0):
        self.mass = mass

    def step(self, state, action):
        return LOSS * state + self.scale_action(action) / self.mass

    def observe(self, state):
        return state.clone()

    def reward(self, obs, action, next_obs):
        return -next_obs[..., 0].square()

    def terminated(self, next_obs):
        return next_obs[..., 0].abs() > 5.0

    def reset(self, n, generator):
        return uniform(n, (-1.0,), (1.0,), generator)
"""


def test_a_task_of_a_file_reaches_a_spawned_process_with_its_options(tmp_path):
    (tmp_path / "puck.py").write_text(PUCK)
    (tmp_path / "friction.py").write_text("LOSS = 0.9")
    env = gymnasium_env.GymVectorEnv(f"{tmp_path}/puck.py:Puck", 3, max_episode_steps=6, mass=5.0)
    make_task(f"{tmp_path}/puck.py:Puck")  # executes the file anew: its class is another object now
    env.reset(seed=0)
    assert type(copy.deepcopy(env).task) is type(env.task)
    assert pickle.loads(pickle.dumps(env)).task.mass == 5.0
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        taken, back = pool.apply(run_and_return, (env, True))
    np.testing.assert_array_equal(run(env, True), taken)
    assert back.task.mass == 5.0 and options_of_task(back.task) == {"mass": 5.0}


def sine(x):
    return jnp.sin(x)


def test_an_operation_of_a_named_jax_function_can_be_pickled():
    op = pickle.loads(pickle.dumps(from_jax(sine, derivative="vjp")))
    x = torch.linspace(0.0, 1.0, 5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(op(x).sum(), x)
    torch.testing.assert_close(gradient, x.detach().cos())
    assert op.name == "sine"


def test_operations_of_warp_kernels_say_that_they_cannot_be_pickled():
    pytest.importorskip("warp")
    physics = make_physics(make_task("Pendulum"), "warp")
    with pytest.raises(TypeError, match=r".*: Warp kernels cannot be pickled; pickle what they are made from"):
        pickle.dumps(physics._op)
    assert copy.deepcopy(physics._op) is physics._op


@pytest.mark.gpu
@pytest.mark.parametrize("how", HOWS)
def test_a_copied_environment_on_a_gpu_goes_on_with_its_generators(how):
    task = make_task("Pendulum")
    generator = torch.Generator("cuda").manual_seed(0)
    env = BatchedEnv(task, make_physics(task, "torch", device="cuda"), 4, [generator], horizon=3)
    env.reset()
    again = HOWS[how](env)
    action = torch.zeros(4, 1, device="cuda")
    for _ in range(7):
        assert torch.equal(env.step(action).next_state, again.step(action).next_state)
    assert again.generators[0].device == generator.device
