"""Coordinates of the Warp compiler, without compiling: lengths and rows of joints and tendons are MuJoCo C's."""

from __future__ import annotations

import functools

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")

from mage_diffsim.envs.warp.compiler import manifold  # noqa: E402
from mage_diffsim.envs.warp.compiler.coordinates import Coordinates  # noqa: E402
from mage_diffsim.envs.warp.compiler.derivatives import vjp  # noqa: E402
from mage_diffsim.envs.warp.compiler.graph import evaluate  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402
from tests.envs.stages import assert_close, compiled, states, values_of  # noqa: E402

FIXED = """<mujoco><worldbody><body><joint name="a" type="slide" axis="1 0 0" ref=".3"/><geom size=".1"/><body
 pos="1 0 0"><joint name="b" axis="0 1 0"/><geom size=".1" pos=".2 0 0"/></body></body><body pos="0 0 1"><joint name="c"
 axis="1 1 0"/><geom size=".1" pos="0 .2 0"/></body></worldbody><tendon><fixed><joint joint="b" coef="-2"/><joint
 joint="a" coef=".5"/></fixed><fixed><joint joint="c" coef="3"/><joint joint="a" coef="1"/>
 </fixed></tendon><actuator><motor joint="b" ctrlrange="-1 1"/></actuator></mujoco>"""


# Sites and wrapping geoms on bodies of three trees and on the world, welded and turned; pulleys; side sites in geoms.
SPATIAL = """<mujoco><default><geom size=".05" contype="0" conaffinity="0" density="800"/></default><worldbody><site
 name="w" pos=".1 -.2 .9"/><site name="w2" pos="-.4 .3 .2"/><geom name="drum" type="cylinder" size=".12 .3"
 pos=".1 .2 .6" euler="70 20 0"/><site name="beside" pos=".1 .5 .6"/><site name="core" pos=".12 .2 .62"/><body
 name="float" pos="0 0 1" quat="1 .2 .3 .1"><freejoint/><geom type="capsule" fromto="0 0 0 .3 0 0"/><site name="f"
 pos=".05 .1 0"/><geom name="ball" size=".09" pos=".1 -.2 .05" euler="10 20 30"/><body pos=".3 0 0"><joint
 type="ball"/><geom type="capsule" fromto="0 0 0 0 0 -.3"/><site name="b" pos=".02 .02 -.2"/><body pos="0 0 -.15"
 euler="0 40 0"><site name="welded" pos="0 .1 0"/><geom name="ring" size=".15" pos=".05 0 0"/><site name="in"
 pos=".1 0 .02"/></body><body pos="0 0 -.3"><joint axis="0 1 0"/><joint type="slide" axis="1 0 0"/><geom
 type="capsule" fromto="0 0 0 .2 0 0"/><site name="tip" pos=".2 .1 .1"/></body></body></body><body pos="0 .5 .5">
 <joint name="swing" axis="1 0 0"/><joint axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 .2 .3"/><site name="s"
 pos="0 .2 .3"/><geom name="post" type="cylinder" size=".07 .2" pos="0 .1 .1"/><site name="s2" pos=".1 -.1 .1"/></body>
 </worldbody><tendon>
 <spatial><site site="w"/><site site="f"/><site site="b"/><site site="tip"/></spatial>
 <spatial><site site="w"/><site site="w2"/><site site="s"/><pulley divisor="2"/><site site="f"/><site site="s2"/>
 <pulley divisor="3"/><site site="welded"/><site site="b"/><site site="tip"/></spatial>
 <spatial><site site="w"/><geom geom="ball"/><site site="welded"/></spatial>
 <spatial><site site="f"/><geom geom="ball"/><site site="s"/></spatial>
 <spatial><site site="w"/><geom geom="drum"/><site site="tip"/></spatial>
 <spatial><site site="w2"/><geom geom="drum" sidesite="beside"/><site site="b"/></spatial>
 <spatial><site site="w2"/><geom geom="drum" sidesite="core"/><site site="f"/></spatial>
 <spatial><site site="tip"/><geom geom="ring" sidesite="in"/><site site="s"/></spatial>
 <spatial><site site="tip"/><geom geom="ball" sidesite="in"/><site site="s"/></spatial>
 <spatial><site site="w"/><geom geom="ball" sidesite="f"/><site site="tip"/><geom geom="post" sidesite="s"/>
 <site site="w2"/><pulley divisor="2"/><site site="w2"/><geom geom="drum" sidesite="s2"/><site site="f"/></spatial>
 <spatial><site site="f"/><geom geom="post"/><site site="w2"/></spatial>
 </tendon><actuator><motor joint="swing" ctrlrange="-1 1"/></actuator></mujoco>"""


class Fixed(Body):
    name, mjcf = "Fixed", FIXED


class Spatial(Body):
    name, mjcf = "Spatial", SPATIAL


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


@functools.cache
def sampled(model):
    """Values of q and v at 300 states, and MuJoCo's length, rate, row and number of points of each tendon there."""
    m = compiled(model)[1]
    every, expected = [], []
    for data in states(m, 300):
        every.append(values_of(data))
        expected.append(
            [x.copy() for x in (data.ten_length, data.ten_velocity, jacobian(m, data).reshape(-1), data.ten_wrapnum)]
        )
    values = {name: np.array([x[name] for x in every]) for name in every[0]}
    return values, *map(np.array, zip(*expected, strict=True))


def found(expressions, values):
    """Values of expressions [states, n]."""
    size = len(values["q0"])
    return np.stack([np.broadcast_to(x, size) for x in evaluate(expressions, values)], axis=1)


@pytest.mark.parametrize("model", [Fixed, Spatial], ids=lambda x: x.name)
def test_tendons_are_those_of_mujoco_c(model):
    m, kinematics, coordinates, v = coordinates_of(model)
    tendons = [coordinates.tendon(t) for t in range(m.ntendon)]
    values, lengths, rates, rows, _ = sampled(model)
    assert_close(found([c.length for c in tendons], values), lengths)
    assert_close(found([c.rate(kinematics.velocities(v), v) for c in tendons], values), rates)
    assert_close(found([x for c in tendons for x in c.row], values), rows)


def test_rows_are_the_derivatives_of_lengths():
    """All states are clean: next to where a tendon touches a geom, its row has no jump."""
    m, _, coordinates, _ = coordinates_of(Spatial)
    read, _, _, q, _, _ = compiled(Spatial)
    values, _, _, rows, points = sampled(Spatial)
    for t in range(m.ntendon):
        by_q = vjp([(coordinates.tendon(t).length, 1.0)])
        gradient = manifold.to_tangent(read, q, [by_q.get(x, 0.0) for x in q])
        assert_close(found(gradient, values), rows[:, t * m.nv : (t + 1) * m.nv], 1e-6)
    assert (points[:, 2:].max(0) > points[:, 2:].min(0)).all(), "every geom is touched in some states, not in others"


def test_a_joint_is_its_position():
    _, _, coordinates, _ = coordinates_of(Fixed)
    joint = coordinates.joint(1)
    assert joint.length.args == ("q1",) and joint.row == [0.0, 1.0, 0.0] and joint.bodies == ()
    assert coordinates.joint(1) is joint
