"""Activations of actuators and poses of mocap bodies as parts of a MuJoCo task's state."""

import mujoco
import numpy as np
import pytest
import torch

from mage_diffsim.envs import BodyPosition, SitePosition
from mage_diffsim.envs.contract import _rounding
from mage_diffsim.envs.differences import jacobian_error, true_jacobians
from mage_diffsim.envs.mujoco.convergence import solver_gap
from mage_diffsim.envs.sampling import explore, sample_states
from mage_diffsim.errors import InputError
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


class Rigid(Body):
    name = "Rigid"
    mjcf = """<mujoco><worldbody><body><joint name="j"/><geom size=".1"/></body></worldbody><actuator><motor joint="j"
     ctrlrange="-1 1"/></actuator></mujoco>"""


# Every kind of activation, bounded and early ones among them, each on a joint of its own.
KINDS = (
    '<general name="plain" gainprm="2" ctrlrange="-1 1" joint="j0"/>',
    '<general name="bounded" dyntype="integrator" gainprm="2" actrange="-.02 .02" joint="j1"/>',
    '<general name="early" dyntype="integrator" gainprm="2" actearly="true" ctrlrange="-1 1" joint="j2"/>',
    '<general name="filter" dyntype="filter" dynprm=".03" gaintype="affine" gainprm="2 1 .1" biastype="affine"'
    ' biasprm=".1 -1 -.1" actrange="-.4 .2" joint="j3"/>',
    '<general name="exact" dyntype="filterexact" dynprm=".03" gainprm="2" actearly="true" ctrlrange="-1 1"'
    ' joint="j4"/>',
    '<position name="servo" kp="4" kv=".2" timeconst=".05" joint="j5"/>',
    '<muscle name="muscle" lengthrange="-2 2" force="20" tausmooth=".3" joint="j6"/>',
    '<cylinder name="cylinder" timeconst=".1" area="2" bias="0 -1 -.1" forcerange="-3 3" joint="j7"/>',
    '<damper name="damper" kv="2" ctrlrange="0 1" joint="j8"/>',
    '<intvelocity name="creeping" kp="4" actrange="-1 1" joint="j9"/>',
    '<dcmotor name="coil" motorconst=".5" resistance="2" inductance=".004" ctrlrange="-6 6" joint="j10"/>',
    '<pid name="pid" kp="4" kv=".2" ki="3" input="pos" slewmax="5" joint="j11"/>',
)
ROW = "".join(
    f'<body pos="{i} 0 1"><joint name="j{i}" axis="0 1 0" damping=".05" range="-2 2"/><geom type="capsule" size=".05"'
    ' fromto="0 0 0 .2 0 -.3"/></body>'
    for i in range(len(KINDS))
)


class Kinds(Body):
    name = "Kinds"
    mjcf = f"<mujoco><worldbody>{ROW}</worldbody><actuator>{''.join(KINDS)}</actuator></mujoco>"
    frame_skip = 2


def kinds(integrator):
    option = f'<mujoco><option timestep="0.005" integrator="{integrator}"/>'
    return type("Kinds", (Kinds,), {"mjcf": Kinds.mjcf.replace("<mujoco>", option)})()


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


class Named(Arm):
    readouts = {"hand": BodyPosition("hand"), "palm": SitePosition("grip")}  # noqa: RUF012


def test_a_readout_may_have_the_name_of_a_mocap_body():
    task = Named()
    pose = ("x_2", "y_2", "z_2", "qw", "qx", "qy", "qz")
    hand, palm = ([f"{body}_{x}" for x in pose] for body in ("hand", "palm"))
    read = [f"{name}_{x}" for name in ("hand", "palm") for x in ("x", "y", "z")]
    assert list(task.state_names[7:]) == hand + palm + read
    state = task.reset(2, torch.Generator().manual_seed(0))
    assert torch.equal(task.readout(state, "hand"), task.mocap(state)[:, :3])


def test_a_start_of_another_shape_is_refused():
    task = Arm()
    given = {name: torch.zeros(2, n) for name, n in (("qpos", 2), ("qvel", 2), ("act", 3), ("mocap", 14))}
    task.state_at(**given)
    for name, x in given.items():
        width = x.shape[1]
        with pytest.raises(InputError, match=rf"given {name} of shape \(2, 1\); accepted is \(n, {width}\)"):
            task.state_at(**given | {name: x[:, :1]})


def test_a_step_of_no_environment_is_one():
    task = Arm()
    state, action = torch.zeros(0, task.state_dim, dtype=torch.float64), torch.zeros(0, 4, dtype=torch.float64)
    assert physics_of(task).step(state, action).shape == (0, task.state_dim)
    assert physics_of(task).step(state.requires_grad_(), action).shape == (0, task.state_dim)


def test_the_rounding_of_differences_by_activations_counts_where_there_are_some():
    fine = {"difference_steps": (1e-5, 1e-5, 1e-8)}
    with_act = _rounding(physics_of(type("Arm", (Arm,), fine)()))
    without = _rounding(physics_of(type("Rigid", (Rigid,), fine)()))
    assert with_act["state"] == pytest.approx(1e3 * without["state"])


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


@pytest.mark.parametrize("integrator", ["Euler", "RK4", "implicitfast", "implicit"])
def test_an_episode_with_every_kind_of_activation_is_one_run_of_mujoco(integrator):
    """All that a step leaves to the next one is in the state."""
    task = kinds(integrator)
    physics, generator = physics_of(task), torch.Generator().manual_seed(0)
    state = task.reset(2, generator)
    model = mujoco.MjModel.from_xml_string(task.mjcf)
    runs = [mujoco.MjData(model) for _ in state]
    for data, row in zip(runs, state.numpy(), strict=True):
        task.simulation.put(data, row)
    for _ in range(10):
        action = 2.0 * torch.rand(2, task.action_dim, dtype=torch.float64, generator=generator) - 1.0
        before, state = state, physics.step(state, action)
        for data, control in zip(runs, task.scale_action(action).numpy(), strict=True):
            data.ctrl[:] = control
            for _ in range(task.frame_skip):
                data.qacc_warmstart[:] = 0.0
                mujoco.mj_step(model, data)
    ends = [np.concatenate([data.qpos, data.qvel, data.act]) for data in runs]
    np.testing.assert_allclose(state, np.stack(ends), rtol=0.0, atol=1e-12)

    inside, width = 0.99 * action, task.state_dim
    x, blocks = torch.cat([before, inside], 1), {"all": range(width + task.action_dim)}
    true = true_jacobians(lambda x: physics.step(x[:, :width], x[:, width:]), x, blocks)["all"]
    assert true.clean.all()
    ours = torch.cat(tuple(jacobians(physics, before, inside).values()), 2)
    assert jacobian_error(ours, true.jacobian).max() <= 1e-8
    acts = ours[:, :, task.simulation.nq + task.simulation.nv :].abs().amax((0, 1))
    assert acts.min() > 1e-4, "every activation and every action acts"


def test_how_far_a_models_own_solver_settings_are_off_is_measured_with_activations_and_mocap_poses():
    mjcf = ARM.replace("<option ", '<option iterations="1" ')
    loose, tight = (type("Arm", (Arm,), {"mjcf": x})().simulation for x in (mjcf, ARM))
    assert solver_gap(loose) > 1e-8
    assert solver_gap(tight) < 1e-8


def test_states_that_rollouts_reach_have_activations_and_their_environments_mocap_poses():
    task = kinds("Euler")
    assert sample_states(physics_of(task), 8, steps=20).state[:, -11:].abs().amax(0).min() > 1e-3
    explored = explore(physics_of(Arm()), 4, 10, 0).states
    pose = Arm().mocap(Arm().reset(1, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(Arm().mocap(explored), pose.expand(len(explored), -1))
