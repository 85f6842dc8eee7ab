"""MJX against MuJoCo C called directly: contacts, limits, flags and what diverges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")
mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco.mjx")

from mage_diffsim.bridges.jax import load_jax, x64  # noqa: E402
from mage_diffsim.envs.mjx import MjxPhysics, _load_step  # noqa: E402
from mage_diffsim.envs.mujoco.convergence import with_solver  # noqa: E402
from mage_diffsim.envs.mujoco.loading import load_simulation  # noqa: E402
from mage_diffsim.errors import InputError  # noqa: E402
from tests.envs.geom_pairs import SIZES  # noqa: E402
from tests.envs.small_models import Body, jacobian  # noqa: E402

ROWS = 24


def simulation_of(mjcf):
    return load_simulation("Exact", mjcf, Path(), 1, {})


def stepped(simulation, moving, control):
    """A step of MJX; moving [n, simulation.moving], control [n, nu]."""
    load_jax()
    step = _load_step().checked_step(simulation, implicit=True)
    with x64():
        return np.asarray(jax.jit(step)(jax.numpy.asarray(moving), jax.numpy.asarray(control)))


def converged(simulation, moving, control):
    """The same of MuJoCo C."""
    model = with_solver(simulation.model, "converged")
    data = mujoco.MjData(model)
    found = []
    for row, action in zip(moving, control, strict=True):
        mujoco.mj_resetData(model, data)
        simulation.put(data, row)
        data.ctrl[:] = action
        mujoco.mj_step(model, data)
        mocap = np.concatenate([data.mocap_pos, data.mocap_quat], axis=1).ravel()
        found.append(np.concatenate([data.qpos, data.qvel, data.act, mocap]))
    return np.array(found)


def assert_steps_are_those_of_mujoco_c(simulation, moving, control):
    """Compares steps of MJX with MuJoCo C; returns the latter [n, simulation.moving]."""
    found, expected = stepped(simulation, moving, control), converged(simulation, moving, control)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    return expected


def thrown(simulation, spread, rows=ROWS):
    """States around the initial one, mocap poses too, and controls."""
    rng, model = np.random.default_rng(0), simulation.model
    data, moving = mujoco.MjData(model), []
    for _ in range(rows):
        qpos = model.qpos0.copy()
        mujoco.mj_integratePos(model, qpos, rng.normal(size=model.nv) * spread, 1.0)
        poses = np.concatenate([data.mocap_pos, data.mocap_quat], axis=1)
        poses += spread * rng.normal(size=poses.shape)
        poses[:, 3:] /= np.linalg.norm(poses[:, 3:], axis=1, keepdims=True)
        moving.append(np.concatenate([qpos, rng.normal(size=model.nv), data.act, poses.ravel()]))
    return np.array(moving), rng.uniform(-1.0, 1.0, (rows, model.nu))


LOG = """<mujoco><option timestep="0.004"/><worldbody><geom type="capsule" size=".1 .4" euler="90 0 0"/><body
 pos="0 0 .19"><joint name="z" type="slide" axis="0 0 1"/><joint name="r" axis="1 0 0"/><geom type="capsule"
 size=".1 .3" euler="90 0 0"/></body></worldbody><actuator><motor joint="z" ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.slow
def test_nearly_parallel_and_collinear_capsules_have_two_contacts():
    simulation = simulation_of(LOG)
    angles = np.array([0.0, 1e-9, 1e-6, 1e-5, 9e-5, 1.1e-4, 1e-3, 1e-2, -1e-5, -5e-5])
    moving = np.stack([np.zeros_like(angles), angles, np.full_like(angles, -0.1), 0.3 * angles], axis=1)
    control = np.zeros((len(angles), 1))
    found = stepped(simulation, moving, control)
    np.testing.assert_allclose(found, converged(simulation, moving, control), rtol=1e-9, atol=1e-9)


CAPPED = """<mujoco><option timestep="0.004"/><custom><numeric name="max_contact_points" data="1"/>
 <numeric name="max_geom_pairs" data="0"/></custom><worldbody><geom
 type="plane" size="9 9 1"/><body pos="0 0 .1"><freejoint/><geom type="capsule" size=".1" fromto="-.3 -.2 0 .3 -.2 0"
 friction="0 0 0"/><geom type="capsule" size=".1" fromto="-.3 .2 0 .3 .2 0"/><body><joint name="h" axis="0 1 0"/><geom
 size=".15"/></body></body></worldbody><actuator><motor joint="h" ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.slow
def test_custom_numbers_that_limit_mjx_drop_no_contact():
    simulation = simulation_of(CAPPED)
    moving, control = thrown(simulation, 0.1)
    expected = assert_steps_are_those_of_mujoco_c(simulation, moving, control)
    assert np.abs(expected[:, simulation.nq + 2] - moving[:, simulation.nq + 2]).max() > 1.0, "they push"


def chain(*joints):
    """Bodies side by side, each on one joint."""
    return "".join(
        f'<body pos="{i} 0 1"><joint name="j{i}" {joint}/><geom size=".1" pos=".2 0 0" contype="0" conaffinity="0"/>'
        "</body>"
        for i, joint in enumerate(joints)
    )


JOINTS = (
    'axis="0 1 0" range="-3 3" margin=".1"',
    'type="slide" axis="1 0 0" range="-.02 .03" margin=".1" solimplimit=".5 .9 .02 .3 3.5"',
    'type="slide" axis="1 0 0" range="-1e10 .1" margin=".01"',
    'axis="0 1 0" range="-10 20" solreflimit=".02 -1"',
    'axis="0 1 0" range="-10 20" solreflimit="-500 -10"',
    'axis="0 1 0" range="-10 20" solimplimit=".5 .9 0 .5 2"',
    'axis="0 1 0" range="-10 20" solimplimit=".3 .9 .3 .4 2.5"',
    'axis="0 1 0" frictionloss=".3" solreffriction=".1 1" solimpfriction=".7 .8 .1"',
    'type="ball" range="0 20" margin=".05"',
    'type="slide" axis="0 0 1"',
    'type="slide" axis="1 0 0" stiffness="20" damping="2"',
)
LIMITS = f"""<mujoco><option timestep="0.004" integrator="INTEGRATOR"><flag energy="enable" fwdinv="enable"
 FLAG="disable"/></option><worldbody>{chain(*JOINTS)}</worldbody><tendon><fixed name="narrow" limited="true"
 range="-.02 .02" margin=".05" stiffness="5" damping=".3" frictionloss=".2" armature=".1"><joint joint="j9" coef="1"/>
 <joint joint="j10" coef="-.5"/></fixed></tendon><actuator><motor joint="j7" ctrlrange="-1 1"/><motor tendon="narrow"
 ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.slow
@pytest.mark.parametrize(("integrator", "flag"), [("Euler", "spring"), ("implicitfast", "damper")])
def test_limits_of_joints_and_tendons_are_those_of_mujoco_c(integrator, flag):
    """Narrower than twice their margin too, where both ends push; across trees, tendons add no inertia."""
    simulation = simulation_of(LIMITS.replace("INTEGRATOR", integrator).replace("FLAG", flag))
    moving, control = thrown(simulation, 0.15)
    assert_steps_are_those_of_mujoco_c(simulation, moving, control)


def physics_of(mjcf):
    return MjxPhysics(type("Exact", (Body,), {"name": "Exact", "mjcf": mjcf, "frame_skip": 1})(), dtype=torch.float64)


NARROW = f"""<mujoco><worldbody>{chain(*JOINTS[:2])}</worldbody><actuator><motor joint="j0"
 ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.slow
def test_narrow_limits_have_the_derivative_of_mujoco_c():
    """In the middle of the range too, where both ends are as near."""
    physics = physics_of(NARROW)
    simulation = physics.simulation
    moving, control = thrown(simulation, 0.02, 4)
    moving[0, 0] = 0.0
    found = jacobian(physics.step, torch.as_tensor(moving), torch.as_tensor(control)).numpy()
    h = 1e-6
    for k in range(4):
        high, low = moving.copy(), moving.copy()
        high[:, k] += h
        low[:, k] -= h
        central = (converged(simulation, high, control) - converged(simulation, low, control)) / (2.0 * h)
        np.testing.assert_allclose(found[:, :, k], central, rtol=1e-5, atol=1e-5 * np.abs(central).max())


FAST = """<mujoco><option timestep="0.01" gravity="0 0 0" integrator="INTEGRATOR"/><worldbody><body><joint name="x"
 type="slide" axis="1 0 0"/><geom size=".1"/></body></worldbody><actuator><motor joint="x" gear="1e13"
 ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.slow
@pytest.mark.parametrize("integrator", ["Euler", "RK4"])
def test_what_mujoco_c_counts_as_diverged_is_nan_and_so_is_its_derivative(integrator):
    mjcf = FAST.replace("INTEGRATOR", integrator)
    state = torch.tensor(
        [[0.0, 1.0], [1.01e10, 0.0], [0.0, -1.01e10], [9.9e9, 0.0], [-9.9e9, 9.9e9], [0.0, 0.0]]
    ).double()
    physics = physics_of(mjcf)
    action = torch.zeros(len(state), 1, dtype=torch.float64)
    action[-1] = 0.9
    bad = torch.tensor([False, True, True, False, False, True])
    found, derivative = physics.step(state, action), jacobian(physics.step, state, action)
    assert found[~bad].isfinite().all() and derivative[~bad].isfinite().all()
    assert found[bad].isnan().all() and derivative[bad].isnan().all()
    model, data = physics.simulation.model, mujoco.MjData(physics.simulation.model)
    for row, control, diverged in zip(state, action, bad, strict=True):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = row[:1].numpy(), row[1:].numpy(), control.numpy()
        mujoco.mj_step(model, data)
        assert diverged == any(data.warning[w].number for w in range(len(data.warning)))


def refused(mjcf):
    """The sentence of building, which is that of :meth:`MjxPhysics.check_covers`."""
    task = type("Refused", (Body,), {"name": "Refused", "mjcf": mjcf})()
    with pytest.raises(InputError) as checked:
        MjxPhysics.check_covers(task)
    with pytest.raises(InputError) as built:
        MjxPhysics(task)
    assert str(checked.value) == str(built.value)
    return str(checked.value)


CRANK = """<mujoco><worldbody><site name="a"/><body><joint type="slide" axis="1 0 0"/><geom size=".1"/><site
 name="b" pos=".2 0 0"/></body></worldbody><actuator><general slidersite="a" cranksite="b" cranklength=".3"
 ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.parametrize(
    ("mjcf", "sentence"),
    [
        (CRANK, "MJX has no transmission of type slider-crank: actuator 'actuator0'"),
        (
            LOG.replace("<option ", '<option integrator="implicitfast" density="1" '),
            "MJX does not support it (implicitfast not implemented for fluid drag.)",
        ),
    ],
    ids=["found before MJX is called", "MJX's own"],
)
def test_checking_refuses_what_building_refuses(mjcf, sentence):
    assert refused(mjcf) == f"task Refused: {sentence}; use backend mujoco"


@pytest.mark.parametrize("flag", ["override", "diagexact", "speculative"])
def test_flags_that_mjx_ignores_are_named(flag):
    mjcf = LOG.replace("<worldbody>", "<!-- --><worldbody>")
    simulation = simulation_of(mjcf)
    simulation.model.opt.enableflags |= getattr(mujoco.mjtEnableBit, f"mjENBL_{flag.upper()}")
    with pytest.raises(InputError, match=rf"MJX ignores option flag {flag} \(enabled\); use backend mujoco"):
        _load_step().check_supported(simulation)


WRAPPED = """<mujoco><worldbody><geom name="post" type="TYPE" size=".1 .3" euler="90 0 0" contype="0"
 conaffinity="0"/><site name="side" pos="0 0 .3"/><site name="s0" pos="-.4 0 .02"/><body><joint name="x" axis="0 1 0"/>
 <geom size=".05" pos=".3 0 0" contype="0" conaffinity="0"/><site name="s1" pos=".4 0 .03"/></body></worldbody><tendon>
 <spatial name="string" stiffness="9" damping=".2"><site site="s0"/><geom geom="post" SIDE/><site site="s1"/></spatial>
 </tendon><actuator><motor joint="x" ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sphere", "cylinder"])
def test_tendons_wrap_as_in_mujoco_c_without_a_sidesite_and_are_refused_with_one(kind):
    mjcf = WRAPPED.replace("TYPE", kind)
    simulation = simulation_of(mjcf.replace("SIDE", ""))
    moving, control = thrown(simulation, 1.0)
    assert_steps_are_those_of_mujoco_c(simulation, moving, control)
    assert "MJX wraps tendon string by another rule" in refused(mjcf.replace("SIDE", 'sidesite="side"'))


STATIC = """<mujoco><worldbody><geom type="hfield" hfield="hills" contype="0" conaffinity="0"/><geom type="box"
 size=".1 .1 .1"/><body name="held" mocap="true" pos=".1 0 0"><geom type="cylinder" size=".1 .1"/></body><body pos="0 0
 3"><joint name="x" type="slide" axis="1 0 0"/><geom name="one" type="mesh" mesh="tetra" contype="0" conaffinity="0"/>
 <body name="slider"><geom name="two" type="box" size=".2 .1 .1"/></body><body><joint name="y" axis="0 0 1"/><geom
 type="ellipsoid" size=".3 .1 .1" contype="2" conaffinity="4"/></body></body></worldbody><asset><hfield name="hills"
 nrow="3" ncol="3" size="1 1 1 1"/><mesh name="tetra" vertex="0 0 0 1 0 0 0 1 0 0 0 1"/></asset><contact><pair
 geom1="one" geom2="two"/><exclude body1="world" body2="slider"/><exclude body1="held" body2="slider"/></contact>
 <sensor><distance geom1="one" geom2="two"/></sensor><actuator><motor joint="x" ctrlrange="-1 1"/></actuator>
 </mujoco>"""


@pytest.mark.slow
def test_geoms_that_never_meet_and_sensors_are_not_refused():
    simulation = simulation_of(STATIC)
    moving, control = thrown(simulation, 0.3)
    assert_steps_are_those_of_mujoco_c(simulation, moving, control)


# Mocap bodies: before, between and after others; alone, with geoms that touch, with children that are fixed or move.
HELD = """<mujoco><worldbody><body name="first" mocap="true" pos="0 0 1"/><body pos=".5 0 .3"><joint name="x" axis="0
 1 0"/><geom type="capsule" size=".1 .2" pos="0 0 .1"/><site name="end" pos="0 .1 .2"/></body><body name="tray"
 mocap="true" pos=".5 0 0" quat="1 1 0 0"><body pos="0 .1 0" euler="0 20 0"><geom size=".15"/><site name="rim" pos=".1
 0 .1"/></body><body pos="-.6 0 0"><joint name="y" axis="1 1 0" stiffness="3"/><geom type="capsule" size=".05 .2"
 pos=".1 0 0"/> <body pos=".2 0 0"><joint type="ball"/><geom size=".1" mass="1"/></body></body></body><body pos="2 0
 .05"><freejoint/><geom size=".1"/></body><body name="last" mocap="true" pos="2 0 -.1"><geom
 size=".1"/></body></worldbody><tendon><spatial stiffness="9"><site site="end"/><site
 site="rim"/></spatial></tendon><actuator><motor joint="x" ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.slow
def test_what_hangs_on_a_mocap_body_moves_with_it():
    simulation = simulation_of(HELD)
    moving, control = thrown(simulation, 0.1)
    assert_steps_are_those_of_mujoco_c(simulation, moving, control)


@pytest.mark.parametrize(("one", "two"), [("capsule", "box"), ("capsule", "cylinder"), ("box", "box")])
def test_other_pairs_are_refused_by_name(one, two):
    mjcf = f"""<mujoco><worldbody><geom name="a" type="{one}" size="{SIZES[one]}"/><body><joint name="z" type="slide"/>
     <geom name="b" type="{two}" size="{SIZES[two]}"/></body></worldbody><actuator><motor joint="z" ctrlrange="-1 1"/>
     </actuator></mujoco>"""
    assert f"contacts of a {one} (a) with a {two} (b) are not covered; use backend mujoco" in refused(mjcf)


BALL = """<mujoco><worldbody><site name="fixed"/><body><joint name="b" type="ball" {}/><geom size=".1 .2"
 type="capsule"/><site name="s"/></body></worldbody><actuator><{} ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.parametrize(
    ("joint", "actuator", "message"),
    [
        ('stiffness="2"', 'motor name="m" joint="b"', "the spring of the free or ball joint b where it is at rest"),
        ("", 'position name="m" joint="b" kp="3"', "actuator m by the rotation that it holds"),
        ("", 'position name="m" jointinparent="b" kp="3"', "actuator m by the rotation that it holds"),
        ("", 'position name="m" site="s" refsite="fixed" gear="0 0 0 1 0 0"', "actuator m by the rotation"),
    ],
)
def test_forces_by_the_angle_of_a_rotation_in_space_are_refused(joint, actuator, message):
    """MJX's derivative of the angle is 0 within 1e-8 of no rotation, where episodes begin."""
    assert message in refused(BALL.format(joint, actuator))


@pytest.mark.parametrize("actuator", ['motor joint="b"', 'velocity joint="b"', 'position site="s" refsite="fixed"'])
def test_other_forces_on_a_ball_joint_are_covered(actuator):
    MjxPhysics.check_covers(type("Ball", (Body,), {"name": "Ball", "mjcf": BALL.format("", actuator)})())
