"""MJX against MuJoCo C called directly: contacts, limits, flags and what diverges."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")
mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco.mjx")

from mage_diffsim.bridges.jax import load_jax, x64  # noqa: E402
from mage_diffsim.envs.mjx import MjxPhysics, _load_step  # noqa: E402
from mage_diffsim.envs.mujoco.loading import load_simulation  # noqa: E402
from mage_diffsim.errors import InputError  # noqa: E402
from tests.envs.geom_pairs import PAIRS, batch, mjcf  # noqa: E402
from tests.envs.small_models import Body, jacobian  # noqa: E402
from tests.marks import slow_but  # noqa: E402

ROWS = 24
SIZES = {
    "plane": "5 5 1",
    "sphere": ".1",
    "capsule": ".1 .2",
    "ellipsoid": ".1 .2 .3",
    "cylinder": ".1 .2",
    "box": ".1 .2 .3",
}


def simulation_of(mjcf):
    return load_simulation("Exact", mjcf, Path(), 1, {})


def stepped(simulation, moving, control):
    """A step of MJX; moving [n, nq + nv], control [n, nu]."""
    load_jax()
    step = _load_step().checked_step(simulation, implicit=True)
    with x64():
        return np.asarray(jax.jit(step)(jax.numpy.asarray(moving), jax.numpy.asarray(control)))


def converged(simulation, moving, control):
    """The same of MuJoCo C."""
    model = simulation.model.__copy__()
    model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    model.opt.tolerance, model.opt.iterations, model.opt.ls_iterations = 1e-15, 300, 200
    data = mujoco.MjData(model)
    found = []
    for row, action in zip(moving, control, strict=True):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = row[: model.nq], row[model.nq :], action
        mujoco.mj_step(model, data)
        found.append(np.concatenate([data.qpos, data.qvel]))
    return np.array(found)


def thrown(simulation, spread, rows=ROWS):
    """States around the initial one, and controls."""
    rng, model = np.random.default_rng(0), simulation.model
    moving = []
    for _ in range(rows):
        qpos = model.qpos0.copy()
        mujoco.mj_integratePos(model, qpos, rng.normal(size=model.nv) * spread, 1.0)
        moving.append(np.concatenate([qpos, rng.normal(size=model.nv)]))
    return np.array(moving), rng.uniform(-1.0, 1.0, (rows, model.nu))


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


COVERED = ("plane sphere", "plane capsule", "plane ellipsoid", "plane cylinder")
COVERED += ("sphere sphere", "sphere capsule", "sphere box", "capsule capsule")


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
    found, expected = stepped(simulation, moving, control), converged(simulation, moving, control)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
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
    found, expected = stepped(simulation, moving, control), converged(simulation, moving, control)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


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


def test_checking_refuses_what_building_refuses():
    crank = """<mujoco><worldbody><site name="a"/><body><joint type="slide" axis="1 0 0"/><geom size=".1"/><site
     name="b" pos=".2 0 0"/></body></worldbody><actuator><general slidersite="a" cranksite="b" cranklength=".3"
     ctrlrange="-1 1"/></actuator></mujoco>"""
    assert "MJX does not support it" in refused(crank) and "SLIDERCRANK" in refused(crank)


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
    found, expected = stepped(simulation, moving, control), converged(simulation, moving, control)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
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
    found, expected = stepped(simulation, moving, control), converged(simulation, moving, control)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("one", "two"), [("capsule", "box"), ("plane", "box"), ("sphere", "cylinder"), ("box", "box")])
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
            if any(len(other) != len(expected) for other in near):
                continue
            noise = max((abs(other - expected).max(initial=0.0) for other in near), default=0.0)
            distance, place, frame = (np.asarray(x) for x in collide(positions, rotations))
            inside = distance < np.repeat(group.margin, group.slots)
            found = np.concatenate([distance[:, None], place, frame[:, 0]], axis=1)[inside]
            assert len(found) == len(expected)
            if noise < 1e-9:
                np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-9)
                numbers[len(expected)] += 1
    assert all(numbers[n] >= 5 for n in range(group.slots + 1)), numbers
