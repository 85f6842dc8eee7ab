"""Coordinates of the Warp compiler, without compiling: lengths and rows of joints and tendons are MuJoCo C's."""

from __future__ import annotations

import functools

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")

from mage_diffsim.envs.warp.compiler.coordinates import Coordinates  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402
from tests.envs.stages import assert_close, compiled, numbers, states, values_of  # noqa: E402

FIXED = """<mujoco><worldbody><body><joint name="a" type="slide" axis="1 0 0" ref=".3"/><geom size=".1"/><body
 pos="1 0 0"><joint name="b" axis="0 1 0"/><geom size=".1" pos=".2 0 0"/></body></body><body pos="0 0 1"><joint name="c"
 axis="1 1 0"/><geom size=".1" pos="0 .2 0"/></body></worldbody><tendon><fixed><joint joint="b" coef="-2"/><joint
 joint="a" coef=".5"/></fixed><fixed><joint joint="c" coef="3"/><joint joint="a" coef="1"/>
 </fixed></tendon><actuator><motor joint="b" ctrlrange="-1 1"/></actuator></mujoco>"""


class Fixed(Body):
    name, mjcf = "Fixed", FIXED


def jacobian(m, data):
    """MuJoCo's ten_J, dense."""
    dense = np.zeros((m.ntendon, m.nv))
    for t in range(m.ntendon):
        entries = range(int(m.ten_J_rowadr[t]), int(m.ten_J_rowadr[t] + m.ten_J_rownnz[t]))
        for i in entries:
            dense[t, m.ten_J_colind[i]] += data.ten_J[i]
    return dense


@functools.cache
def coordinates_of(model):
    _, m, kinematics, q, v, _ = compiled(model)
    return m, kinematics, Coordinates(kinematics, q), v


@pytest.mark.parametrize("model", [Fixed], ids=lambda x: x.name)
def test_tendons_are_those_of_mujoco_c(model):
    m, kinematics, coordinates, v = coordinates_of(model)
    tendons = [coordinates.tendon(t) for t in range(m.ntendon)]
    rates = [c.rate(kinematics.velocities(v), v) for c in tendons]
    wanted = [*(c.length for c in tendons), *rates, *(x for c in tendons for x in c.row)]
    for data in states(m, 20):
        found = numbers(wanted, values_of(data))
        assert_close(found[: m.ntendon], data.ten_length)
        assert_close(found[m.ntendon : 2 * m.ntendon], data.ten_velocity)
        assert_close(found[2 * m.ntendon :], jacobian(m, data).reshape(-1))


def test_a_joint_is_its_position():
    _, _, coordinates, _ = coordinates_of(Fixed)
    joint = coordinates.joint(1)
    assert joint.length.args == ("q1",) and joint.row == [0.0, 1.0, 0.0] and joint.bodies == ()
    assert coordinates.joint(1) is joint
