"""Armature of tendons on Warp: mass matrix, bias, steps and derivatives are those of MuJoCo C."""

from __future__ import annotations

import numpy as np
import pytest

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")


from mage_diffsim.envs.warp.compiler import intake  # noqa: E402
from mage_diffsim.envs.warp.compiler.step import Step  # noqa: E402
from tests.envs.small_models import Body  # noqa: E402
from tests.envs.stages import assert_close, flat, numbers, states, values_of  # noqa: E402
from tests.envs.warp_models import assert_adjoint_and_tangents_agree, assert_step_and_derivatives_are_those_of_mujoco_c  # noqa: E402
from tests.marks import slow_but  # noqa: E402

# Tendons along a chain, between the branches of a tree, between trees, to a mocap body, over a pulley; two actuators
# on one tendon, one of a disabled group; a tendon of one body; rows of tendons with armature.
ARMS = """<mujoco><option timestep="0.003" actuatorgroupdisable="3"{option}><flag contact="disable"/></option><default>
 <geom density="700"/><joint damping=".05"/><general ctrlrange="-1 1"/></default><worldbody><site name="w"
 pos="-.2 .1 .9"/><body name="held" mocap="true" pos=".2 .6 .7"><site name="m" pos="0 .1 0"/></body>
 <body name="a" pos="0 0 .5"><joint name="a" axis="0 1 0"/><geom type="capsule" size=".05" fromto="0 0 0 .3 .1 0"/>
 <site name="a" pos=".1 .2 .1"/><body name="b" pos=".3 0 0"><joint name="b" axis="1 0 0"/><joint name="turn"
 axis="0 0 1" pos=".1 0 0"/><geom type="capsule" size=".05" fromto="0 0 0 .3 .1 0"/><site name="b" pos=".2 .1 .1"/>
 <site name="tip" pos=".3 .1 .1"/></body><body name="c" pos=".1 .3 0"><joint name="c" type="ball"/><geom
 type="capsule" size=".05" fromto="0 0 0 .3 .1 .2"/><site name="c" pos=".2 .1 .1"/></body></body><body name="cart"
 pos="0 1 .3"><joint name="x" type="slide" axis="1 0 0"/><joint name="z" type="slide" axis="0 .2 1"/><geom size=".1"/>
 <site name="cart" pos="0 0 .1"/></body></worldbody><tendon><spatial name="chain" armature=".7" frictionloss=".1"><site
 site="w"/><site site="b"/></spatial><spatial name="fork" armature=".3" limited="true" range="0 .4"><site
 site="tip"/><site site="c"/></spatial><spatial name="trees" armature=".4" stiffness="3"><site site="w"/><site
 site="a"/><pulley divisor="2"/><site site="c"/><site site="cart"/><site site="m"/></spatial><fixed name="fixed"
 armature=".02"><joint joint="x" coef="2"/><joint joint="b" coef="-1"/></fixed><fixed name="driven"><joint joint="x"
 coef="1"/><joint joint="z" coef=".5"/></fixed><spatial name="rigid" armature="5"><site site="b"/><site
 site="tip"/></spatial></tendon><actuator><motor tendon="driven" gear="2" armature=".05"/><motor tendon="driven"
 armature=".3" group="3"/><position tendon="trees" kp="4" kv=".5" armature=".1" gear="1.5"/><velocity tendon="chain"
 kv=".4"/><motor joint="c" gear="1 .5 .2"/></actuator></mujoco>"""


def model(name: str, integrator: str) -> type[Body]:
    """A task of the arms with an integrator."""
    return type(name, (Body,), {"name": name, "mjcf": ARMS.format(option=f' integrator="{integrator}"')})


Arms = model("Arms", "Euler")
Fast = model("Fast", "implicitfast")
Skew = model("Skew", "implicit")
Stages = model("Stages", "RK4")


def test_mass_matrix_and_smooth_forces_are_those_of_mujoco_c():
    simulation = Arms().simulation
    m, step = simulation.model, Step(intake.read(simulation), exact=True, records=1000, words=2)
    assert len(step.armatures) == 6
    full, poses = np.zeros((m.nv, m.nv)), np.random.default_rng(1)
    for data in states(m):
        data.mocap_pos[:] += poses.normal(size=(1, 3))
        mujoco.mj_forward(m, data)
        mujoco.mj_fullM(m, data, full)
        mocap = np.concatenate([data.mocap_pos[0], data.mocap_quat[0]])
        values = values_of(data) | {f"mocap{i}": x for i, x in enumerate(mocap)}
        assert_close(numbers(flat(step.mass), values).reshape(m.nv, m.nv), full)
        assert_close(numbers(step.smooth, values), data.qfrc_smooth)


EVERY = slow_but([Arms], [Arms, Fast, Skew, Stages])


@pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)
def test_steps_and_derivatives_are_those_of_mujoco_c(model):
    assert_step_and_derivatives_are_those_of_mujoco_c(model)


@pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)
def test_adjoint_and_tangents_agree(model):
    assert_adjoint_and_tangents_agree(model)
