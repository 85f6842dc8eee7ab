"""Activations of actuators and poses of mocap bodies on Warp: equal to converged MuJoCo C in value and derivative."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs import make_physics  # noqa: E402
from mage_diffsim.envs.mujoco.model import BodyPosition, MeanVelocity, SitePosition  # noqa: E402
from mage_diffsim.envs.warp.compiler.graph import evaluate  # noqa: E402
from mage_diffsim.envs.warp.compiler.intake import read  # noqa: E402
from mage_diffsim.envs.warp.compiler.step import Step  # noqa: E402
from tests.envs.small_models import Body, jacobian  # noqa: E402
from tests.envs.warp_models import scaled  # noqa: E402
from tests.marks import slow_but  # noqa: E402

# Every kind of activation that is covered, some early and some bounded, on a row of pendulums; one of them hangs on a
# mocap body, which carries a welded one, and a free body lies on two others.
MJCF = """<mujoco><option timestep="0.005" integrator="INTEGRATOR"/><default><geom friction=".8 .1 .1"/><general
 ctrlrange="-1 1"/></default><worldbody><body name="hand" mocap="true" pos="0 0 1" quat="1 .1 .2 .3"><geom size=".1"/>
 <body name="palm" pos=".1 .05 0" euler="10 20 30"><site name="grip" pos=".1 0 .1"/><geom type="capsule" size=".05"
 fromto="0 0 0 .2 0 0"/></body><body pos="0 .1 -.1"><joint name="j0" axis="0 1 1" damping=".1"/><geom type="capsule"
 size=".04" fromto="0 0 0 .1 .1 -.3"/></body></body><body name="table" mocap="true" pos="1 0 .5"><geom type="plane"
 size="1 1 1"/></body><body pos="1 0 .6"><freejoint name="free"/><geom type="capsule" size=".1" fromto="0 0 0 .2 0 0"/>
 </body><body pos="0 .05 .7"><joint name="j1" axis="1 0 0" damping=".1"/><geom type="capsule" size=".05" fromto="0 0 0
 0 .1 .3"/><body pos="0 .1 .3"><joint name="j2" axis="0 1 0" damping=".2"/><geom type="capsule" size=".04" fromto="0 0
 0 .1 .2 0"/></body></body><body pos="0 3 1"><joint name="j3" axis="0 1 0" damping=".1"/><geom size=".1" pos=".1 0
 0"/></body></worldbody><actuator><general joint="j0" dyntype="integrator" gainprm="2" actrange="-.3 .3"/><general
 joint="j1" dyntype="filter" dynprm=".03" gainprm="2" biastype="affine" biasprm=".1 -1 -.1" forcerange="-1 1"/><general
 joint="j2" dyntype="filterexact" dynprm=".03" gainprm="2" actearly="true"/><general joint="j3" dyntype="muscle"
 dynprm=".02 .05 .3" gainprm="3" biastype="none"/><general joint="j2" dyntype="muscle" dynprm=".02 .05 0" gainprm="1"
 actearly="true"/><general joint="j3" dyntype="filterexact" dynprm=".1" gainprm="2" actrange="-.3 .2"/><motor
 joint="j1" ctrlrange="-1 1"/></actuator></mujoco>"""


def driven(integrator: str) -> Body:
    readouts = {"grip": SitePosition("grip"), "palm": BodyPosition("palm"), "x": MeanVelocity("free", 0)}
    attributes = {"name": "Driven", "mjcf": MJCF.replace("INTEGRATOR", integrator), "readouts": readouts}
    return type("Driven", (Body,), attributes)()


@functools.cache
def states(integrator: str, n: int = 60):
    """The task, states with activations and mocap poses that differ by row, and actions."""
    task, generator = driven(integrator), torch.Generator().manual_seed(0)
    start = task.reset(n, generator).double()

    def near(x, scale):
        return x + scale * torch.randn(x.shape, dtype=torch.float64, generator=generator)

    parts = near(task.qpos(start), 0.1), near(task.qvel(start), 0.5), near(task.act(start), 0.3)
    state = task.state_at(*parts, near(task.mocap(start), 0.03))
    return task, state, 1.98 * torch.rand(n, task.action_dim, dtype=torch.float64, generator=generator) - 0.99


def test_activations_and_places_on_mocap_bodies_are_those_of_mujoco_c():
    task, state, action = states("Euler")
    step, m = Step(read(task.simulation), exact=True, records=0, words=16), task.simulation.model
    data, clamped, touching = mujoco.MjData(m), 0, set()
    for row, control in zip(state.numpy(), task.scale_action(action).numpy(), strict=True):
        task.simulation.put(data, row)
        data.ctrl[:] = control
        poses = np.concatenate([data.mocap_pos, data.mocap_quat], 1).ravel()
        given = {"q": data.qpos, "v": data.qvel, "act": data.act, "u": data.ctrl, "mocap": poses}
        values = {f"{name}{i}": float(x) for name, xs in given.items() for i, x in enumerate(xs)}
        mujoco.mj_forward(m, data)
        touching |= {tuple(sorted(m.geom_bodyid[g] for g in contact.geom)) for contact in data.contact}
        for b in range(m.nbody):
            turned = [x for row in step.kinematics.rotation[b] for x in row]
            found = evaluate([*step.vector(BodyPosition, b), *turned], values)
            np.testing.assert_allclose(found, [*data.xpos[b], *data.xmat[b]], rtol=0.0, atol=1e-13)
            found = evaluate(step.kinematics.quaternion(step.q, b), values)
            np.testing.assert_allclose(found, data.xquat[b], rtol=0.0, atol=1e-13)
        np.testing.assert_allclose(evaluate(step.act_rates, values), data.act_dot, rtol=1e-13, atol=1e-13)
        expected = evaluate(step.acted(), values)
        mujoco.mj_step(m, data)
        np.testing.assert_allclose(expected, data.act, rtol=1e-13, atol=1e-13)
        clamped += data.act[5] in (-0.3, 0.2)
    assert clamped
    for name in ("hand", "palm", "table"):
        assert any(mujoco.mj_name2id(m, mujoco.mjtObj.mjOBJ_BODY, name) in pair for pair in touching), (name, touching)
    assert all(any(step.kinematics.tree[b] for b in pair.bodies) for pair in step.model.pairs)


@pytest.mark.parametrize("integrator", slow_but(["RK4"], ["Euler", "RK4", "implicitfast", "implicit"]))
def test_a_step_and_its_derivative_are_those_of_converged_mujoco_c(integrator):
    task, state, action = states(integrator)
    reference, physics = (make_physics(task, backend, dtype=torch.float64) for backend in ("mujoco", "warp"))
    expected, found = reference.step(state, action), physics.step(state, action)
    assert scaled(found - expected, expected).max() <= 1e-10
    adjoint = jacobian(physics.step, state, action)
    differences = jacobian(reference.step, state, action)
    # The few states next to a kink are not differentiable.
    assert scaled(adjoint - differences, differences).sort().values[-8] <= 1e-6
    tangents = jacobian(make_physics(task, "warp", dtype=torch.float64, derivative="jvp").step, state, action)
    assert scaled(adjoint - tangents, adjoint).max() <= 1e-11
    s = task.simulation
    acting = adjoint[:, : s.nq + s.nv].abs().amax((0, 1))
    assert acting[s.nq + s.nv : s.moving].min() > 1e-3, "activations and mocap poses act"
    assert acting[-task.action_dim :].min() > 1e-3, "actions act"
