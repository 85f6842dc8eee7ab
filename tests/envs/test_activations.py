"""Activations of actuators and poses of mocap bodies as parts of a MuJoCo task's state."""

import mujoco
import numpy as np
import torch

from tests.envs.mujoco_tasks import jacobians, physics_of
from tests.envs.small_models import Body

# A muscle, a filter and an integrator on an arm; a mocap hand that holds it by a spring, and one that it touches.
ARM = """<mujoco><option timestep="0.01"/><worldbody><body name="hand" mocap="true" pos="0 .1 .4" quat="1 0 0 1">
 <site name="grip" pos=".1 0 0"/></body><body name="palm" mocap="true" pos=".6 0 -.3"><geom size=".15"/></body><body
 name="arm"><joint name="shoulder" axis="0 1 0" damping=".1"/><geom type="capsule" size=".04" fromto="0 0 0 .5 0 0"/>
 <site name="end" pos=".5 0 0"/><body name="fore" pos=".5 0 0"><joint name="elbow" axis="0 1 0" damping=".1"/><geom
 type="capsule" size=".03" fromto="0 0 0 .3 0 0"/></body></body></worldbody><tendon><spatial name="band" stiffness="20"
 springlength=".1"><site site="grip"/><site site="end"/></spatial></tendon><actuator><muscle name="flexor"
 joint="shoulder" ctrlrange="0 1" lengthrange="-2 2" force="40"/><general name="lagging" joint="elbow" dyntype="filter"
 dynprm=".05" gainprm="3" ctrlrange="-1 1"/><motor name="direct" joint="elbow" ctrlrange="-1 1"/><intvelocity
 name="creeping" joint="shoulder" kp="9" actrange="-.5 .5" ctrlrange="-1 1"/></actuator></mujoco>"""


class Arm(Body):
    name = "Arm"
    mjcf = ARM


def states(task, n):
    """States with activations and mocap poses that differ by row, and actions."""
    generator = torch.Generator().manual_seed(0)
    given = task.reset(n, generator)

    def noise(x):
        return 0.2 * torch.randn(x.shape, dtype=torch.float64, generator=generator)

    act, mocap = (f(given) + noise(f(given)) for f in (task.act, task.mocap))
    action = 2.0 * torch.rand(n, task.action_dim, dtype=torch.float64, generator=generator) - 1.0
    return task.state_at(task.qpos(given), task.qvel(given), act.clamp(0.1, 0.4), mocap), action


def test_activations_and_mocap_poses_follow_positions_and_velocities_in_the_state():
    task = Arm()
    poses = tuple(f"{body}_{x}" for body in ("hand", "palm") for x in ("x", "y", "z", "qw", "qx", "qy", "qz"))
    assert task.state_names == (
        *("shoulder", "elbow", "shoulder_velocity", "elbow_velocity"),
        *("flexor_activation", "lagging_activation", "creeping_activation"),
        *poses,
    )
    s = task.simulation
    assert (s.na, s.nmocap, s.moving) == (3, 2, len(task.state_names))
    assert s.quaternions == (10, 17)
    start = task.reset(2, torch.Generator().manual_seed(0))
    assert task.act(start).tolist() == 2 * [[0.0, 0.0, 0.0]]
    half = 0.5**0.5
    np.testing.assert_allclose(
        task.mocap(start), 2 * [[0.0, 0.1, 0.4, half, 0.0, 0.0, half, 0.6, 0.0, -0.3, 1.0, 0.0, 0.0, 0.0]]
    )


def test_steps_with_activations_and_mocap_poses_are_mujocos():
    task = Arm()
    state, action = states(task, 6)
    data = mujoco.MjData(model := mujoco.MjModel.from_xml_string(ARM))
    model.opt.tolerance = 0.0
    rows = []
    for row, control in zip(state.numpy(), task.scale_action(action).numpy(), strict=True):
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:], data.act[:], data.ctrl[:] = row[:2], row[2:4], row[4:7], control
        for i, pose in enumerate((row[7:14], row[14:])):
            data.mocap_pos[i], data.mocap_quat[i] = pose[:3], pose[3:]
        for _ in range(task.frame_skip):
            mujoco.mj_step(model, data)
        rows.append(np.concatenate([data.qpos, data.qvel, data.act, row[7:]]))
    moved = physics_of(task).step(state, action)
    np.testing.assert_allclose(moved, np.stack(rows), rtol=0.0, atol=1e-12)
    assert not torch.equal(task.act(moved), task.act(state))


def test_derivatives_by_activations_and_mocap_poses_are_differences_of_steps():
    task = Arm()
    physics = physics_of(task)
    state, action = states(task, 6)
    by_state = jacobians(physics, state, action)["state"]
    h = 1e-5
    for column in range(4, 21):
        moved = torch.zeros_like(state)
        moved[:, column] = h
        with torch.no_grad():
            difference = (physics.step(state + moved, action) - physics.step(state - moved, action)) / (2.0 * h)
        torch.testing.assert_close(by_state[:, :, column], difference, rtol=1e-4, atol=1e-5 * by_state.abs().max())
    assert by_state[:, :4, 4:7].abs().amax((0, 1)).min() > 1e-3, "every activation acts"
    assert by_state[:, :4, 7:10].abs().amax((0, 1)).min() > 1e-5, "the hand pulls"
    assert torch.equal(by_state[:, 7:10, 7:10], torch.eye(3, dtype=torch.float64).expand(6, 3, 3)), "poses stay"
