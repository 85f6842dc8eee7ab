"""Divergence is judged where MuJoCo C judges it, in every backend of MuJoCo models."""

import mujoco
import pytest
import torch

from mage_diffsim.envs import make_physics
from mage_diffsim.envs.batched import advance
from tests.envs.mujoco_tasks import physics_of, slider
from tests.marks import slow_but

UNSTABLE = """
<mujoco><option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body><joint name="x" type="slide" axis="1 0 0" damping="{}"/><geom size=".1" mass="1"/></body>
    <body pos="0 2 0"><joint name="y" type="slide" axis="1 0 0"/><geom size=".1" mass="1"/></body>
  </worldbody>
  <actuator><motor joint="x" gear="{}" ctrlrange="-1 1"/></actuator></mujoco>"""


def warned(task, state, action):
    """Whether MuJoCo C, with its automatic reset, warns of an unstable state in the step or at the start of the next"""
    model = mujoco.MjModel.from_xml_string(task.mjcf)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = state[:2], state[2:], action
    mujoco.mj_step(model, data, task.frame_skip)
    mujoco.mj_step1(model, data)
    return any(w.number for w in data.warning)


@pytest.mark.parametrize("backend", slow_but(["mujoco", "warp"], ["mujoco", "mjx", "warp"]))
@pytest.mark.parametrize(
    "damping, gear", slow_but([("-95", "1"), ("0", "2e10")], [("-95", "1"), ("0", "1"), ("0", "2e10"), ("1e6", "2e10")])
)
def test_a_state_that_mujoco_c_would_reset_is_not_finite(backend, damping, gear):
    pytest.importorskip({"mjx": "mujoco.mjx"}.get(backend, backend))
    task = slider(mjcf=UNSTABLE.format(damping, gear), readouts={})
    state = torch.zeros(8, 4, dtype=torch.float64)
    state[:, 0] = torch.tensor([0.0, 1.0, 0.0, 1.1e10, 0.9e10, 0.0, 0.0, 0.0])
    state[:, 2] = torch.tensor([0.0, 1.0, 1e6, 0.0, 0.0, -1.1e10, 1e11, 0.9e10])
    action = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)[:, None]
    expected = [not warned(task, s, a) for s, a in zip(state.numpy(), action.numpy(), strict=True)]
    assert True in expected
    assert False in expected
    physics = make_physics(task, backend, dtype=torch.float64)
    moved = physics.step(state, action.requires_grad_())
    assert moved.isfinite().all(1).tolist() == expected
    (gradient,) = torch.autograd.grad(moved[:, 2].sum(), action)
    assert gradient.isfinite().all(1).tolist() == expected


def test_a_diverged_environment_is_counted():
    task = slider(mjcf=UNSTABLE.format("-95", "1"), readouts={})
    state = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 9e9, 0.0]]).double()
    moved = advance(physics_of(task), state, task.observe(state), torch.zeros(2, 1).double())
    assert moved.diverged.tolist() == [False, True]


LIGHT = """
<mujoco><option timestep="{0}" gravity="0 0 0" integrator="{1}"/><worldbody><body><joint name="x" type="slide"
 axis="1 0 0" stiffness="{2}" damping="{3}"/><geom size=".1" mass="{4}"/></body></worldbody><actuator><motor joint="x"
 ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.mark.parametrize("backend", slow_but(["mujoco", "warp"], ["mujoco", "mjx", "warp"]))
@pytest.mark.parametrize(
    "model, frame_skip, state",
    [
        (("1e-4", "Euler", "1", "100", "1e-11"), 2, (1.0, 0.0)),  # only the first acceleration is beyond
        (("1e-3", "RK4", "1e9", "0", "1"), 1, (1.0, 0.0)),  # only later stages' are
        (("1e-3", "RK4", "1e11", "0", "1"), 1, (1.0, 0.0)),
        (("1e-3", "Euler", "0", "0", "1"), 1, (1e10 - 1e3, 9e9)),  # the end is
    ],
)
def test_divergence_is_judged_where_mujoco_c_judges_it(backend, model, frame_skip, state):
    pytest.importorskip({"mjx": "mujoco.mjx"}.get(backend, backend))
    mjcf = LIGHT.format(*model)
    data = mujoco.MjData(c := mujoco.MjModel.from_xml_string(mjcf))
    data.qpos[:], data.qvel[:] = state
    for _ in range(frame_skip):
        mujoco.mj_step(c, data)
    mujoco.mj_checkPos(c, data)
    sound = not any(w.number for w in data.warning)
    physics = make_physics(slider(mjcf=mjcf, readouts={}, frame_skip=frame_skip), backend, dtype=torch.float64)
    moved = physics.step(torch.tensor([state]).double(), torch.zeros(1, 1).double())
    assert bool(moved.isfinite().all()) == sound
