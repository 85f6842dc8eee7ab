"""Ensemble, reward model, dynamics and the pieces they stand on."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from mage_diffsim.buffer import ReplayBuffer
from mage_diffsim.dynamics import Dynamics, HybridDynamics, Imagined, LearnedDynamics, OracleDynamics
from mage_diffsim.envs.physics import make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.hyper import Hyper
from mage_diffsim.models import GaussianEnsemble, ModelTraining, RewardModel
from mage_diffsim.normalizer import Normalizer
from mage_diffsim.randomness import Streams
from mage_diffsim.settings import make_config
from mage_diffsim.training import Trainer

CPU = torch.device("cpu")
SMALL = Hyper(
    ensemble_members=4,
    ensemble_hidden=(32, 32),
    reward_hidden=(32,),
    model_batches=40,
    model_batch_size=32,
    model_learning_rate=5e-3,
)


def streams(seeds=(0, 1), dtype=torch.float64) -> Streams:
    return Streams(seeds, CPU, dtype)


def linear_buffer(n: int = 400) -> ReplayBuffer:
    """Transitions of s' = s + (0.2 s_2, a - 0.1 s_1), r = s'_1 + 0.1 a, for two runs."""
    buffer = ReplayBuffer(2, n, 2, 1, 2, CPU, torch.float64)
    for _ in range(n):
        obs, action = torch.randn(2, 2, dtype=torch.float64), 2 * torch.rand(2, 1, dtype=torch.float64) - 1
        next_obs = obs + torch.stack([0.2 * obs[:, 1], action[:, 0] - 0.1 * obs[:, 0]], dim=-1)
        reward = next_obs[:, 0] + 0.1 * action[:, 0]
        buffer.add(obs, action, next_obs, reward, torch.zeros(2, dtype=torch.bool), obs)
    return buffer


def rounds(model, buffer: ReplayBuffer, source: Streams, n: int, hyper: Hyper = SMALL) -> list[torch.Tensor]:
    """The losses of n rounds of training."""
    training = ModelTraining(model, buffer, make_config(steps=1, hyper=dataclasses.asdict(hyper)), source)
    losses = []
    for step in range(n):
        training.round(torch.tensor(step), buffer.size)
        losses.append(training.loss.clone())
    return losses


def adopt(model, buffer: ReplayBuffer) -> None:
    obs, action, delta, reward = (Normalizer(2, d, CPU, torch.float64) for d in (2, 1, 2, 1))
    batch = buffer.gather(torch.arange(buffer.size).expand(2, -1))
    for row in range(buffer.size):
        obs.update(batch.obs[:, row])
        action.update(batch.action[:, row])
        delta.update(batch.next_obs[:, row] - batch.obs[:, row])
        reward.update(batch.reward[:, row : row + 1])
    if isinstance(model, GaussianEnsemble):
        model.adopt_statistics(obs, action, delta)
    else:
        model.adopt_statistics(obs, reward)


def test_ensemble_learns_linear_dynamics_and_their_jacobian():
    buffer, source = linear_buffer(), streams()
    ensemble = GaussianEnsemble(2, 1, SMALL, source)
    adopt(ensemble, buffer)
    losses = rounds(ensemble, buffer, source, 12)
    assert (losses[-1] < losses[0] - 3.0).all()
    obs = torch.randn(2, 8, 2, dtype=torch.float64)
    action = (2 * torch.rand(2, 8, 1, dtype=torch.float64) - 1).requires_grad_()
    next_obs = ensemble.step(obs, action)
    expected = obs + torch.stack([0.2 * obs[..., 1], action.detach()[..., 0] - 0.1 * obs[..., 0]], dim=-1)
    assert (next_obs - expected).abs().mean() < 0.05
    (jacobian,) = torch.autograd.grad(next_obs[..., 1].sum(), action)
    assert (jacobian - 1.0).abs().mean() < 0.15


def test_each_row_is_imagined_by_its_own_member_alone():
    ensemble = GaussianEnsemble(2, 1, SMALL, streams())
    obs, action = torch.randn(2, 8, 2, dtype=torch.float64), torch.randn(2, 8, 1, dtype=torch.float64)
    before = ensemble.step(obs, action)
    ensemble.parameters[:, 2] += 1.0
    changed = (ensemble.step(obs, action) != before).any(dim=-1)
    assert changed.tolist() == [[False] * 4 + [True] * 2 + [False] * 2] * 2


def test_imagination_is_reparameterised_with_the_predicted_standard_deviation():
    ensemble = GaussianEnsemble(2, 1, SMALL, streams())
    obs, action = torch.randn(2, 4, 2, dtype=torch.float64), torch.randn(2, 4, 1, dtype=torch.float64)
    mean, one = ensemble.step(obs, action), ensemble.step(obs, action, torch.ones_like(obs))
    two = ensemble.step(obs, action, 2 * torch.ones_like(obs))
    torch.testing.assert_close(two - mean, 2 * (one - mean))
    log_variance = 2 * (one - mean).log()
    assert (log_variance >= SMALL.log_var_low).all() and (log_variance <= SMALL.log_var_high).all()


def test_rows_that_do_not_share_out_are_refused():
    with pytest.raises(ValueError, match="7 rows cannot be shared equally among 4"):
        GaussianEnsemble(2, 1, SMALL, streams()).step(torch.zeros(2, 7, 2), torch.zeros(2, 7, 1))


@pytest.mark.parametrize("epochs", [False, True])
def test_members_train_on_different_batches_and_epochs_cover_the_buffer(monkeypatch, epochs):
    hyper = dataclasses.replace(SMALL, model_epochs=epochs, model_batches=5, model_batch_size=10)
    buffer, source = linear_buffer(35), streams()
    ensemble, seen = GaussianEnsemble(2, 1, hyper, source), []
    gather = buffer.gather
    monkeypatch.setattr(buffer, "gather", lambda index: seen.append(index.clone()) or gather(index))
    rounds(ensemble, buffer, source, 2, hyper)
    assert len(seen) == (12 if epochs else 10)  # whole epochs of 3 full batches until at least 5 have run
    assert all(index.shape == (2, 4, 10) for index in seen)
    assert not torch.equal(seen[0][0, 0], seen[0][0, 1]) and not torch.equal(seen[0][0], seen[0][1])
    assert len({tuple(index.flatten().tolist()) for index in seen}) == len(seen)
    first = torch.cat(seen[:3], dim=-1)
    distinct = [len(set(first[r, m].tolist())) for r in range(2) for m in range(4)]
    assert distinct == [30] * 8 if epochs else max(distinct) < 30


def test_a_small_buffer_gives_shorter_batches_in_epochs():
    hyper = dataclasses.replace(SMALL, model_epochs=True, model_batches=5, model_batch_size=100)
    buffer, source = linear_buffer(35), streams()
    (loss,) = rounds(GaussianEnsemble(2, 1, hyper, source), buffer, source, 1, hyper)
    assert loss.isfinite().all()


def test_reward_model_learns_and_sees_the_next_state():
    buffer, source = linear_buffer(), streams()
    model = RewardModel(2, 1, SMALL, source)
    adopt(model, buffer)
    losses = rounds(model, buffer, source, 12)
    assert (losses[-1] < 0.05 * losses[0]).all()
    batch = buffer.gather(torch.arange(50).expand(2, -1))
    next_obs = batch.next_obs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(batch.obs, batch.action, next_obs).sum(), next_obs)
    assert gradient.abs().mean() > 0.05


def test_reward_model_predicts_in_units_of_the_population_statistics_of_the_rewards_seen():
    buffer, source = linear_buffer(), streams()
    buffer.rows[..., 5] = 40.0 * buffer.rows[..., 5] - 500.0
    model = RewardModel(2, 1, SMALL, source)
    batch = buffer.gather(torch.arange(50).expand(2, -1))
    raw = model(batch.obs, batch.action, batch.next_obs)
    obs_alone = Normalizer(2, 2, CPU, torch.float64)
    adopt(model, buffer)
    rewards = buffer.rows[..., 5].numpy()
    model.obs.load_state_dict(obs_alone.state_dict())  # the network's input is what it was
    expected = raw * torch.from_numpy(rewards.std(axis=1, keepdims=True)) + torch.from_numpy(rewards.mean(1)[:, None])
    torch.testing.assert_close(model(batch.obs, batch.action, batch.next_obs), expected, rtol=1e-10, atol=0)


def test_reward_model_of_a_constant_reward_is_not_scaled():
    buffer, source = linear_buffer(), streams()
    buffer.rows[..., 5] = 7.0
    model = RewardModel(2, 1, SMALL, source)
    adopt(model, buffer)
    assert model.reward.std.tolist() == [[[1.0]], [[1.0]]] and model.reward.mean.tolist() == [[[7.0]], [[7.0]]]
    model.parameters.zero_()
    batch = buffer.gather(torch.arange(3).expand(2, -1))
    assert (model(batch.obs, batch.action, batch.next_obs) == 7.0).all()


def test_statistics_of_the_reward_are_adopted_when_the_model_is_trained_and_saved_with_it():
    hyper = {"warmup_steps": 45, "batch_size": 8, "updates_per_step": 1, "model_batches": 1, "model_batch_size": 8}
    hyper |= {name: (8,) for name in ("actor_hidden", "critic_hidden", "reward_hidden", "ensemble_hidden")}

    def trainer():
        return Trainer(make_config("Pendulum", reward="learned", seeds=(0, 1), steps=60, float64=True, hyper=hyper))

    first = trainer()
    for step in range(1, 31):
        first.step()
        last_training = 25 if step >= 25 else 0
        rewards = first.buffer.rows[:, :last_training, 7].numpy()  # 3 of obs, 1 of action, 3 of the next obs before it
        mean = rewards.mean(axis=1) if last_training else np.zeros(2)
        std = rewards.std(axis=1) if last_training else np.ones(2)
        np.testing.assert_allclose(first.reward_model.reward.mean.flatten().numpy(), mean, rtol=1e-12)
        np.testing.assert_allclose(first.reward_model.reward.std.flatten().numpy(), std, rtol=1e-12)
    again = trainer()
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(25):  # past the next training of the model
        first.step(), again.step()
    assert torch.equal(first.reward_model.parameters, again.reward_model.parameters)
    assert torch.equal(first.reward_model.reward.mean, again.reward_model.reward.mean)
    assert torch.equal(first.agent.critic, again.agent.critic)


def test_hybrid_takes_values_of_one_and_jacobians_of_the_other():
    class Scale(Dynamics):
        reads_state = False

        def __init__(self, factor):
            self.factor = factor

        def step(self, at, action, noise=None):
            return Imagined(at.obs + self.factor * action, None)

    obs, action = torch.zeros(1, 3, 1), torch.tensor([[[1.0], [2.0], [3.0]]], requires_grad=True)
    imagined = HybridDynamics(values=Scale(2.0), jacobians=Scale(5.0)).step(Imagined(obs, None), action)
    assert imagined.obs.flatten().tolist() == [2.0, 4.0, 6.0]
    (gradient,) = torch.autograd.grad(imagined.obs.sum(), action)
    assert gradient.flatten().tolist() == [5.0, 5.0, 5.0]


def test_oracle_and_learned_dynamics_have_one_interface():
    task = make_task("Pendulum")
    physics = make_physics(task, dtype=torch.float64)
    state = torch.randn(2, 8, 2, dtype=torch.float64)
    at, action = Imagined(task.observe(state), state), torch.rand(2, 8, 1, dtype=torch.float64)
    oracle = OracleDynamics(physics).step(at, action)
    torch.testing.assert_close(oracle.state[1, 3], task.step(state[1, 3], action[1, 3]))
    torch.testing.assert_close(oracle.obs, task.observe(oracle.state))
    learned = LearnedDynamics(GaussianEnsemble(3, 1, SMALL, streams())).step(at, action)
    assert learned.obs.shape == oracle.obs.shape and learned.state is None
    with pytest.raises(ValueError, match="read the simulator's state"):
        OracleDynamics(physics).step(Imagined(at.obs, None), action)


def test_normaliser_has_population_statistics_and_leaves_constants_unscaled():
    data = np.random.default_rng(0).normal(3.0, 2.0, (50, 2, 3))
    data[:, :, 2] = 7.0
    normalizer = Normalizer(2, 3, CPU, torch.float64)
    for row in data:
        normalizer.update(torch.from_numpy(row))
    np.testing.assert_allclose(normalizer.mean[:, 0].numpy(), data.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(normalizer.std[:, 0, :2].numpy(), data.std(axis=0)[:, :2], rtol=1e-12)
    assert normalizer.std[:, 0, 2].tolist() == [1.0, 1.0]


def test_buffer_returns_what_was_added_run_by_run():
    buffer = linear_buffer(20)
    index = torch.tensor([[3, 3, 19], [0, 7, 1]])
    batch = buffer.gather(index)
    assert batch.obs.shape == (2, 3, 2) and batch.reward.shape == (2, 3) and batch.terminated.dtype == torch.bool
    for run in range(2):
        for k in range(3):
            row = buffer.rows[run, index[run, k]]
            assert torch.equal(torch.cat([batch.obs[run, k], batch.action[run, k], batch.next_obs[run, k]]), row[:5])
            assert batch.reward[run, k] == row[5] and torch.equal(batch.state[run, k], row[7:])
    with pytest.raises(IndexError):
        buffer.add(*(x[:, 0] for x in batch))


def test_an_invalid_transition_is_replaced_by_the_last_one():
    buffer = ReplayBuffer(2, 2, 1, 1, 1, CPU, torch.float64)
    one = torch.ones(2, 1, dtype=torch.float64)
    alive, flat = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.float64)
    buffer.add(one, one, one, flat, alive, one)
    buffer.add(2 * one, 2 * one, 2 * one, 2 * flat, alive, 2 * one, torch.tensor([True, False]))
    assert buffer.rows[:, 1, 0].tolist() == [2.0, 1.0]
