"""What tests of the Warp compiler's stages share: a model's expressions, states, and MuJoCo C's numbers there."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.warp.compiler import dynamics, intake
from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate


@functools.cache
def compiled(model):
    """(intake, mjModel, kinematics, inputs q, v, u) of a task's name or class."""
    task: Any = make_task(model) if isinstance(model, str) else model()
    read = intake.read(task.simulation)
    g, m = Graph(), task.simulation.model
    q, v, u = g.inputs("q", m.nq), g.inputs("v", m.nv), g.inputs("u", m.nu)
    return read, m, dynamics.Kinematics(read, q), q, v, u


def states(m, n=20, seed=0):
    """MuJoCo's data at scattered states, many of them touching, after mj_forward."""
    mujoco = load_mujoco()
    rng, data = np.random.default_rng(seed), mujoco.MjData(m)
    for _ in range(n):
        data.qpos[:] = m.qpos0 + rng.normal(size=m.nq) * rng.choice([0.05, 0.3, 1.0])
        data.qvel[:] = 3 * rng.normal(size=m.nv)
        data.ctrl[:] = 2 * rng.normal(size=m.nu)
        for j in range(m.njnt):  # bodies that can fly come down
            at = m.jnt_qposadr[j]
            if m.jnt_type[j] == 0:
                data.qpos[at + 2] = rng.uniform(0.0, 0.6)
            elif m.jnt_type[j] == 2 and abs(m.jnt_axis[j, 2]) == 1:
                data.qpos[at] -= rng.uniform(0.0, 1.0)
        mujoco.mj_normalizeQuat(m, data.qpos)
        mujoco.mj_forward(m, data)
        yield data


def values_of(data):
    values = {f"q{i}": x for i, x in enumerate(data.qpos)}
    values |= {f"v{i}": x for i, x in enumerate(data.qvel)}
    return values | {f"u{i}": x for i, x in enumerate(data.ctrl)}


def numbers(expressions, values):
    return np.array([float(x) for x in evaluate(expressions, values)])


def flat(matrix):
    return [x for row in matrix for x in row]


def assert_close(found, expected, rtol=1e-11):
    np.testing.assert_allclose(found, expected, rtol=0, atol=rtol * max(1.0, np.abs(expected).max(initial=0.0)))


def edges(cone, weight, rows, offsets):
    """The rows of C's problem that a contact has, (D, J, aref) each, of its rows [k, nv] and offsets [k]."""
    if cone.curved:
        for row, offset in zip(rows, offsets, strict=True):
            yield weight, row, -offset
        return
    for row, offset in zip(rows[1:], offsets[1:], strict=True):
        for sign in (1.0, -1.0):
            yield weight, rows[0] + sign * row, -offsets[0] - sign * offset
    for _ in range(cone.plain):
        yield weight, rows[0], -offsets[0]
