"""The ranges of controls: given ones, and those that follow from what a control does."""

import math
import re

import mujoco
import numpy as np
import pytest
import torch

from mage_diffsim.envs.mujoco.controls import control_names, control_ranges, unbounded_controls
from mage_diffsim.envs.physics import BACKENDS, load
from mage_diffsim.errors import InputError
from tests.envs.mujoco_tasks import physics_of
from tests.envs.small_models import Body, jacobian

MODEL = """<mujoco><compiler angle="radian"/><worldbody><body><joint name="hinge" axis="0 1 0" range="-1 2"/><geom
 size=".1"/><body pos="0 0 .3"><joint name="free_hinge" axis="0 1 0" actuatorfrcrange="-6 9"/><geom size=".1"/><body
 pos="0 0 .3"><joint name="slide" type="slide"/><geom size=".1"/></body></body></body><body pos="3 0 0"><joint
 name="ball" type="ball"/><geom size=".1" pos=".1 0 0"/></body></worldbody><tendon><fixed name="strap" range="0 4"
 limited="false"><joint joint="hinge" coef="1"/></fixed><fixed name="cable" actuatorfrcrange="-2 3"><joint joint="hinge"
 coef="1"/></fixed></tendon><actuator>{}</actuator></mujoco>"""
PI = math.pi
RANGES = {
    '<motor joint="hinge" ctrlrange="-3 4"/>': (-3, 4),
    '<motor joint="hinge" ctrlrange="-3 4" ctrllimited="false" forcerange="-1 1"/>': (-3, 4),
    '<motor joint="hinge" gear="7"/>': (-1, 1),
    '<motor joint="hinge" forcerange="-3 4" gear="7"/>': (-3, 4),
    '<general joint="hinge" forcerange="-3 4" gainprm="-2" biastype="affine" biasprm="1 0 -3"/>': (-1.5, 2),
    '<motor joint="free_hinge" gear="-3"/>': (-3, 2),
    '<motor tendon="cable" gear="-3"/>': (-2, 3),
    '<velocity joint="slide" kv="2" forcerange="-3 4"/>': (-1.5, 2),
    '<position joint="hinge" kp="5" gear="-2" forcerange="-1 1"/>': (-4, 2),
    '<position joint="free_hinge" kp="5" gear="2"/>': (-2 * PI, 2 * PI),
    '<position joint="ball" kp="5" gear="0 3 4"/>': (-5 * PI, 5 * PI),
    '<position tendon="strap" kp="5" gear="2" timeconst=".1"/>': (0, 8),
    '<general joint="hinge" gainprm="2" biastype="affine" biasprm="1 -4 0"/>': (-2.5, 3.5),
    '<general joint="hinge" dyntype="filter" actrange="-1 3" forcerange="-9 9"/>': (-1, 3),
    '<intvelocity joint="hinge" kp="5" actrange="-1 2"/>': (-3, 3),
    '<muscle joint="hinge" lengthrange="-1 1"/>': (0, 1),
    '<general joint="hinge" gainprm="0"/>': (-1, 1),
}


@pytest.mark.parametrize(("actuator", "expected"), RANGES.items(), ids=RANGES)
def test_a_control_without_ctrlrange_takes_a_range_from_what_it_does(actuator, expected):
    model = mujoco.MjModel.from_xml_string(MODEL.format(actuator))
    np.testing.assert_allclose(control_ranges(mujoco, model), [expected])


@pytest.mark.parametrize(
    "option", ['<option actuatorgroupdisable="3"/>', '<option><flag actuation="disable"/></option>']
)
def test_a_control_that_is_switched_off_needs_no_range(option):
    mjcf = MODEL.format('<motor joint="hinge" group="3"/>').replace("<worldbody>", f"{option}<worldbody>")
    assert control_ranges(mujoco, mujoco.MjModel.from_xml_string(mjcf)) == ((-1.0, 1.0),)


UNBOUNDED = {
    '<motor joint="hinge" ctrlrange="0 inf"/>': "ctrlrange='LOW HIGH' or forcerange",
    '<velocity joint="hinge" kv="2"/>': "ctrlrange='LOW HIGH' or forcerange",
    '<position joint="slide" kp="5" forcerange="-1 1"/>': "ctrlrange='LOW HIGH', or its joint or tendon a range",
    '<general joint="hinge" dyntype="integrator"/>': "ctrlrange='LOW HIGH' or actrange",
    '<general joint="hinge" gaintype="affine" forcerange="-1 1"/>': "ctrlrange='LOW HIGH'",
    '<dcmotor joint="hinge" motorconst="1" resistance="2"/>': "ctrlrange='LOW HIGH'",
    '<pid joint="hinge" kp="1"/>': "velrange='LOW HIGH'",
}


@pytest.mark.parametrize(("actuator", "remedy"), UNBOUNDED.items(), ids=UNBOUNDED)
def test_a_control_that_nothing_bounds_is_refused_with_the_attribute_that_it_lacks(actuator, remedy):
    model = mujoco.MjModel.from_xml_string(MODEL.format(actuator))
    refusals = list(unbounded_controls(mujoco, model))
    assert re.match(f"nothing bounds the control of .*; give it {remedy}", refusals[0].sentence)


# A servo with two setpoints and a feedforward, and servos of a rotation by rotation vector and by quaternion.
SEVERAL = (
    '<pid name="servo" joint="hinge" kp="40" kv="2" ki="9" input="pos vel ff" velrange="-2 3" forcerange="-5 5"/>'
    '<orientation name="aim" joint="ball" kp="9"/><orientation name="turn" joint="ball" kp="9" input="quat"/>'
)


BALL = """<mujoco><worldbody><body><joint name="ball" type="ball"/><geom size=".1"/></body></worldbody><actuator>
 <orientation name="aim" joint="ball"/></actuator></mujoco>"""


class Several(Body):
    name = "Several"
    mjcf = MODEL.format(SEVERAL)
    difference_steps = (1e-6, 1e-6, 1e-6)


@pytest.mark.parametrize("backend", ["mjx", "warp"])
def test_backends_that_do_not_cover_several_controls_refuse_them(backend):
    pytest.importorskip("warp" if backend == "warp" else "mujoco.mjx")
    aim = type("Aim", (Body,), {"name": "Aim", "mjcf": BALL})()
    with pytest.raises(InputError, match=r"task Aim: .*actuator 'aim'"):
        load(BACKENDS[backend]).check_covers(aim)


def test_an_actuator_of_several_controls_has_an_action_for_each():
    task = Several()
    names = (
        *("servo_pos", "servo_vel", "servo_ff", "aim_x", "aim_y", "aim_z"),
        *("turn_w", "turn_x", "turn_y", "turn_z"),
    )
    assert task.action_names == names == control_names(mujoco, task.simulation.model)
    np.testing.assert_allclose(task.action_low, (-1, -2, -5, *3 * [-PI], *4 * [-1]))
    np.testing.assert_allclose(task.action_high, (2, 3, 5, *3 * [PI], *4 * [1]))
    assert task.state_names[-1] == "servo_activation"

    generator = torch.Generator().manual_seed(0)
    state = task.reset(4, generator)
    action = torch.rand(4, 10, generator=generator, dtype=torch.float64) - 0.5
    data = mujoco.MjData(model := mujoco.MjModel.from_xml_string(task.mjcf))
    moved = physics_of(task).step(state, action)
    for row, control, found in zip(state, task.scale_action(action), moved, strict=True):
        mujoco.mj_resetData(model, data)
        task.simulation.put(data, row.numpy())
        data.ctrl[:] = control
        for _ in range(task.frame_skip):
            mujoco.mj_step(model, data)
        np.testing.assert_allclose(found, np.concatenate([data.qpos, data.qvel, data.act]), rtol=0, atol=1e-12)
    by_action = jacobian(physics_of(task).step, state, action)[:, :, state.shape[1] :]
    assert by_action.abs().amax((0, 1)).min() > 1e-4, "every control acts"
