"""Smooth forces of the Warp compiler, without compiling: tendons, transmissions and actuators are MuJoCo C's."""

from __future__ import annotations

import functools

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")

from mage_diffsim.envs.warp.compiler import forces  # noqa: E402
from mage_diffsim.envs.warp.compiler.actuators import actuator_forces  # noqa: E402
from mage_diffsim.envs.warp.compiler.coordinates import Coordinates  # noqa: E402
from mage_diffsim.envs.warp.compiler.graph import evaluate  # noqa: E402
from mage_diffsim.envs.warp.compiler.transmissions import transmission  # noqa: E402
from tests.envs.force_models import MODELS, Forceful  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402
from tests.envs.stages import assert_close, compiled, moment, states, values_of  # noqa: E402

N = 100


FIELDS = ("qfrc_passive", "qfrc_actuator", "actuator_length", "actuator_velocity", "actuator_force")


@functools.cache
def sampled(model):
    """Values of q, v and u at N states, and MuJoCo's fields there."""
    m = compiled(model)[1]
    every, fields = [], {name: [] for name in (*FIELDS, "moment")}
    for data in states(m, N):
        every.append(values_of(data))
        for name in FIELDS:
            fields[name].append(getattr(data, name).copy())
        fields["moment"].append(moment(m, data).reshape(-1))
    return {name: np.array([x[name] for x in every]) for name in every[0]}, {k: np.array(x) for k, x in fields.items()}


def found(expressions, values):
    """Values of expressions [states, n]."""
    return np.stack([np.broadcast_to(x, N) for x in evaluate(expressions, values)], axis=1)


def test_transmissions_are_those_of_mujoco_c():
    _, m, kinematics, q, v, _ = compiled(Forceful)
    coordinates = Coordinates(kinematics, q)
    every = [transmission(coordinates, i) for i in range(m.nactuator)]
    values, fields = sampled(Forceful)
    motions = kinematics.velocities(v)
    for i, c in enumerate(every):
        assert_close(found([c.length], values)[:, 0], fields["actuator_length"][:, i])
        assert_close(found(c.row, values), fields["moment"].reshape(N, m.nactuator, m.nv)[:, i])
        assert_close(found([c.rate(motions, v)], values)[:, 0], fields["actuator_velocity"][:, i])


@pytest.mark.parametrize("model", MODELS, ids=lambda x: x.name)
def test_forces_are_those_of_mujoco_c(model):
    _, _, kinematics, q, v, u = compiled(model)
    coordinates = Coordinates(kinematics, q)
    values, fields = sampled(model)
    passive, actuation = forces.passive(coordinates, v), forces.actuation(coordinates, v, u)
    assert_close(found(passive.total(kinematics), values), fields["qfrc_passive"])
    assert_close(found(actuation.total(kinematics), values), fields["qfrc_actuator"])


def test_actuator_forces_are_those_of_mujoco_c():
    _, m, kinematics, q, v, u = compiled(Forceful)
    values, fields = sampled(Forceful)
    every = actuator_forces(Coordinates(kinematics, q), v, u)
    enabled = [i for i in range(m.nactuator) if m.actuator_group[i] != 3]
    assert list(every) == enabled
    for i, (_, force, _) in every.items():
        assert_close(found([force], values)[:, 0], fields["actuator_force"][:, i])
    assert not fields["actuator_force"][:, [i for i in range(m.nactuator) if i not in enabled]].any()


@pytest.mark.parametrize("other", [0.0, 0.5])
def test_negative_gravity_compensation_acts_beside_positive_only(other):
    mjcf = f"""<mujoco><worldbody><body gravcomp="-1"><joint name="a" type="slide" axis="0 0 1"/><geom size=".1"/>
    </body><body gravcomp="{other}"><joint name="b" type="slide" axis="0 0 1"/><geom size=".1"/></body></worldbody>
    <actuator><motor joint="a" ctrlrange="0 1"/></actuator></mujoco>"""
    _, m, kinematics, q, v, _ = compiled(type("Heavy", (Body,), {"name": "Heavy", "mjcf": mjcf}))
    data = next(states(m))
    found = evaluate(forces.passive(Coordinates(kinematics, q), v).total(kinematics), values_of(data))
    assert_close(found, data.qfrc_passive)
    assert data.qfrc_passive.any() == bool(other)


@pytest.mark.parametrize("disabled", [False, True])
def test_a_joints_range_of_forces_without_0_counts_only_with_actuation(disabled):
    mjcf = f"""<mujoco><option><flag actuation="{"disable" if disabled else "enable"}"/></option><worldbody><body><joint
    name="a" actuatorfrcrange="1 2"/><geom size=".1" pos="0 0 .1"/></body></worldbody><actuator><motor joint="a"
    ctrlrange="-1 0"/></actuator></mujoco>"""
    _, m, kinematics, q, v, u = compiled(type("Ranged", (Body,), {"name": "Ranged", "mjcf": mjcf}))
    data = next(states(m))
    found = forces.actuation(Coordinates(kinematics, q), v, u).total(kinematics)
    assert_close(evaluate(found, values_of(data)), data.qfrc_actuator)
    assert (data.qfrc_actuator[0] == 0.0) == disabled


@pytest.mark.parametrize("ends", ["-2 1", ".5 2", "-2 -.5"])
def test_a_disabled_actuator_exerts_the_force_of_its_range_that_is_nearest_to_0(ends):
    mjcf = f"""<mujoco><option actuatorgroupdisable="1"/><worldbody><body><joint name="a"/><geom size=".1" pos="0 0 .1"
    /></body></worldbody><actuator><motor joint="a" ctrlrange="0 1"/><general dyntype="filter" joint="a" gear="3"
    ctrlrange="0 1" group="1" forcerange="{ends}"/></actuator></mujoco>"""
    _, m, kinematics, q, v, u = compiled(type("Off", (Body,), {"name": "Off", "mjcf": mjcf}))
    data = next(states(m))
    found = forces.actuation(Coordinates(kinematics, q), v, u).total(kinematics)
    assert_close(evaluate(found, values_of(data)), data.qfrc_actuator)
    assert (data.actuator_force[1] == 0.0) == (ends == "-2 1")
