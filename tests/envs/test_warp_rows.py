"""Scalar constraint rows of the Warp compiler: limits, friction loss and equalities are MuJoCo C's."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")

from mage_diffsim.envs.warp.compiler.constraints import contacts  # noqa: E402
from mage_diffsim.envs.warp.compiler.coordinates import Coordinate, Coordinates  # noqa: E402
from mage_diffsim.envs.warp.compiler.derivatives import jvp  # noqa: E402
from mage_diffsim.envs.warp.compiler.graph import Graph, evaluate, neg  # noqa: E402
from mage_diffsim.envs.warp.compiler.rows import Row, scalar_rows  # noqa: E402
from tests.envs.row_models import EQUALITY, FRICTION_DOF, LIMIT_JOINT, MODELS  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402
from tests.envs.stages import (  # noqa: E402
    assert_close,
    assert_rows_are_those_of_mujoco_c,
    compiled,
    numbers,
    states,
    values_of,
)


@functools.cache
def rows_of(model):
    _, m, kinematics, q, v, _ = compiled(model)
    rows = scalar_rows(Coordinates(kinematics, q), v)
    unit = np.eye(m.nv).tolist()
    motions = [kinematics.velocities(x) for x in unit]
    wanted = []
    for row in rows:
        shares = [row.sign * row.coordinate.rate(*way) for way in zip(motions, unit, strict=True)]
        wanted += [row.weight, row.offset, *shares, *(row.sign * x for x in row.coordinate.row)]
    return m, rows, wanted


def kinds_at(m, rows, wanted, data):
    """The kinds of rows that are there, compared with MuJoCo's."""
    found = numbers(wanted, values_of(data)).reshape(len(rows), 2 + 2 * m.nv)
    shares, found = found[:, 2 : 2 + m.nv], np.delete(found, np.s_[2 : 2 + m.nv], axis=1)
    present = found[:, 0] > 0.0
    assert_close(shares[present], found[present, 2:])
    return assert_rows_are_those_of_mujoco_c(m, rows, found, data)


@pytest.mark.parametrize("model", MODELS, ids=lambda x: x.name)
def test_rows_are_those_of_mujoco_c_one_by_one(model):
    m, rows, wanted = rows_of(model)
    seen = (kinds_at(m, rows, wanted, data) for data in states(m, 60))
    assert set().union(*seen) == model.kinds


FLAGGED = """<mujoco><option timestep=".004"><flag {}/></option><worldbody><geom type="plane" size="9 9 1"/><body
 pos="0 0 .1"><joint name="z" type="slide" axis="0 0 1" range="-.01 9" limited="true" frictionloss="2" solreflimit=".005
 1"/><geom size=".1"/><body><joint name="a" axis="0 1 0"/><geom size=".02" pos=".2 0 0" contype="0" conaffinity="0"/>
 </body></body></worldbody><equality><joint joint1="a" joint2="z"/></equality><actuator><motor joint="a" ctrlrange="-1
 1"/></actuator></mujoco>"""
FLAGS = ("constraint", "equality", "frictionloss", "limit", "contact", "refsafe")


@pytest.mark.parametrize("off", [x for n in range(7) for x in itertools.combinations(FLAGS, n)], ids="-".join)
def test_every_set_of_flags_leaves_the_rows_that_mujoco_c_has(off):
    flags = " ".join(f'{flag}="disable"' for flag in off)
    task = type("Flagged", (Body,), {"name": "Flagged", "mjcf": FLAGGED.format(flags)})
    m, rows, wanted = rows_of(task)
    data = mujoco.MjData(m)
    data.qpos[:], data.qvel[:] = (-0.02, 0.1), (1.0, -2.0)
    mujoco.mj_forward(m, data)
    seen = kinds_at(m, rows, wanted, data)
    kinds = {"equality": EQUALITY, "frictionloss": FRICTION_DOF, "limit": LIMIT_JOINT}
    assert seen == {kind for flag, kind in kinds.items() if not {flag, "constraint"} & set(off)}
    assert bool(contacts(compiled(task)[2])) == bool(data.ncon) == (not {"contact", "constraint"} & set(off))


@pytest.mark.parametrize("loss", [0.0, 0.5])
@pytest.mark.parametrize("speed", [-2.0, 2.0])
def test_a_loss_of_any_size_brakes_more_where_it_grows(loss, speed):
    graph = Graph()
    pull, high = graph.input("pull"), graph.input("high")
    force = Row(Coordinate(0.0, [1.0]), 3.0, 0.0, neg(high), high, 1.0).force([], [pull], ([], []))
    braking = -np.sign(speed)
    assert evaluate([force, *jvp([force], {high: 1.0})], {"pull": speed, "high": loss}) == [braking * loss, braking]
