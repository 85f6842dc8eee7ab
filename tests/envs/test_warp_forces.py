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
from tests.envs.stages import assert_close, compiled, states, values_of  # noqa: E402

N = 100


def dense(m, data):
    """MuJoCo's actuator_moment."""
    moment = np.zeros((m.nactuator, m.nv))
    mujoco.mju_sparse2dense(moment, data.actuator_moment, data.moment_rownnz, data.moment_rowadr, data.moment_colind)
    return moment


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
        fields["moment"].append(dense(m, data).reshape(-1))
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
