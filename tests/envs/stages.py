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


def moment(m, data):
    """MuJoCo's actuator_moment, [nactuator, nv]."""
    found = np.zeros((m.nactuator, m.nv))
    sparse = data.actuator_moment, data.moment_rownnz, data.moment_rowadr, data.moment_colind
    load_mujoco().mju_sparse2dense(found, *sparse)
    return found


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


def assert_rows_are_those_of_mujoco_c(m, rows, found, data):
    """Compare scalar rows one by one, in MuJoCo's order.

    Args:
        m: ``mujoco.MjModel``.
        rows: the rows.
        found: weight, offset and J of each, [rows, 2 + nv]. Where a row is there its weight is not 0.
        data: ``mujoco.MjData`` after ``mj_forward``.

    Returns:
        the kinds of rows that are there.
    """
    mujoco = load_mujoco()
    theirs = np.flatnonzero(data.efc_type < int(mujoco.mjtConstraint.mjCNSTR_CONTACT_FRICTIONLESS))
    # Rows between bodies that cannot move against each other are 0 but for rounding.
    theirs = theirs[np.abs(data.efc_J.reshape(-1, m.nv)[theirs]).max(1, initial=0.0) > 1e-12]
    present = (found[:, 0] > 0.0) & (np.abs(found[:, 2:]).max(1, initial=0.0) > 1e-12)
    ours = found[present]
    assert len(ours) == len(theirs)
    jacobian, equal = data.efc_J.reshape(-1, m.nv)[theirs], data.efc_type[theirs] == 0
    # A quaternion stands for the same rotation as its opposite, so that such a row may have either sign.
    opposite = equal & ((ours[:, 2:] * jacobian).sum(1) < 0.0)
    ours[opposite, 1:] *= -1.0
    assert_close(ours[:, 2:], jacobian)
    assert_close(ours[:, 0] / data.efc_D[theirs], np.ones(len(ours)), 1e-8)
    assert_close(-ours[:, 1], data.efc_aref[theirs])
    ends = np.array([(row.low, row.high) for row in rows]).reshape(-1, 2)[present]
    loss = data.efc_frictionloss[theirs]
    rubs = loss > 0.0
    assert (ends[equal] == (-np.inf, np.inf)).all() and (ends[~equal & ~rubs] == (0.0, np.inf)).all()
    assert (ends[rubs] == np.stack([-loss, loss], 1)[rubs]).all()
    return set(data.efc_type[theirs].tolist())


def assert_contacts_are_those_of_mujoco_c(m, contacts, data):
    """Compare sums over the rows of each contact: D J' J, D J' aref and D aref^2.

    Args:
        m: ``mujoco.MjModel``.
        contacts: those that are there: (itself, weight, rows [k, nv], offsets [k]).
        data: ``mujoco.MjData`` after ``mj_forward``.

    Returns:
        (pair of geoms, condim) of those that are there.
    """
    ours, theirs, seen = {}, {}, set()
    for contact, *numbers in contacts:
        parts = [np.array(x) for x in zip(*edges(contact.cone, *numbers), strict=True)]
        ours.setdefault(frozenset(contact.pair.geoms), []).append(_sums(*parts))
    jacobian, elliptic = data.efc_J.reshape(-1, m.nv), m.opt.cone == load_mujoco().mjtCone.mjCONE_ELLIPTIC
    for contact in data.contact:
        if contact.exclude or contact.efc_address < 0:
            continue
        pair, dim = frozenset(contact.geom.tolist()), int(contact.dim)
        k = 1 if dim == 1 else dim if elliptic else 2 * (dim - 1)
        rows = slice(contact.efc_address, contact.efc_address + k)
        theirs.setdefault(pair, []).append(_sums(data.efc_D[rows], jacobian[rows], data.efc_aref[rows]))
        seen.add((pair, dim))
    assert ours.keys() == theirs.keys()
    for pair, parts in theirs.items():
        for one, other in zip(sorted(ours[pair], key=_trace), sorted(parts, key=_trace), strict=True):
            for a, b in zip(one, other, strict=True):
                assert_close(a, b, 1e-9)
    return seen


def _sums(weights, jacobian, reference):
    return (jacobian.T * weights) @ jacobian, (jacobian.T * weights) @ reference, (weights * reference**2).sum()


def _trace(parts):
    return np.trace(parts[0])


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
