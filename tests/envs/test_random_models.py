"""Random models in the Warp compiler: equal to MuJoCo C stage by stage, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

mujoco = pytest.importorskip("mujoco")

from mage_diffsim.envs.mujoco.convergence import with_solver  # noqa: E402
from mage_diffsim.envs.mujoco.loading import load_simulation  # noqa: E402
from mage_diffsim.envs.mujoco.model import Simulation, quiet  # noqa: E402
from mage_diffsim.envs.warp.compiler import activation, armature, dynamics, forces, intake  # noqa: E402
from mage_diffsim.envs.warp.compiler.adhesion import adhesive_bodies, pairs_of  # noqa: E402
from mage_diffsim.envs.warp.compiler.coordinates import Coordinates  # noqa: E402
from mage_diffsim.envs.warp.compiler.graph import Graph, add, evaluate, mul, sub  # noqa: E402
from mage_diffsim.envs.warp.compiler.rows import scalar_rows  # noqa: E402
from mage_diffsim.envs.warp.compiler.searches import search_of  # noqa: E402
from mage_diffsim.errors import InputError  # noqa: E402
from tests.envs.random_models import random_model  # noqa: E402
from tests.envs.searched import Slots  # noqa: E402
from tests.envs.stages import (  # noqa: E402
    assert_close,
    assert_contacts_are_those_of_mujoco_c,
    assert_rows_are_those_of_mujoco_c,
    flat,
)

PARTS, PART = 15, 20
"""Number of tests that share the models, and of models of each."""
TOLERANCE = 1e-10


@pytest.mark.parametrize("part", range(PARTS))
def test_random_models_are_refused_or_those_of_mujoco_c(part):
    seen, refused = set(), []

    # The only number drawn is one of PART, because hypothesis draws constants of whatever modules are loaded, too.
    @settings(max_examples=PART, phases=(Phase.generate,))
    @given(st.integers(0, PART - 1))
    def compare(number):
        seen.add(number)
        refusal = check(random_model(PART * part + number))
        assert refusal is None or is_one_sentence(refusal), refusal
        refused.extend([refusal] if refusal else [])

    compare()
    assert len(seen) == PART and len(refused) <= 0.6 * PART


def is_one_sentence(refusal: str) -> bool:
    return refusal.startswith("task Random: ") and "\n" not in refusal and len(refusal) < 400


def check(text: str) -> str | None:
    """Compares a model with MuJoCo C, stage by stage; returns why it is refused if it is."""
    try:
        simulation = load_simulation("Random", text, Path(), 1, {})
        model = intake.read(simulation)
    except InputError as error:
        return str(error)
    searched = [pair for pair in model.pairs if search_of(pair.kinds, model.noslip)]
    if any(pair in searched for body in adhesive_bodies(model.model) for pair in pairs_of(model, body)):
        return None  # An actuator counts the contacts that a search finds in compiled code alone.
    with quiet():
        found = states(simulation)
    values = {name: np.stack([x[name] for x in map(values_of, found)]) for name in values_of(found[0])}
    stages = Stages(model)
    expressions = stages.expressions()
    values = stages.kinematics.with_features(values)
    numbers = iter(evaluate([x for part in expressions.values() for x in part], values))
    arrays = {
        name: np.stack([np.broadcast_to(next(numbers), len(found)) for _ in part], 1)
        if part
        else np.zeros((len(found), 0))
        for name, part in expressions.items()
    }
    for i, data in enumerate(found):
        stages.compare(data, {name: x[i] for name, x in arrays.items()})
    return None


def states(simulation: Simulation) -> list[Any]:
    """MuJoCo's data at scattered states of the model after ``mj_forward`` with a converged solver."""
    m, random, found = with_solver(simulation.model, "converged"), np.random.default_rng(0), []
    m.opt.jacobian, m.opt.noslip_iterations = mujoco.mjtJacobian.mjJAC_DENSE, 0
    for scale in (0.05, 0.05, 0.3, 0.3, 1.0, 1.0):
        data = mujoco.MjData(m)
        data.qpos[:] = m.qpos0 + scale * random.normal(size=m.nq)
        data.qvel[:] = 3.0 * scale * random.normal(size=m.nv)
        data.ctrl[:] = random.normal(size=m.nu)
        data.act[:] = random.uniform(-0.5, 1.5, m.na)
        data.mocap_pos += 0.2 * scale * random.normal(size=data.mocap_pos.shape)
        data.mocap_quat += 0.2 * scale * random.normal(size=data.mocap_quat.shape)
        data.mocap_quat /= np.linalg.norm(data.mocap_quat, axis=1, keepdims=True)
        mujoco.mj_normalizeQuat(m, data.qpos)
        mujoco.mj_forward(m, data)
        found.append(data)
    return found


def values_of(data: Any) -> dict[str, float]:
    mocap = np.concatenate([data.mocap_pos, data.mocap_quat], 1).ravel()
    given = {"q": data.qpos, "v": data.qvel, "act": data.act, "u": data.ctrl, "mocap": mocap, "a": data.qacc}
    return {f"{name}{i}": float(x) for name, xs in given.items() for i, x in enumerate(xs)}


class Stages:
    """The expressions of a model, and their comparison with MuJoCo C."""

    def __init__(self, model: intake.Model) -> None:
        m, g = model.model, Graph()
        self.model, self.m = model, m
        q, v, self.a = g.inputs("q", m.nq), g.inputs("v", m.nv), g.inputs("a", m.nv)
        u, act = g.inputs("u", m.nu), g.inputs("act", m.na)
        self.act = act
        self.v = v
        self.kinematics = Slots(g, model, q, g.inputs("mocap", 7 * m.nmocap))
        coordinates = Coordinates(self.kinematics, q)
        self.rates = activation.rates(model, u, act)
        self.passive = forces.passive(coordinates, v)
        self.actuation = forces.actuation(coordinates, v, activation.inputs(model, u, act))
        tendons = armature.armatures(coordinates)
        self.mass = armature.with_armatures(m, dynamics.mass_matrix(self.kinematics), tendons)
        self.bias = dynamics.inverse_dynamics(self.kinematics, v, [0.0] * m.nv)
        for tendon in tendons:
            self.bias = [add(x, y) for x, y in zip(self.bias, tendon.bias(self.kinematics, v), strict=True)]
        self.rows = scalar_rows(coordinates, v)
        self.contacts = self.kinematics.contacts

    def expressions(self) -> dict[str, list[Any]]:
        k, m = self.kinematics, self.m
        velocities = k.velocities(self.v)
        return {
            "xpos": [x for b in range(m.nbody) for x in k.world_position(b, [0.0] * 3)],
            "xmat": [x for b in range(m.nbody) for x in flat(k.rotation[b])],
            "mass": flat(self.mass),
            "qfrc_bias": self.bias,
            "qfrc_passive": self.passive.total(k),
            "qfrc_actuator": self.actuation.total(k),
            "act": activation.following(self.model, self.act, self.rates),
            "rows": [x for r in self.rows for x in (r.weight, r.offset, *(mul(r.sign, y) for y in r.coordinate.row))],
            "contacts": [
                x for c in self.contacts for x in (c.present, c.weight, *c.offsets(velocities), *(flat(c.rows)))
            ],
            "residual": self.residual(),
        }

    def residual(self) -> list[Any]:
        """What is left of the equations of motion at accelerations a."""
        k, a = self.kinematics, self.a
        motions, velocities = k.velocities(a), k.velocities(self.v)
        dynamic = dynamics.accelerations(k, self.v, a)
        left = list(self.bias)
        for i, row in enumerate(self.mass):
            for x, y in zip(row, a, strict=True):
                left[i] = add(left[i], mul(x, y))
        for force in (self.passive, self.actuation):
            left = [sub(x, y) for x, y in zip(left, force.total(k), strict=True)]
        for row in self.rows:
            force = row.force(motions, a, dynamic)
            left = [sub(x, mul(share, force)) for x, share in zip(left, row.coordinate.row, strict=True)]
        for contact in self.contacts:
            for force, row in zip(contact.forces(motions, velocities), contact.rows, strict=True):
                left = [sub(x, mul(share, force)) for x, share in zip(left, row, strict=True)]
        return left

    def compare(self, data: Any, found: dict[str, np.ndarray]) -> None:
        m = self.m
        full = np.zeros((m.nv, m.nv))
        mujoco.mj_fullM(m, data, full)
        for name in ("xpos", "xmat", "qfrc_bias", "qfrc_passive", "qfrc_actuator"):
            assert_close(found[name], getattr(data, name).ravel(), TOLERANCE)
        assert_close(found["mass"], full.ravel(), TOLERANCE)
        assert_rows_are_those_of_mujoco_c(m, self.rows, found["rows"].reshape(len(self.rows), 2 + m.nv), data)
        assert_contacts_are_those_of_mujoco_c(m, self._contacts_at(found["contacts"]), data)
        if np.isfinite(data.qacc).all():
            jacobian = np.abs(data.efc_J.reshape(-1, m.nv)[: data.nefc])
            stiff = jacobian.T @ (data.efc_D * (jacobian @ np.abs(data.qacc) + np.abs(data.efc_aref)))
            scale = max(1.0, np.abs(full @ data.qacc).max(), 1e-4 * stiff.max(initial=0.0))
            assert_close(found["residual"] / scale, np.zeros(m.nv), 1e-8)
        if m.opt.integrator != mujoco.mjtIntegrator.mjINT_RK4:
            mujoco.mj_Euler(m, data)
            assert_close(found["act"], data.act, TOLERANCE)

    def _contacts_at(self, found: Sequence[float]) -> Iterator[tuple[Any, ...]]:
        """The contacts that are there, from the numbers of all."""
        nv, numbers = self.m.nv, iter(found)
        for c in self.contacts:
            present, weight = next(numbers), next(numbers)
            offsets = np.array([next(numbers) for _ in c.rows])
            rows = np.array([[next(numbers) for _ in range(nv)] for _ in c.rows])
            if present:
                yield c, weight, rows, offsets
