"""Contacts of backend mjx against those of MuJoCo C."""

from __future__ import annotations

import collections

import numpy as np
import pytest

jax = pytest.importorskip("jax")
mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco.mjx")

from mage_diffsim.bridges.jax import load_jax, x64  # noqa: E402
from mage_diffsim.envs.mjx import _load_step  # noqa: E402
from tests.envs.geom_pairs import PAIRS, SIZES, at_margin, batch, mjcf  # noqa: E402
from tests.marks import slow_but  # noqa: E402


def poses(rng, how):
    """Quaternions of two geoms and the place of the second, of six kinds."""
    one, other = (q / np.linalg.norm(q) for q in rng.normal(size=(2, 4)))
    place = 0.3 * rng.normal(size=3)
    if how == 1:
        one = other = np.array([1.0, 0.0, 0.0, 0.0])
    elif how == 2:
        turn, near = rng.normal(size=3) * 10.0 ** rng.uniform(-6.0, -2.0), np.zeros(4)
        mujoco.mju_axisAngle2Quat(near, turn / np.linalg.norm(turn), np.linalg.norm(turn))
        other = np.zeros(4)
        mujoco.mju_mulQuat(other, one, near)
    elif how == 3:
        place = np.zeros(3)
    elif how == 4:
        one, other = np.eye(4)[0], np.array([1.0, *np.eye(3)[rng.integers(3)]]) / np.sqrt(2.0)
        place = rng.choice([-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3], size=3)
    elif how == 5:
        one = other = np.array([1.0, 0.0, 0.0, 0.0])
        place = np.array([0.0, 0.0, rng.uniform(0.1, 0.9)])
    return one, other, place


COVERED = ("plane sphere", "plane capsule", "plane ellipsoid", "plane cylinder", "plane box")
COVERED += ("sphere sphere", "sphere capsule", "sphere cylinder", "sphere box", "capsule capsule")


@pytest.mark.parametrize("kinds", COVERED)
def test_contacts_are_those_of_mujoco_c(kinds):
    load_jax()
    _load_step()
    from mage_diffsim.envs.mjx.contacts import COLLISIONS, Geom

    assert {" ".join(pair) for pair in COLLISIONS} == set(COVERED)
    a, b = kinds.split()
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><worldbody><body mocap="true"><geom type="{a}" size="{SIZES[a]}"/></body><body><freejoint/><geom '
        f'type="{b}" size="{SIZES[b]}" margin=".3"/></body></worldbody></mujoco>'
    )
    data, rng, touching = mujoco.MjData(model), np.random.default_rng(0), 0
    with x64():
        collide = jax.jit(COLLISIONS[a, b][1])
        for i in range(900):
            data.mocap_quat[0], data.qpos[3:], data.qpos[:3] = poses(rng, i % 6)
            mujoco.mj_fwdPosition(model, data)
            geoms = (Geom(data.geom_xpos[g], data.geom_xmat[g].reshape(3, 3), model.geom_size[g]) for g in (0, 1))
            distance, place, frame = (np.asarray(x) for x in collide(*geoms))
            found = np.concatenate([distance.reshape(-1, 1), place.reshape(-1, 3), frame.reshape(-1, 9)], axis=1)
            found = found[found[:, 0] < 0.3]
            expected = [np.concatenate([[c.dist], c.pos, c.frame]) for c in data.contact if c.dist < 0.3]
            assert len(found) == len(expected), (i, found, expected)
            for x in found:
                assert np.abs(np.array(expected) - x).max(1).min() < 2e-9, (i, x, expected)
            for x in expected:
                assert np.abs(found - x).max(1).min() < 2e-9, (i, x, found)
            touching += bool(len(found))
    assert touching > 300


@pytest.mark.parametrize("name", slow_but(["logs"], PAIRS))
def test_generated_pairs_touch_as_in_mujoco_c(name):
    """Number, distance, normal and place of the contacts, where rounding errors of the state do not change C's own."""
    load_jax()
    _load_step()
    from mage_diffsim.envs.mjx.contacts import groups

    pair = PAIRS[name]
    model = mujoco.MjModel.from_xml_string(mjcf(pair))
    data, (group,) = mujoco.MjData(model), groups(model)
    rng, numbers = np.random.default_rng(0), collections.Counter()

    def contacts(qpos):
        data.qpos[:] = qpos
        mujoco.mj_fwdPosition(model, data)
        rows = [np.concatenate([[c.dist], c.pos, c.frame[:3]]) for c in data.contact if not c.exclude]
        return np.array(rows).reshape(-1, 7)

    with x64():
        collide = jax.jit(lambda x, r: group.collide(jax.numpy.asarray(model.geom_size), x, r))
        for qpos in batch(pair, 400)[0]:
            expected = contacts(qpos)
            positions, rotations = data.geom_xpos.copy(), data.geom_xmat.reshape(-1, 3, 3).copy()
            errors = 1e-14 * rng.choice([-1.0, 1.0], (6, len(qpos))) * np.maximum(1.0, abs(qpos))
            near = [contacts(qpos + by) for by in errors]
            if at_margin(model, data) or any(len(other) != len(expected) for other in near):
                continue
            noise = max((abs(other - expected).max(initial=0.0) for other in near), default=0.0)
            distance, place, frame = (np.asarray(x) for x in collide(positions, rotations))
            inside = distance < np.repeat(np.minimum(group.margin, group.reach), group.slots)
            found = np.concatenate([distance[:, None], place, frame[:, 0]], axis=1)[inside]
            assert len(found) == len(expected)
            if noise < 1e-9:
                for some, others in ((found, expected), (expected, found)):
                    assert all(np.abs(others - x).max(1).min() < 1e-9 for x in some), (found, expected)
                numbers[len(expected)] += 1
    assert all(numbers[n] >= 5 for n in range(group.slots + 1)), numbers
