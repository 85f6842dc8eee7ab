"""The MuJoCo C backend: steps without memory, derivatives, threads, quaternions and exploding states."""

import threading

import mujoco
import numpy as np
import pytest
import torch

from mage_diffsim.envs import BatchedEnv, MujocoTask, make_physics, make_task
from mage_diffsim.errors import InputError
from tests.envs.mujoco_tasks import TASKS, Slider, jacobians, physics_of, slider


def test_the_step_depends_on_nothing_but_state_and_action():
    """Gymnasium carries the solver's warm start from step to step; here every step starts anew."""
    task = make_task("HalfCheetah")
    physics = physics_of(task)
    generator = torch.Generator().manual_seed(0)
    env = BatchedEnv(task, physics, 16, [generator])
    env.reset()
    for _ in range(30):
        action = torch.rand(16, 6, dtype=torch.float64, generator=generator) * 2 - 1
        moved = env.step(action)
        # after other states were stepped in between, in another order
        again = physics.step(moved.state.flip(0), action.flip(0)).flip(0)
        assert torch.equal(again, moved.next_state)


@pytest.mark.parametrize("name", ["HalfCheetah", "Ant", "Pusher"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_and_rows_changes_nothing(name, threads):
    before = torch.get_num_threads()
    task = make_task(name)
    state = task.reset(1500, torch.Generator().manual_seed(0))  # more than one call into MuJoCo
    action = torch.rand(1500, task.action_dim, dtype=torch.float64) * 2 - 1
    expected = torch.cat(
        [physics_of(task).step(s, a) for s, a in zip(state.split(100), action.split(100), strict=True)]
    )
    try:
        torch.set_num_threads(threads)
        physics = physics_of(task)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(physics.step(state, action), expected)


def test_derivatives_are_those_of_mujocos_own_finite_differences():
    """mjd_transitionFD, for one Euler step: A = d(next dq, next v)/d(dq, v), B = d/d ctrl."""

    class OneStep(MujocoTask):
        name = "OneStep"
        mjcf = "gymnasium:half_cheetah.xml"
        frame_skip = 1
        horizon = 10
        source = "test"
        position_noise = velocity_noise = 0.2

        def observe(self, state):
            return state

        def reward(self, obs, action, next_obs):
            return obs[..., 0]

        def terminated(self, next_obs):
            return next_obs[..., 0] > 1e9

    task = OneStep()
    state = task.reset(4, torch.Generator().manual_seed(0))
    action = torch.rand(4, 6, dtype=torch.float64) - 0.5
    jacobian = jacobians(physics_of(task), state, action)
    model = task.simulation.model
    data = mujoco.MjData(model)
    for i in range(4):
        data.qpos[:], data.qvel[:], data.ctrl[:] = state[i, :9], state[i, 9:], action[i]
        mujoco.mj_forward(model, data)
        a, b = np.zeros((18, 18)), np.zeros((18, 6))
        mujoco.mjd_transitionFD(model, data, 1e-6, True, a, b, None, None)
        np.testing.assert_allclose(jacobian["state"][i], a, rtol=1e-4, atol=1e-5 * np.abs(a).max())
        np.testing.assert_allclose(jacobian["action"][i], b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_forward_differences_are_nearly_central_ones():
    task = make_task("Walker2d")
    state = task.reset(8, torch.Generator().manual_seed(0))
    action = torch.rand(8, 6, dtype=torch.float64) - 0.5
    central, forward = (jacobians(physics_of(task, derivative=d), state, action) for d in ("fd", "fd-forward"))
    assert torch.equal(central["state"], forward["state"])
    scale = central["action"].abs().max()
    assert 0 < (central["action"] - forward["action"]).abs().max() <= 1e-4 * scale


def test_float32_is_float64_rounded():
    task = make_task("Hopper")
    state, action = task.reset(8, torch.Generator().manual_seed(0)).float(), torch.rand(8, 3) - 0.5
    single = make_physics(task, "mujoco", dtype=torch.float32)
    assert torch.equal(single.step(state, action), physics_of(task).step(state.double(), action.double()).float())
    ours = jacobians(single, state, action)["action"]
    assert torch.equal(ours, jacobians(physics_of(task), state.double(), action.double())["action"].float())


def test_an_action_at_its_bound_keeps_its_gradient_and_one_beyond_has_none():
    task = make_task("InvertedPendulum")
    state = task.reset(3, torch.Generator().manual_seed(0))
    action = torch.tensor([[1.0], [-1.0], [1.5]], dtype=torch.float64)
    gradient = jacobians(physics_of(task), state, action)["action"][:, 2, 0]
    assert gradient[0].item() == pytest.approx(gradient[1].item(), rel=1e-2)
    assert gradient[0] > 0.5
    assert gradient[2] == 0.0


def test_quaternions_stay_normalised_and_their_derivatives_tangent():
    task = make_task("Ant")
    physics = physics_of(task)
    generator = torch.Generator().manual_seed(0)
    state = task.reset(8, generator)
    for _ in range(20):
        action = torch.rand(8, 8, dtype=torch.float64, generator=generator) * 2 - 1
        state = physics.step(state, action)
    quaternion = state[:, 3:7]
    torch.testing.assert_close(quaternion.norm(dim=-1), torch.ones(8, dtype=torch.float64))
    by_state = jacobians(physics, state, action)["state"]
    # moving the quaternion along itself changes nothing; the next one moves at right angles to itself
    along = by_state[:, :, 3:7] @ quaternion.unsqueeze(-1)
    next_quaternion = physics.step(state, action)[:, 3:7]
    outward = next_quaternion.unsqueeze(1) @ by_state[:, 3:7]
    scale = by_state.abs().max()
    assert along.abs().max() <= 1e-12 * scale
    assert outward.abs().max() <= 1e-7 * scale


def test_a_quaternion_of_another_length_is_the_same_rotation():
    task = make_task("Ant")
    physics = physics_of(task)
    state, action = task.reset(2, torch.Generator().manual_seed(0)), torch.zeros(2, 8, dtype=torch.float64)
    longer = state.clone()
    longer[:, 3:7] *= 1.7
    torch.testing.assert_close(physics.step(longer, action), physics.step(state, action), atol=1e-12, rtol=0)
    nothing, identity = state.clone(), state.clone()
    nothing[:, 3:7] = 0.0
    identity[:, 3:7] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert torch.equal(physics.step(nothing, action), physics.step(identity, action))


def test_an_unknown_derivative_source_is_refused():
    with pytest.raises(
        InputError, match="unknown derivative source of backend mujoco 'vjp': choose one of fd, fd-forward"
    ):
        physics_of(Slider(), derivative="vjp")


def test_a_control_that_is_not_finite_gives_no_state():
    """MuJoCo itself takes it for no control at all."""
    task = make_task("HalfCheetah")
    action = torch.zeros(3, 6, dtype=torch.float64)
    action[1, 2] = torch.nan
    moved = physics_of(task).step(task.reset(3, torch.Generator().manual_seed(0)), action)
    assert moved.isfinite().all(-1).tolist() == [True, False, True]


def test_two_threads_leave_mujocos_logging_as_it_was():
    task = make_task("InvertedPendulum")
    state, action = task.reset(1, torch.Generator()), torch.zeros(1, 1, dtype=torch.float64)
    config = mujoco.MjLogConfig
    before = config.get().logto_console, config.get().logto_file

    def work():
        physics = physics_of(task)
        for _ in range(300):
            physics.step(state, action)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (config.get().logto_console, config.get().logto_file) == before


@pytest.mark.parametrize("steps", [(1e-6, 1e-6), [1e-6, 1e-6, 1e-6], (1e-6, 1e-6, 0.0)])
def test_bad_difference_steps_are_refused(steps):
    with pytest.raises(InputError, match=r"difference_steps is .*; accepted are three positive numbers"):
        physics_of(slider(difference_steps=steps))


def test_a_state_that_explodes_is_not_finite_and_leaves_no_file_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    task = make_task("HalfCheetah")
    state = task.reset(3, torch.Generator().manual_seed(0))
    state[1, 9:18] = 1e200
    moved = physics_of(task).step(state, torch.zeros(3, 6, dtype=torch.float64))
    assert moved.isfinite().all(-1).tolist() == [True, False, True]
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", TASKS)
def test_batched_environments_reset_themselves_and_equal_single_ones(name):
    task = make_task(name)
    physics = physics_of(task)
    env = BatchedEnv(task, physics, 6, [torch.Generator().manual_seed(0)], horizon=20)
    env.reset()
    generator = torch.Generator().manual_seed(1)
    ended = 0
    for _ in range(45):
        action = torch.rand(6, task.action_dim, dtype=torch.float64, generator=generator) * 2 - 1
        moved = env.step(action)
        alone = physics.step(moved.state[2:3], action[2:3])
        assert torch.equal(alone[0], moved.next_state[2])
        assert not moved.diverged.any()
        ended += int((moved.terminated | moved.truncated).sum())
    assert ended >= 12
