"""Contacts of all dimensions, and explicit pairs, in the Warp compiler: stage by stage, then compiled, as MuJoCo C."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco")

from mage_diffsim.envs import make_physics  # noqa: E402
from mage_diffsim.envs.warp.compiler import constraints, dynamics, intake  # noqa: E402
from mage_diffsim.envs.warp.compiler.cones import Elliptic  # noqa: E402
from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate  # noqa: E402
from tests.envs.small_models import jacobian  # noqa: E402
from tests.envs.stages import assert_contacts_are_those_of_mujoco_c  # noqa: E402
from tests.envs.warp_models import EllipticWheels, Wheels, physics_of, samples, scaled  # noqa: E402

MODELS = (Wheels, EllipticWheels)


def states(m, n, seed=0):
    """MuJoCo's data at scattered states, most of them touching, after mj_forward."""
    rng, data, found = np.random.default_rng(seed), mujoco.MjData(m), []
    for _ in range(n):
        data.qpos[:] = m.qpos0 + rng.normal(size=m.nq) * rng.choice([0.05, 0.2])
        data.qvel[:] = rng.normal(size=m.nv) * rng.choice([0.1, 2.0])
        data.ctrl[:] = rng.normal(size=m.nu)
        mujoco.mj_normalizeQuat(m, data.qpos)
        mujoco.mj_forward(m, data)
        found.append(copy.copy(data))
    return found


def contacts_at(model, found):
    """Of each state, the contacts that are present: (itself, weight, rows [k, nv], offsets [k])."""
    task = model()
    m, g = task.simulation.model, Graph()
    kinematics = dynamics.Kinematics(intake.read(task.simulation), g.inputs("q", m.nq))
    contacts, velocities = constraints.contacts(kinematics), kinematics.velocities(g.inputs("v", m.nv))
    wanted = [[c.present, c.weight, *c.offsets(velocities), *(x for row in c.rows for x in row)] for c in contacts]
    values = {f"q{i}": x for i, x in enumerate(np.stack([data.qpos for data in found], 1))}
    values |= {f"v{i}": x for i, x in enumerate(np.stack([data.qvel for data in found], 1))}
    numbers = iter(evaluate([x for part in wanted for x in part], values))
    arrays = [np.stack([np.broadcast_to(next(numbers), len(found)) for _ in part], 1) for part in wanted]
    for n in range(len(found)):
        at = [(c, len(c.rows), array[n]) for c, array in zip(contacts, arrays, strict=True)]
        yield [(c, x[1], x[2 + k :].reshape(k, m.nv), x[2 : 2 + k]) for c, k, x in at if x[0]]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_rows_are_those_of_mujoco_c(model):
    """The sums of D J' J, D J' aref and D aref^2 over the rows of each contact."""
    m, seen = model().simulation.model, set()
    found = states(m, 200)
    for data, contacts in zip(found, contacts_at(model, found), strict=True):
        seen |= assert_contacts_are_those_of_mujoco_c(m, contacts, data)
    assert {dim for _, dim in seen} == {1, 3, 4, 6} and len(seen) >= 9, seen


def test_elliptic_forces_are_those_of_mujoco_c_in_each_zone():
    m, rng, zones = EllipticWheels().simulation.model, np.random.default_rng(0), set()
    for data in (data for data in states(m, 100) for _ in range(10)):
        jar = rng.normal(size=data.nefc)
        for contact in data.contact:
            if contact.efc_address >= 0 and contact.dim > 1:
                jar[contact.efc_address] *= 10.0 ** rng.uniform(-1.0, 2.0)
        mujoco.mj_constraintUpdate(m, data, jar, None, 0)
        for contact in data.contact:
            rows = slice(contact.efc_address, contact.efc_address + contact.dim)
            if contact.efc_address < 0 or contact.dim == 1:
                continue
            scale = np.array([1.0, *contact.friction[: contact.dim - 1] / contact.mu])
            weight = float(data.efc_D[contact.efc_address])
            found = Elliptic(contact.dim - 1).forces((scale * jar[rows]).tolist(), weight, float(contact.mu))
            expected = data.efc_force[rows]
            np.testing.assert_allclose(scale * found, expected, rtol=0, atol=1e-12 * max(1.0, abs(expected).max()))
            zones.add((int(contact.dim), int(data.efc_state[contact.efc_address])))
    kinds = mujoco.mjtConstraintState
    every = kinds.mjCNSTRSTATE_SATISFIED, kinds.mjCNSTRSTATE_QUADRATIC, kinds.mjCNSTRSTATE_CONE
    assert zones == {(dim, int(zone)) for dim in (3, 4, 6) for zone in every}


def test_a_step_with_elliptic_cones_is_exact_to_rounding():
    """MuJoCo C's solver is let run on until nothing changes."""
    task: Any
    task, state, action = samples(EllipticWheels)
    found, m = physics_of(EllipticWheels).step(state, action).numpy(), copy.copy(task.simulation.model)
    m.opt.tolerance, m.opt.ls_tolerance, m.opt.iterations, m.opt.ls_iterations = 0.0, 1e-10, 60, 100
    data, states = mujoco.MjData(m), set()
    for row, controls, ours in zip(state.numpy(), action.numpy(), found, strict=True):
        data.qpos[:], data.qvel[:], data.ctrl[:] = row[: m.nq], row[m.nq : m.nq + m.nv], controls
        for _ in range(task.frame_skip):
            mujoco.mj_step(m, data)
            states |= {(int(s), int(k)) for s, k in zip(data.efc_state, data.efc_type, strict=True)}
        expected = np.concatenate([data.qpos, data.qvel])
        assert abs(ours[: len(expected)] - expected).max() <= 1e-13 * max(1.0, abs(expected).max())
    elliptic = int(mujoco.mjtConstraint.mjCNSTR_CONTACT_ELLIPTIC)
    assert {s for s, kind in states if kind == elliptic} >= {1, 4}  # sticks, slides


def test_derivatives_with_elliptic_cones_are_the_central_differences_of_mujoco_c():
    task, state, action = samples(EllipticWheels)
    state, action = state[:30], action[:30]
    found = jacobian(physics_of(EllipticWheels).step, state, action)
    expected = jacobian(make_physics(task, "mujoco", dtype=torch.float64).step, state, action)
    error = scaled(found - expected, expected)
    assert error.sort().values[-3] <= 1e-6, error  # a kink may be within the difference of a few
