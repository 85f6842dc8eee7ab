"""CartPole against gymnasium's own code with a continuous force, closed forms and finite differences."""

import gymnasium
import numpy as np
import pytest
import torch

from mage_diffsim.envs import make_physics, make_task

F64 = torch.float64


def states_and_actions(n=32):
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 4, generator=g, dtype=F64) - 0.5, torch.rand(n, 1, generator=g, dtype=F64) * 2 - 1


@pytest.mark.parametrize("seed", range(10))
def test_matches_gymnasium_with_a_continuous_force_until_it_terminates(seed):
    task = make_task("CartPole")
    physics = make_physics(task, dtype=F64)
    env = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    for t in range(500):
        # Pushing against the fall keeps most episodes going; the noise makes all of them end somewhere.
        a = float(np.clip(3.0 * env.state[2] + env.state[3] + rng.normal(scale=0.6), -1, 1))
        env.force_mag = 10.0 * abs(a)
        # From gymnasium's own state at each step: the unstable pole amplifies rounding 1e10-fold in an episode.
        state = torch.tensor(env.state, dtype=F64)[None]
        gym_obs, gym_reward, gym_terminated, _, _ = env.step(int(a > 0))
        action, obs = torch.tensor([[a]], dtype=F64), task.observe(state)
        next_state = physics.step(state, action)
        next_obs = task.observe(next_state)
        np.testing.assert_allclose(next_state[0].numpy(), env.state, rtol=1e-12, atol=1e-12, err_msg=f"step {t}")
        np.testing.assert_allclose(next_obs[0].numpy(), gym_obs, rtol=1e-5, atol=1e-6)
        assert task.terminated(next_obs).item() == gym_terminated
        assert task.reward(obs, action, next_obs).item() == gym_reward == 1.0
        if gym_terminated:
            break


def test_a_constant_force_ends_the_episode_in_the_step_gymnasium_ends_it():
    task = make_task("CartPole")
    physics = make_physics(task, dtype=F64)
    for direction in (0, 1):
        env = gymnasium.make("CartPole-v1").unwrapped
        env.reset(seed=3)
        state = torch.tensor(env.state, dtype=F64)[None]
        ended = False
        while not ended:
            ended = env.step(direction)[2]
            state = physics.step(state, torch.full((1, 1), 2.0 * direction - 1.0, dtype=F64))
            assert task.terminated(task.observe(state)).item() == ended


@pytest.mark.parametrize("i, limit", [(0, 2.4), (2, 12 * np.pi / 180)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_terminates_just_beyond_the_limits(i, limit, sign):
    obs = torch.zeros(2, 4, dtype=F64)
    obs[:, i] = torch.tensor([limit, limit * (1 + 1e-9)], dtype=F64) * sign
    assert make_task("CartPole").terminated(obs).tolist() == [False, True]


def test_the_action_jacobian_has_its_closed_form():
    task = make_task("CartPole")
    physics = make_physics(task, dtype=F64)
    state, action = states_and_actions()
    leaf = action.clone().requires_grad_()
    y = physics.step(state, leaf)
    got = torch.stack([torch.autograd.grad(y[:, j].sum(), leaf, retain_graph=True)[0][:, 0] for j in range(4)], -1)
    cos = state[:, 2].cos()
    inertia = 0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1)
    pole = -cos / 1.1 / inertia
    cart = 1.0 / 1.1 - 0.05 * pole * cos / 1.1
    zero = torch.zeros_like(cos)
    torch.testing.assert_close(got, 0.02 * 10.0 * torch.stack([zero, cart, zero, pole], -1), rtol=1e-12, atol=1e-15)


def test_gradients_match_finite_differences():
    state, action = (x.requires_grad_() for x in states_and_actions(8))
    assert torch.autograd.gradcheck(make_physics(make_task("CartPole"), dtype=F64).step, (state, action))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reward_is_one_with_a_zero_gradient(dtype):
    obs = torch.randn(5, 3, 4, dtype=dtype, requires_grad=True)
    action = torch.randn(5, 3, 1, dtype=dtype, requires_grad=True)
    next_obs = torch.randn(5, 3, 4, dtype=dtype, requires_grad=True)
    reward = make_task("CartPole").reward(obs, action, next_obs)
    assert reward.dtype == dtype and torch.equal(reward, torch.ones(5, 3, dtype=dtype))
    for gradient in torch.autograd.grad(reward.sum(), (obs, action, next_obs)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_reward_stays_one_for_an_observation_that_is_not_finite():
    obs = torch.tensor([[np.inf, 0, 0, 0], [np.nan, 0, 0, 0]])
    assert make_task("CartPole").reward(obs, torch.zeros(2, 1), obs).tolist() == [1.0, 1.0]


def test_resets_fill_the_box():
    state = make_task("CartPole").reset(2000, torch.Generator().manual_seed(0))
    assert state.abs().amax() <= 0.05 and (state.abs().amax(0) > 0.049).all()
