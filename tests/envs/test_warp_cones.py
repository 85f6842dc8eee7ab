"""Contacts of all dimensions, and explicit pairs, in the Warp compiler: stage by stage, then compiled, as MuJoCo C."""

from __future__ import annotations

import copy

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")

from mage_diffsim.envs.warp.compiler import constraints, dynamics, intake  # noqa: E402
from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate  # noqa: E402
from tests.envs.stages import edges  # noqa: E402
from tests.envs.warp_models import Wheels  # noqa: E402

MODELS = (Wheels,)


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
        ours = {}
        for c, *numbers in contacts:
            parts = [np.array(x) for x in zip(*edges(c.cone, *numbers), strict=True)]
            ours.setdefault(frozenset(c.pair.geoms), []).append(sums(*parts))
        theirs = {}
        jacobian = data.efc_J.reshape(-1, m.nv)
        for contact in data.contact:
            if contact.exclude or contact.dist >= contact.includemargin:
                continue
            dim = contact.dim
            k = 1 if dim == 1 else dim if m.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC else 2 * (dim - 1)
            rows = slice(contact.efc_address, contact.efc_address + k)
            parts = sums(data.efc_D[rows], jacobian[rows], data.efc_aref[rows])
            theirs.setdefault(frozenset(contact.geom.tolist()), []).append(parts)
            seen.add((frozenset(contact.geom.tolist()), int(dim)))
        assert ours.keys() == theirs.keys()
        for pair, parts in theirs.items():
            for one, other in zip(sorted(ours[pair], key=trace), sorted(parts, key=trace), strict=True):
                for a, b in zip(one, other, strict=True):
                    np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(1.0, np.abs(b).max()))
    assert {dim for _, dim in seen} == {1, 3, 4, 6} and len(seen) >= 9, seen


def sums(weights, jacobian, reference):
    return (jacobian.T * weights) @ jacobian, (jacobian.T * weights) @ reference, (weights * reference**2).sum()


def trace(parts):
    return np.trace(parts[0])
