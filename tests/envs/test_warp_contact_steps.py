"""Contacts of two capsules through the compiled kernels: values and derivatives against MuJoCo C called directly."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs import make_physics  # noqa: E402
from tests.envs.small_models import Body, jacobian  # noqa: E402
from tests.marks import slow_but  # noqa: E402

LOG = """<mujoco><option timestep="0.004"/><worldbody><geom type="capsule" size=".1 .4" euler="90 0 0"/>
 <body pos="0 0 .19"><joint name="z" type="slide" axis="0 0 1"/><joint name="r" axis="1 0 0"/>
 <geom type="capsule" size=".1 .3" euler="90 0 0"/></body></worldbody>
 <actuator><motor joint="z" ctrlrange="-1 1"/></actuator></mujoco>"""
LOGS = """<mujoco><option timestep="0.004"/><worldbody><geom type="capsule" size=".1 .4" euler="90 0 0" pos="-.11 0 0"/>
 <geom type="capsule" size=".1 .4" euler="90 0 0" pos=".11 0 0"/><body pos="0 0 .16"><freejoint name="free"/><geom
 type="capsule" size=".1 .3" euler="90 0 0"/><body pos="0 0 .4"><joint name="arm" axis="0 1 0" damping=".1"/><geom
 size=".05"/></body></body></worldbody><actuator><motor joint="arm" ctrlrange="-1 1"/></actuator></mujoco>"""
POSTS = """<mujoco><option timestep="0.004"/><worldbody><geom type="capsule" size=".1 .2"/><body pos="0 0 .58"><joint
 name="z" type="slide" axis="0 0 1"/><joint name="x" type="slide" axis="1 0 0"/><geom type="capsule"
 size=".1 .2"/></body></worldbody><actuator><motor joint="z" ctrlrange="-1 1"/></actuator></mujoco>"""
CROSSED = """<mujoco><option timestep="0.004"/><worldbody><geom type="capsule" size=".1 .4"/><body pos="0 0 .1"><joint
 name="x" type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 0 1"/><joint name="turn" axis="0 1 0"/><geom
 type="capsule" size=".08 .3"/></body></worldbody><actuator><motor
 joint="turn" ctrlrange="-1 1"/></actuator></mujoco>"""
# Half of dm_control's cheetah: capsules of one plane, which all touch one another.
CHEETAH = """<mujoco><compiler settotalmass="14"/><default>
 <joint axis="0 1 0" limited="true" damping=".01" armature=".1" stiffness="8"/>
 <geom type="capsule" friction=".4 .1 .1"/><motor ctrlrange="-1 1"/></default><option timestep="0.01"/>
 <worldbody><geom type="plane" pos="98 0 0" size="100 .8 .5"/><body pos="0 0 .7">
 <joint name="x" type="slide" axis="1 0 0" limited="false" damping="0" armature="0" stiffness="0"/>
 <joint name="z" type="slide" axis="0 0 1" limited="false" damping="0" armature="0" stiffness="0"/>
 <joint name="y" limited="false" damping="0" armature="0" stiffness="0"/>
 <geom fromto="-.5 0 0 .5 0 0" size="0.046"/>
 <body pos="-.5 0 0"><joint name="bthigh" range="-30 60" stiffness="240" damping="6"/>
  <geom pos=".1 0 -.13" euler="0 -218 0" size="0.046 .145"/>
 <body pos=".16 0 -.25"><joint name="bshin" range="-50 50" stiffness="180" damping="4.5"/>
  <geom pos="-.14 0 -.07" euler="0 -116 0" size="0.046 .15"/>
 <body pos="-.28 0 -.14"><joint name="bfoot" range="-230 50" stiffness="120" damping="3"/>
  <geom pos=".03 0 -.097" euler="0 -15 0" size="0.046 .094"/></body></body></body>
 <body pos=".5 0 0"><joint name="fthigh" range="-57 .40" stiffness="180" damping="4.5"/>
  <geom pos="-.07 0 -.12" euler="0 30 0" size="0.046 .133"/></body></body></worldbody>
 <actuator><motor joint="bthigh" gear="120"/><motor joint="bshin" gear="90"/><motor joint="bfoot" gear="60"/>
 <motor joint="fthigh" gear="90"/></actuator></mujoco>"""
MODELS = {"log": LOG, "logs": LOGS, "posts": POSTS, "crossed": CROSSED, "cheetah": CHEETAH}


@functools.cache
def task_of(name):
    return type(name.title(), (Body,), {"name": name.title(), "mjcf": MODELS[name], "frame_skip": 1})()


@functools.cache
def physics_of(name, dtype=torch.float64):
    return make_physics(task_of(name), "warp", dtype=dtype)


def mujoco_steps(name, states, actions):
    """One converged step of MuJoCo C of each row."""
    m = task_of(name).simulation.model
    m.opt.solver, m.opt.tolerance, m.opt.iterations, m.opt.ls_iterations = 2, 1e-15, 300, 100
    data, found = mujoco.MjData(m), []
    for state, action in zip(np.asarray(states), np.asarray(actions), strict=True):
        data.qpos[:], data.qvel[:], data.ctrl[:] = state[: m.nq], state[m.nq : m.nq + m.nv], action
        data.qacc_warmstart[:] = 0.0
        mujoco.mj_step(m, data)
        found.append(np.concatenate([data.qpos, data.qvel]))
    return torch.as_tensor(np.stack(found))


def stepped(name, states, actions, dtype=torch.float64):
    states, actions = torch.as_tensor(states, dtype=dtype), torch.as_tensor(actions, dtype=dtype)
    return physics_of(name, dtype).step(states, actions).double()


def errors(found, expected):
    """The largest error of each row, relative to its largest number where that is above 1."""
    return (found - expected).abs().amax(1) / expected.abs().amax(1).clamp(min=1.0)


def differences(name, state, action, step):
    """Of MuJoCo C by the degrees of freedom: central ones [nv, nq + nv], the directions in qpos, and second ones."""
    m = task_of(name).simulation.model
    rows, ways = [state], []
    for d in range(m.nv):
        for sign in (1.0, -1.0):
            there = state[: m.nq].copy()
            mujoco.mj_integratePos(m, there, sign * step * np.eye(m.nv)[d], 1.0)
            rows.append(np.concatenate([there, state[m.nq :]]))
        ways.append((rows[-2] - rows[-1])[: m.nq] / (2.0 * step))
    at, *around = mujoco_steps(name, rows, [action] * len(rows)).numpy()
    up, down = np.stack(around[::2]), np.stack(around[1::2])
    return (up - down) / (2.0 * step), np.stack(ways), (up - 2.0 * at + down) / step


def assert_derivatives(name, states, actions, least):
    """The derivative by positions is that of MuJoCo C to 1e-6, in ``least`` of the directions at least.

    Others are next to a kink, or curve so much (axes just above 1e-4 rad) that two steps give different differences.
    """
    matrices = jacobian(physics_of(name).step, torch.as_tensor(states), torch.as_tensor(actions)).numpy()
    smooth = []
    for state, action, matrix in zip(states, actions, matrices, strict=True):
        expected, ways, bend = differences(name, state, action, 1e-6)
        size, apart = max(1.0, abs(expected).max()), abs(differences(name, state, action, 2e-6)[0] - expected).max(1)
        good = (apart <= 1e-3 * size) & (abs(bend).max(1) <= 1e-3 * size)
        error = abs(ways @ matrix[:, : ways.shape[1]].T - expected).max(1)
        assert (error <= 1e-6 * size + 2.0 * apart)[good].all(), (state.tolist(), error / size, apart / size)
        smooth += (good & (apart <= 1e-6 * size)).tolist()
    assert np.mean(smooth) >= least, np.mean(smooth)


def test_axes_below_a_tenth_of_a_milliradian_make_two_contacts():
    states = np.zeros((5, 4))
    states[:, 1] = [0.0, 1e-5, -1e-5, 0.99e-4, 1.01e-4]
    found, expected = (f("log", states, np.zeros((5, 1))) for f in (stepped, mujoco_steps))
    assert errors(found, expected).max() <= 1e-12
    assert found[1, 2].item() == pytest.approx(0.104, abs=1e-4) and abs(found[1, 3].item()) <= 1e-3
    assert abs(found[4, 3].item()) > 0.1


def test_collinear_capsules_do_not_pass_through_each_other():
    states = np.zeros((4, 4))
    states[:, 0], states[1, 1], states[2, 1] = [0.0, 0.0, 0.015, -0.1], 1e-9, 0.05
    found, expected = (f("posts", states, np.zeros((4, 1))) for f in (stepped, mujoco_steps))
    assert errors(found, expected).max() <= 1e-12
    assert (found[[0, 1, 3], 2] > 0.1).all()
    assert_derivatives("posts", states[[0, 2, 3]], np.zeros((3, 1)), 0.5)


@pytest.mark.slow
def test_a_log_on_two_logs_is_that_of_mujoco_c_over_a_rollout():
    m = task_of("logs").simulation.model
    start = np.zeros((8, m.nq + m.nv))
    start[:, : m.nq] = m.qpos0
    rng = np.random.default_rng(0)
    start[1:, m.nq :] = 0.1 * rng.normal(size=(7, m.nv))
    start[1:, 4:7] = 10.0 ** -np.arange(1.5, 8.5)[:, None] * rng.normal(size=(7, 3))
    start[:, 3:7] /= np.linalg.norm(start[:, 3:7], axis=1, keepdims=True)
    states, visited, worst = start, [], 0.0
    for t in range(150):
        actions = rng.uniform(-1.0, 1.0, (8, 1))
        after = mujoco_steps("logs", states, actions)
        worst = max(worst, float(errors(stepped("logs", states, actions), after).max()))
        if t % 15 == 7:
            visited.append((states, actions))
        states = after.numpy()
    assert worst <= 1e-9, worst
    states, actions = (np.concatenate(x) for x in zip(*visited, strict=True))
    assert_derivatives("logs", states, actions, 0.7)


def thrown(name, n):
    """States and actions, all numbers of float32."""
    rng = np.random.default_rng(0)
    if name == "crossed":
        place = np.concatenate([rng.uniform(-0.2, 0.2, (n, 2)), rng.uniform(-3.0, 3.0, (n, 1))], 1)
        states, actions = np.concatenate([place, rng.normal(size=(n, 3))], 1), rng.uniform(-1, 1, (n, 1))
    else:
        place = np.concatenate([rng.uniform(-1.0, 1.0, (n, 1)), rng.uniform(-1.0, 0.3, (n, 1))], 1)
        turned = rng.normal(size=(n, 5)) * [2.0, *[1.5] * 4]
        states, actions = np.concatenate([place, turned, 5 * rng.normal(size=(n, 7))], 1), rng.uniform(-1, 1, (n, 4))
    return states.astype(np.float32).astype(float), actions.astype(np.float32).astype(float)


@pytest.mark.parametrize("name", slow_but(["crossed"], ["crossed", "cheetah"]))
def test_capsules_crossing_in_one_plane_are_as_exact_as_the_dtype(name):
    """Their nearest points are one point, and only rounding says otherwise; float32 had a median error of 1 here."""
    states, actions = thrown(name, 400)
    expected = mujoco_steps(name, states, actions)
    m, data = task_of(name).simulation.model, mujoco.MjData(task_of(name).simulation.model)
    deep = 0
    for state in states[:60]:
        data.qpos[:] = state[: m.nq]
        mujoco.mj_forward(m, data)
        deep += any(abs(c.frame[1]) > 0.5 for c in data.contact)  # a normal out of the plane
    assert deep >= 10
    assert errors(stepped(name, states, actions), expected).max() <= 1e-10
    single = errors(stepped(name, states, actions, torch.float32), expected)
    assert single.quantile(0.99) <= 1e-4 and single.max() <= 2e-3, single.max()


def test_derivatives_of_crossed_capsules_are_those_of_mujoco_c():
    states, actions = thrown("crossed", 60)
    assert_derivatives("crossed", states, actions, 0.7)
    exact = jacobian(physics_of("crossed").step, torch.as_tensor(states), torch.as_tensor(actions))
    single = physics_of("crossed", torch.float32)
    found = jacobian(single.step, torch.as_tensor(states).float(), torch.as_tensor(actions).float()).double()
    error = (found - exact).abs().flatten(1).amax(1) / exact.abs().flatten(1).amax(1).clamp(min=1.0)
    assert error.median() <= 1e-4 and error.quantile(0.9) <= 1e-2, error
