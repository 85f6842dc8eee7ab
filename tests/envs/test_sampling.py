"""States that rollouts reach, and the actions that lead there."""

from __future__ import annotations

import pytest
import torch

from mage_diffsim.envs import make_physics
from mage_diffsim.envs.sampling import INSIDE, WAYS, action_sequences, actions_inside, explore, sample_states
from mage_diffsim.envs.tasks.cartpole import CartPole
from mage_diffsim.envs.tasks.pendulum import Pendulum


def stream():
    return torch.Generator().manual_seed(0)


def test_exploration_reaches_bounds_ends_and_new_starts():
    physics = make_physics(CartPole(), dtype=torch.float64)
    seen, again, other = (explore(physics, 10, 300, seed) for seed in (0, 0, 1))
    assert torch.equal(seen.states, again.states) and not torch.equal(seen.states, other.states)
    assert seen.states.shape == (3010, 4) and seen.ended > 10 and seen.diverged == 0


def test_each_way_of_acting_is_what_it_is_called():
    acts = {way: action_sequences((way, way), 400, 3, stream()) for way in WAYS}
    for way, actions in acts.items():
        assert actions.shape == (400, 2, 3) and actions.abs().max() <= 1.0, way
    assert acts["uniform"].std() == pytest.approx(3**-0.5, rel=0.1)
    bang = acts["bang-bang"]
    assert bool((bang.abs() == 1.0).all()) and 5.0 < 400 / (bang[1:] != bang[:-1]).double().sum(0).mean() < 20.0
    assert bool((acts["constant"] == acts["constant"][0]).all())
    assert bool((acts["constant"][0, 0].abs() == 1.0).all() and (acts["constant"][0, 1].abs() < 1.0).all())
    turns = acts["sinusoidal"]
    curvature = (turns[2:] + turns[:-2]) / turns[1:-1]  # 2 cos of the angle between steps
    torch.testing.assert_close(curvature.median(0).values, curvature[7], rtol=1e-6, atol=1e-6)
    assert acts["small"].abs().max() <= 0.1


def test_environments_act_in_their_own_way():
    mixed = action_sequences(("small", "bang-bang", "small"), 20, 2, stream())
    assert mixed[:, 1].abs().min() == 1.0 and mixed[:, (0, 2)].abs().max() <= 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sampled_states_are_reached_repeatable_and_follow_their_policy(dtype):
    physics = make_physics(Pendulum(), "torch", dtype=dtype)

    def push(obs):
        return torch.full((len(obs), 1), 2.0, requires_grad=True)

    found, again, other = (
        sample_states(physics, 9, seed=seed, ways=("uniform", "constant"), steps=30, policy=push) for seed in (0, 0, 1)
    )
    assert found.ways == ("uniform", "constant", "policy") * 3
    assert torch.equal(found.state, again.state) and not torch.equal(found.state, other.state)
    assert found.state.dtype == found.action.dtype == dtype and len(found.state.unique(dim=0)) == 9
    assert found.action.abs().max() <= INSIDE + 1e-6 and not found.action.requires_grad
    torch.testing.assert_close(found.action[2::3], torch.full((3, 1), INSIDE, dtype=dtype))


def test_states_are_taken_at_every_time_of_the_rollout():
    class Clock(Pendulum):
        horizon = 50

        def step(self, state, action):
            return state + 1.0 + 0.0 * action

        def reset(self, n, generator):
            return torch.zeros(n, 2, dtype=torch.float64)

    physics = make_physics(Clock(), "torch", dtype=torch.float64)
    times = sample_states(physics, 200, steps=10).state[:, 0]
    assert set(times.tolist()) == set(range(1, 10))
    assert sample_states(physics, 200).state[:, 0].max() < 50  # no longer than an episode


def test_actions_for_derivatives_are_inside_the_bounds():
    actions = actions_inside(1000, 2, stream())
    assert actions.abs().max() <= INSIDE and actions.abs().max() > 0.95 and actions.mean().abs() < 0.1
