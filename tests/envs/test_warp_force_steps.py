"""Steps of models with tendons, transmissions and actuators on Warp: equal to MuJoCo C in value and derivative."""

from __future__ import annotations

import pytest

pytest.importorskip("mujoco")
pytest.importorskip("warp")


from tests.envs.force_models import Forceful, Implicit, model
from tests.envs.small_models import Body
from tests.envs.warp_models import assert_adjoint_and_tangents_agree, assert_step_and_derivatives_are_those_of_mujoco_c
from tests.marks import slow_but

Stages = model("Stages", integrator="RK4", density="200")
# A tendon in a ring, on whose inside it is bent, and one around a ball.
RING = """<mujoco><option timestep="0.004"/><default><geom density="700" contype="0" conaffinity="0"/><joint
 armature=".02" damping=".1"/></default><worldbody><site name="w" pos="-.3 0 .55"/><body pos="0 0 .5"><joint name="a"
 axis="0 1 0"/><geom type="capsule" size=".04" fromto="0 0 0 .3 0 0"/><geom name="ring" type="cylinder" size=".05 .1"
 pos=".05 0 .1" euler="90 0 0"/><site name="in" pos=".06 0 .11"/><geom name="ball" size=".05" pos=".15 0 .05"/><body
 pos=".3 0 0"><joint name="b" axis="0 1 .2"/><geom type="capsule" size=".04" fromto="0 0 0 .3 0 0"/><site name="t"
 pos=".2 0 .03"/></body></body></worldbody><tendon><spatial name="x" stiffness="20" damping=".3"><site site="w"/><geom
 geom="ring" sidesite="in"/><site site="t"/></spatial><spatial name="y" stiffness="9" springlength=".3"><site
 site="w"/><geom geom="ball"/><site site="t"/></spatial></tendon><actuator><motor tendon="x" ctrlrange="-1 1"/><motor
 joint="b" ctrlrange="-1 1"/></actuator></mujoco>"""


class Ring(Body):
    name, mjcf = "Ring", RING


EVERY = slow_but([Ring], [Ring, Forceful, Implicit, Stages])


@pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)
def test_steps_and_derivatives_are_those_of_mujoco_c(model):
    assert_step_and_derivatives_are_those_of_mujoco_c(model)


@pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)
def test_adjoint_and_tangents_agree(model):
    assert_adjoint_and_tangents_agree(model)
