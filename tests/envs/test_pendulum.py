"""Pendulum against gymnasium's own code, closed forms and finite differences."""

import gymnasium
import numpy as np
import pytest
import torch

from mage_diffsim.envs import make_physics, make_task
from mage_diffsim.errors import InputError

F64 = torch.float64


def states_and_actions(n=64):
    g = torch.Generator().manual_seed(0)
    state = torch.rand(n, 2, generator=g, dtype=F64) * torch.tensor([20.0, 16.0], dtype=F64) - torch.tensor([10.0, 8.0])
    return state, torch.rand(n, 1, generator=g, dtype=F64) * 2 - 1


def jacobian(f, x):
    """d f / d x of every row of a batch."""
    return torch.stack([torch.autograd.functional.jacobian(lambda r: f(r[None])[0], row) for row in x])


@pytest.mark.parametrize("seed", range(5))
def test_matches_gymnasium_step_by_step(seed):
    task = make_task("Pendulum")
    physics = make_physics(task, dtype=F64)
    env = gymnasium.make("Pendulum-v1").unwrapped
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    state = torch.tensor(env.state, dtype=F64)[None]
    for t in range(200):
        a = rng.uniform(-1.2, 1.2)  # also beyond the bounds, where both clip
        action = torch.tensor([[a]], dtype=F64)
        obs = task.observe(state)
        state = physics.step(state, action)
        gym_obs, gym_reward, terminated, _, _ = env.step(np.array([2.0 * a]))
        np.testing.assert_allclose(state[0].numpy(), env.state, atol=1e-6, err_msg=f"step {t}")
        np.testing.assert_allclose(task.observe(state)[0].numpy(), gym_obs, atol=1e-6)
        np.testing.assert_allclose(task.reward(obs, action, task.observe(state)).item(), gym_reward, atol=1e-6)
        assert not terminated and not task.terminated(task.observe(state)).any()


def test_clip_orders_differ_only_in_the_velocity_that_moves_the_angle():
    state, action = torch.tensor([[0.3, 7.9]], dtype=F64), torch.tensor([[1.0]], dtype=F64)
    unclipped = 7.9 + (15.0 * np.sin(0.3) + 3.0 * 2.0) * 0.05
    assert unclipped > 8.0
    v1 = make_physics(make_task("Pendulum"), dtype=F64).step(state, action)[0]
    v0 = make_physics(make_task("Pendulum", clip_order="v0"), dtype=F64).step(state, action)[0]
    np.testing.assert_allclose(v1, [0.3 + 8.0 * 0.05, 8.0], rtol=1e-15)
    np.testing.assert_allclose(v0, [0.3 + unclipped * 0.05, 8.0], rtol=1e-15)


def test_clip_orders_agree_below_the_speed_limit():
    state, action = states_and_actions()
    state[:, 1] *= 0.5
    a, b = (make_physics(make_task("Pendulum", clip_order=c), dtype=F64).step(state, action) for c in ("v0", "v1"))
    assert torch.equal(a, b)


def test_unknown_clip_order_lists_the_known_ones():
    with pytest.raises(InputError, match=r"clip_order .* 'v2': choose one of v0, v1"):
        make_task("Pendulum", clip_order="v2")


def test_jacobians_have_their_closed_form():
    state, action = states_and_actions()
    state[:, 1] *= 0.5  # away from the clip
    physics = make_physics(make_task("Pendulum"), dtype=F64)
    dt, n = 0.05, len(state)
    by_action = jacobian(lambda sa: physics.step(sa[:, :2], sa[:, 2:]), torch.cat([state, action], -1))
    swing = 15.0 * state[:, 0].cos() * dt
    one = torch.ones(n, dtype=F64)
    expected = torch.stack(
        [
            torch.stack([1.0 + swing * dt, one * dt, one * 3.0 * 2.0 * dt * dt], -1),
            torch.stack([swing, one, one * 3.0 * 2.0 * dt], -1),
        ],
        1,
    )
    torch.testing.assert_close(by_action, expected, rtol=1e-12, atol=1e-14)


def test_a_clipped_velocity_has_no_gradient_but_v0_still_moves_the_angle():
    state, action = torch.tensor([[0.3, 7.9]], dtype=F64), torch.tensor([[0.9]], dtype=F64)
    for clip_order, expected in (("v1", [0.0, 0.0]), ("v0", [3.0 * 2.0 * 0.05 * 0.05, 0.0])):
        physics = make_physics(make_task("Pendulum", clip_order=clip_order), dtype=F64)
        got = jacobian(lambda a, p=physics: p.step(state, a), action)[0, :, 0]
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_gradients_match_finite_differences():
    task = make_task("Pendulum")
    state, action = (x.requires_grad_() for x in states_and_actions(16))
    assert torch.autograd.gradcheck(make_physics(task, dtype=F64).step, (state, action))
    obs = task.observe(state.detach()).requires_grad_()
    assert torch.autograd.gradcheck(task.observe, (state,))
    assert torch.autograd.gradcheck(lambda o, a: task.reward(o, a, o), (obs, action))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-300, 1e-30, 1e-19])
def test_the_reward_of_an_observation_without_an_angle_has_finite_gradients(dtype, size):
    task = make_task("Pendulum")
    obs = torch.tensor([[size, size, 1.0], [-size, size, 1.0], [size, -size, 1.0]], dtype=dtype, requires_grad=True)
    action = torch.zeros(3, 1, dtype=dtype, requires_grad=True)
    reward = task.reward(obs, action, obs)
    gradients = torch.autograd.grad(reward.sum(), (obs, action), create_graph=True)
    assert reward.isfinite().all() and all(g.isfinite().all() for g in gradients)
    if size == 0.0:
        assert (gradients[0][:, :2] == 0).all()
        assert torch.autograd.grad(gradients[0].sum(), obs)[0].isfinite().all()


def test_the_reward_is_of_the_current_observation_and_the_clipped_torque():
    task = make_task("Pendulum")
    state, action = states_and_actions(8)
    obs, other = task.observe(state), task.observe(state.flip(0))
    assert torch.equal(task.reward(obs, action, other), task.reward(obs, action, obs))
    assert torch.equal(task.reward(obs, action + 5.0, obs), task.reward(obs, torch.ones_like(action), obs))
    angle = torch.remainder(state[:, 0] + np.pi, 2 * np.pi) - np.pi
    expected = -(angle**2 + 0.1 * state[:, 1] ** 2 + 0.001 * (2.0 * action[:, 0]) ** 2)
    torch.testing.assert_close(task.reward(obs, action, obs), expected)


def test_resets_fill_the_box():
    state = make_task("Pendulum").reset(2000, torch.Generator().manual_seed(0))
    assert state.dtype == F64 and state.shape == (2000, 2)
    low, high = state.amin(0), state.amax(0)
    np.testing.assert_allclose(high, [np.pi, 1.0], rtol=0.01)
    np.testing.assert_allclose(low, [-np.pi, -1.0], rtol=0.01)


def test_the_angle_is_not_wrapped_in_the_state():
    physics = make_physics(make_task("Pendulum"), dtype=F64)
    state = torch.tensor([[np.pi - 0.01, 7.0]], dtype=F64)
    assert physics.step(state, torch.zeros(1, 1, dtype=F64))[0, 0] > np.pi
