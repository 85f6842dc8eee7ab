"""MuJoCo's integrators on Warp: equal to converged MuJoCo C in value and derivative."""

from __future__ import annotations

import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs import make_physics  # noqa: E402
from mage_diffsim.envs.warp.compiler.graph import evaluate  # noqa: E402
from mage_diffsim.envs.warp.compiler.intake import read  # noqa: E402
from mage_diffsim.envs.warp.compiler.step import Step  # noqa: E402
from tests.envs import force_models  # noqa: E402
from tests.envs.small_models import Body, jacobian  # noqa: E402
from tests.envs.warp_models import LEG, physics_of, samples, scaled  # noqa: E402
from tests.marks import slow_but  # noqa: E402

# In a fluid: a free body with another welded to it; a ball joint that carries two branches; a free body that carries a
# hinge. Servos with and without a force range.
FLOATING = """<mujoco><option timestep="0.004" integrator="INTEGRATOR" density="30" viscosity=".5" wind=".3 -.2 .1"/>
 <default><geom density="300" friction=".8 .1 .1"/></default><worldbody><geom type="plane" size="9 9 1"/><body
 name="drone" pos="0 0 .2"><freejoint name="root"/><geom type="capsule" size=".05" fromto="-.1 .02 0 .2 0
 .1"/><body pos=".1 0 .1" euler="10 20 30"><geom type="box" size=".1 .05 .02" contype="0"
 conaffinity="0"/></body></body><body pos="0 2 .6"><joint name="ball" type="ball" damping=".1"/><geom
 type="capsule" size=".04" fromto="0 0 0 .1 .1 -.3"/><body pos=".1 .1 -.3"> <joint name="left" axis="0 1 1"
 damping=".05" armature=".01" limited="true" range="-40 40"/><geom type="capsule" size=".03" fromto="0 0 0 .2
 .1 -.1"/></body><body pos=".1 .1 -.3"><joint name="right" type="slide" axis="1 0 1" damping="3"
 stiffness="20"/><geom type="box" size=".05 .1 .02" contype="0" conaffinity="0"/></body></body><body pos="2 0
 .4"><freejoint name="trunk"/><geom size=".1"/><body pos=".1 0 0"><joint name="tail" axis="0 0 1"
 damping="-.01"/><geom type="capsule" size=".03" fromto="0 0 0 .2 0
 .1"/></body></body></worldbody><actuator><position joint="left" kp="20" kv="1" ctrlrange="-1 1" forcerange="-3
 3"/><velocity joint="right" kv="5" gear="2" ctrlrange="-1 1"/><velocity joint="tail" kv=".5" ctrlrange="-9
 9"/></actuator></mujoco>"""


# Joints and a tendon whose actuators are often outside actuatorfrcrange; servos of joints, a site and a tendon on them.
CLAMPED = """<mujoco><option timestep="0.004" integrator="INTEGRATOR"/><default><position ctrlrange="-1 1"/><velocity
 ctrlrange="-1 1"/></default><worldbody><body gravcomp="1"><joint name="a" axis="1 0 0" damping=".2"
 actuatorfrcrange="-2 2" actuatorgravcomp="true"/><geom type="capsule" size=".04" fromto="0 0 0 .1 .1 -.3"/><body
 pos=".1 .1 -.3"><joint name="b" axis="0 1 0" damping=".1" actuatorfrcrange="-1 3"/><geom type="capsule" size=".04"
 fromto="0 0 0 .1 .1 -.3"/><site name="end" pos=".1 .1 -.3"/></body></body></worldbody><tendon><fixed name="both"
 actuatorfrcrange="-1 1"><joint joint="a" coef="1"/><joint joint="b" coef="-.5"/></fixed></tendon><actuator><velocity
 joint="a" kv=".5"/><position jointinparent="b" kp="2" kv=".7" gear="1.5"/><velocity joint="b" kv=".2"/><velocity
 tendon="both" kv=".3"/><velocity tendon="both" kv=".6" gear="2"/><position site="end" kp="3" kv="1" gear="1 2 3 0 .1
 0"/></actuator></mujoco>"""


class ExplicitLeg(Body):
    """Euler with damping that is not implicit."""

    name, mjcf = "ExplicitLeg", LEG.replace('integrator="RK4"/>', '><flag eulerdamp="disable"/></option>')


class Fast(Body):
    name, mjcf = "Fast", FLOATING.replace("INTEGRATOR", "implicitfast")


class Full(Body):
    name, mjcf = "Full", FLOATING.replace("INTEGRATOR", "implicit")


class FastLeg(Body):
    name, mjcf = (
        "FastLeg",
        LEG.replace("RK4", "implicitfast").replace('<motor joint="hip" gear="20"', '<velocity joint="hip" kv="4"'),
    )


class FullLeg(Body):
    name, mjcf = "FullLeg", FastLeg.mjcf.replace("implicitfast", "implicit")


class FastClamped(Body):
    name, mjcf = "FastClamped", CLAMPED.replace("INTEGRATOR", "implicitfast")


class FullClamped(Body):
    name, mjcf = "FullClamped", CLAMPED.replace("INTEGRATOR", "implicit")


class Backwards(Body):
    """A damped site whose motion is minus that of its joint."""

    name = "Backwards"
    mjcf = """<mujoco><option timestep="0.004" integrator="implicitfast"/><worldbody><body><joint type="slide" axis="1 0
     0"/><geom size=".1"/><site name="here"/></body></worldbody><actuator><velocity site="here" kv="50" gear="-1 0 0 0 0
     0" ctrlrange="-1 1"/></actuator></mujoco>"""


# Two bodies whose masses are diagonal, with forces that couple their degrees of freedom.
ALONE = """<mujoco><option timestep="0.004" integrator="INTEGRATOR" density="50" viscosity=".5"/><worldbody><body><joint
 name="x" type="slide" axis="1 0 0"/><joint name="y" type="slide" axis="0 1 0"/><joint name="turn" type="ball"/><geom
 size=".1" density="100"/><site name="one" pos="0 0 .1"/></body><body pos="1 0 0"><freejoint/><geom size=".1"
 density="100"/><site name="two" pos=".1 0 0"/></body></worldbody><actuator><velocity site="one" kv="4" gear="1 2 0 .3 0
 .1" ctrlrange="-1 1"/><velocity site="two" kv="4" gear="1 2 .5 .3 0 .1" ctrlrange="-1 1"/></actuator></mujoco>"""


class FastAlone(Body):
    name, mjcf = "FastAlone", ALONE.replace("INTEGRATOR", "implicitfast")


class FullAlone(Body):
    name, mjcf = "FullAlone", ALONE.replace("INTEGRATOR", "implicit")


FORCEFUL = tuple(force_models.model(f"Forceful_{x}", integrator=x) for x in ("implicitfast", "implicit"))
"""Every actuator, and tendons."""
MODELS = (FastClamped, FullClamped, ExplicitLeg, Fast, Full, FastLeg, FullLeg)


def name_of(model):
    return model.name


@pytest.mark.parametrize("model", (*MODELS, *FORCEFUL, Backwards, FastAlone, FullAlone), ids=name_of)
def test_the_equations_of_implicit_velocities_are_those_of_mujoco_c(model):
    step = Step(read(model().simulation), exact=True, records=0, words=16)
    m, rng = step.m, np.random.default_rng(0)
    data, entries, h = mujoco.MjData(m), step.implicit.entries(), step.timestep
    symmetric = np.array([step.implicit.matrix is None or d not in step.implicit.matrix.skew for d in range(m.nv)])
    for _ in range(20):
        data.qpos[:] = m.qpos0 + rng.normal(size=m.nq) * rng.choice([0.05, 0.3, 1.0])
        mujoco.mj_normalizeQuat(m, data.qpos)
        data.qvel[:], data.ctrl[:] = 3 * rng.normal(size=m.nv), 2 * rng.normal(size=m.nu)
        given = zip("qvu", (data.qpos, data.qvel, data.ctrl), strict=True)
        values = {f"{name}{i}": float(x) for name, xs in given for i, x in enumerate(xs)}
        found = evaluate(list(entries.values()), values)
        change, mass, before = np.zeros((m.nv, m.nv)), np.zeros((m.nv, m.nv)), data.qvel.copy()
        for (i, j), x in zip(entries, found, strict=True):
            change[i, j] = x
            if symmetric[i]:
                change[j, i] = x
        mujoco.mj_step(m, data)
        if "implicit" in step.model.integrator:
            theirs = np.zeros((m.nv, m.nv))
            for i, (begin, n) in enumerate(zip(m.D_rowadr, m.D_rownnz, strict=True)):
                theirs[i, m.D_colind[begin : begin + n]] = data.qDeriv[begin : begin + n]
            if step.model.integrator == "implicitfast":  # it takes what has a place in M
                places = np.zeros_like(theirs, dtype=bool)
                for i, (begin, n) in enumerate(zip(m.M_rowadr, m.M_rownnz, strict=True)):
                    places[i, m.M_colind[begin : begin + n]] = True
                theirs[~(places | places.T)] = 0.0
            # MuJoCo's implicitfast keeps the bias of free bodies elsewhere.
            rows = symmetric | (step.model.integrator == "implicit")
            np.testing.assert_allclose(
                change[rows], theirs[rows], rtol=0.0, atol=1e-11 * max(1.0, np.abs(theirs).max())
            )
        mujoco.mj_fullM(m, data, mass)
        force = data.qfrc_smooth + data.qfrc_constraint
        ours = (mass - h * change) @ (data.qvel - before) / h
        np.testing.assert_allclose(ours, force, rtol=0.0, atol=1e-9 * max(1.0, np.abs(force).max()))


@pytest.mark.parametrize("model", slow_but([ExplicitLeg, FastLeg, FastClamped], MODELS), ids=name_of)
def test_a_step_and_its_derivative_are_those_of_converged_mujoco_c(model):
    task, state, action = samples(model)
    reference, physics = make_physics(task, "mujoco", dtype=torch.float64), physics_of(model)
    expected, found = reference.step(state, action), physics.step(state, action)
    assert scaled(found - expected, expected).max() <= 1e-10
    adjoint = jacobian(physics.step, state, action)
    differences = jacobian(reference.step, state[:40], action[:40])
    # The few states next to a kink are not differentiable.
    assert scaled(adjoint[:40] - differences, differences).sort().values[-4] <= 1e-6
    tangents = jacobian(physics_of(model, derivative="jvp").step, state, action)
    assert scaled(adjoint - tangents, adjoint).max() <= 1e-11
