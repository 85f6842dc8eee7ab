"""The batched environment: groups, resets, resuming, bad input; and whole-episode rollouts."""

import inspect
import io

import pytest
import torch

from mage_diffsim.envs import BatchedEnv, TorchPhysics, make_physics, make_task, rollout
from mage_diffsim.errors import InputError


def generator(seed):
    return torch.Generator().manual_seed(seed)


def batched(name="CartPole", n=6, seeds=(0,), dtype=torch.float32, **options):
    task = make_task(name)
    return BatchedEnv(task, make_physics(task, dtype=dtype), n, [generator(s) for s in seeds], **options)


def random_actions(n, steps, seed=9, dtype=torch.float32):
    return torch.rand(steps, n, 1, generator=generator(seed), dtype=dtype) * 2 - 1


def test_groups_behave_exactly_as_separate_environments():
    together = batched(n=6, seeds=(0, 1, 2))
    apart = [batched(n=2, seeds=(s,)) for s in (0, 1, 2)]
    assert torch.equal(together.reset(), torch.cat([e.reset() for e in apart]))
    resets = 0
    for action in random_actions(6, 150):
        a = together.step(action)
        b = [e.step(x) for e, x in zip(apart, action.split(2), strict=True)]
        for i, field in enumerate(a):
            assert torch.equal(field, torch.cat([t[i] for t in b])), a._fields[i]
        assert torch.equal(together.obs, torch.cat([e.obs for e in apart]))
        resets += int(a.terminated.sum())
    assert resets > 10


def test_seeds_decide_the_episodes():
    first, same, other = (batched(seeds=(s,)).reset() for s in (3, 3, 4))
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_a_terminated_environment_starts_afresh_in_the_same_step():
    env = batched(n=4)
    task = env.task
    obs = env.reset()
    seen = 0
    for action in random_actions(4, 200):
        t = env.step(action)
        assert torch.equal(t.obs, obs) and torch.equal(t.obs, task.observe(t.state))
        assert torch.equal(t.next_obs, task.observe(t.next_state))
        assert torch.equal(t.next_state, env.physics.step(t.state, action))
        done = t.terminated | t.truncated
        assert torch.equal(t.terminated, task.terminated(t.next_obs))
        # The true last observation is kept; the environment itself goes on from a start state.
        assert (env.obs[done].abs() <= 0.05).all()
        assert torch.equal(env.obs[~done], t.next_obs[~done])
        assert (env.elapsed[done] == 0).all() and (env.elapsed[~done] > 0).all()
        obs = env.obs
        seen += int(done.sum())
    assert seen > 10


def test_truncation_comes_from_the_horizon_alone():
    env = batched("Pendulum", n=3)
    env.reset()
    for step in range(1, 401):
        t = env.step(torch.zeros(3, 1))
        assert t.truncated.tolist() == [step % 200 == 0] * 3
        assert not t.terminated.any()
    short = batched("Pendulum", n=3, horizon=7)
    short.reset()
    assert [bool(short.step(torch.zeros(3, 1)).truncated.all()) for _ in range(7)] == [False] * 6 + [True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_environment_goes_on_bit_for_bit(dtype):
    env = batched(n=6, seeds=(0, 1), dtype=dtype)
    env.reset()
    actions = random_actions(6, 120, dtype=dtype)
    for action in actions[:60]:
        env.step(action)
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    expected = [env.step(action) for action in actions[60:]]
    file.seek(0)
    resumed = batched(n=6, seeds=(7, 8), dtype=dtype)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for action, t in zip(actions[60:], expected, strict=True):
        for got, field in zip(resumed.step(action), t, strict=True):
            assert torch.equal(got, field)
    assert torch.equal(resumed.elapsed, env.elapsed) and torch.equal(resumed.obs, env.obs)


def test_a_saved_environment_does_not_fit_another():
    saved = batched(n=6).state_dict()
    for other in (batched(n=4), batched("Pendulum"), batched(dtype=torch.float64), batched(seeds=(0, 1))):
        with pytest.raises(InputError, match="these ones accept"):
            other.load_state_dict(saved)


@pytest.mark.parametrize(
    "action, message",
    [
        (torch.zeros(6, 2), r"action has shape \(6, 2\); accepted is \(6, 1\)"),
        (torch.zeros(5, 1), r"action has shape \(5, 1\); accepted is \(6, 1\)"),
        (torch.zeros(6, 1, dtype=torch.float64), "action is torch.float64"),
        (torch.tensor([[0.0]] * 4 + [[torch.nan]] + [[0.0]]), "action of environment 4 is .nan.; give finite numbers"),
        (torch.full((6, 1), torch.inf), "action of environment 0 is .inf."),
    ],
)
def test_a_bad_action_is_refused_and_changes_nothing(action, message):
    env = batched()
    env.reset()
    before = env.state_dict()
    # The test suite's shape-checking hook would speak first: call the function beneath it.
    with pytest.raises(InputError, match=message):
        inspect.unwrap(BatchedEnv.step)(env, action)
    after = env.state_dict()
    assert torch.equal(before["state"], after["state"]) and torch.equal(before["elapsed"], after["elapsed"])
    assert torch.equal(before["generators"][0], after["generators"][0])


def test_stepping_needs_a_reset():
    with pytest.raises(InputError, match=r"step\(\) before reset\(\)"):
        batched().step(torch.zeros(6, 1))


def test_sizes_and_streams_are_checked():
    with pytest.raises(InputError, match="5 environments do not form 2 equal groups"):
        batched(n=5, seeds=(0, 1))
    with pytest.raises(InputError, match="0 environments"):
        batched(n=0)
    with pytest.raises(InputError, match="horizon of 0"):
        batched(horizon=0)
    task, shared = make_task("Pendulum"), generator(0)
    with pytest.raises(InputError, match="each group its own"):
        BatchedEnv(task, make_physics(task), 2, [shared, shared])
    with pytest.raises(InputError, match="physics of task Pendulum"):
        BatchedEnv(make_task("CartPole"), make_physics(task), 1, [shared])


def test_actions_beyond_the_bounds_are_clipped():
    a, b = batched("Pendulum"), batched("Pendulum")
    a.reset(), b.reset()
    assert torch.equal(a.step(torch.full((6, 1), 3.0)).next_state, b.step(torch.ones(6, 1)).next_state)


def test_no_gradients_are_recorded():
    env = batched("Pendulum")
    env.reset()
    t = env.step(torch.zeros(6, 1, requires_grad=True))
    assert not any(field.requires_grad for field in t)


class Diverges(TorchPhysics):
    """Gives NaN where the pole leans to the right by more than 0.05 rad."""

    def _advance(self, state, action):
        return torch.where(state[:, 2:3] > 0.05, torch.nan, super()._advance(state, action))


def test_a_state_that_is_not_finite_ends_the_episode_and_is_marked():
    task = make_task("CartPole")
    env = BatchedEnv(task, Diverges(task), 8, [generator(0)])
    env.reset()
    diverged = 0
    for action in random_actions(8, 100):
        t = env.step(action)
        assert all(field.isfinite().all() for field in t) and env.state.isfinite().all()
        assert torch.equal(t.diverged, t.state[:, 2] > 0.05)
        assert t.truncated[t.diverged].all() and not t.terminated[t.diverged].any()
        assert (t.reward[t.diverged] == 0).all() and torch.equal(t.next_obs[t.diverged], t.obs[t.diverged])
        diverged += int(t.diverged.sum())
    assert diverged > 0


def policy(obs):
    return (obs.sum(-1, keepdim=True) * 3).sin()


@pytest.mark.parametrize("name", ["CartPole", "Pendulum"])
def test_a_rollout_is_the_first_episode_of_the_batched_environment(name):
    env = batched(name, n=12)
    env.reset()
    result = rollout(env.physics, policy, env.state, record=True)
    returns, lengths = torch.zeros(12), torch.zeros(12, dtype=torch.int64)
    running = torch.ones(12, dtype=torch.bool)
    terminated = torch.zeros(12, dtype=torch.bool)
    for step in range(env.task.horizon):
        if not running.any():
            break
        t = env.step(policy(env.obs))
        assert torch.equal(result.states[step][running], t.state[running])
        assert torch.equal(result.obs[step + 1][running], t.next_obs[running])
        assert torch.equal(result.rewards[step], torch.where(running, t.reward, 0.0))
        returns += torch.where(running, t.reward, 0.0)
        lengths += running
        terminated |= running & t.terminated
        running &= ~(t.terminated | t.truncated)
    torch.testing.assert_close(result.returns, returns)
    assert torch.equal(result.lengths, lengths) and torch.equal(result.terminated, terminated)
    assert not result.diverged.any()
    assert terminated.any() == (name == "CartPole")


def test_a_rollout_records_only_when_asked_and_stops_when_all_have_ended():
    task = make_task("CartPole")
    physics = make_physics(task)
    start = task.reset(5, generator(0))
    plain = rollout(physics, lambda obs: torch.ones(len(obs), 1), start)
    assert plain.states is None and plain.obs is None and plain.actions is None and plain.rewards is None
    full = rollout(physics, lambda obs: torch.ones(len(obs), 1), start, record=True)
    steps = full.actions.shape[0]
    assert steps < 100
    assert full.states.shape == (steps + 1, 5, 4) and full.obs.shape == (steps + 1, 5, 4)
    assert full.rewards.shape == (steps, 5)
    assert torch.equal(full.returns, plain.returns) and torch.equal(full.returns, full.rewards.sum(0))
    assert torch.equal(full.lengths, full.returns.long())


def test_a_rollout_does_not_depend_on_its_neighbours():
    task = make_task("CartPole")
    physics = make_physics(task, dtype=torch.float64)
    start = task.reset(6, generator(0))
    whole = rollout(physics, policy, start)
    for i in range(6):
        alone = rollout(physics, policy, start[i : i + 1])
        assert alone.lengths == whole.lengths[i] and alone.returns == whole.returns[i]


def test_a_rollout_has_the_asked_horizon_and_leaves_its_start_alone():
    task = make_task("Pendulum")
    start = task.reset(3, generator(0)).float()
    kept = start.clone()
    result = rollout(make_physics(task), policy, start, 13, record=True)
    assert result.lengths.tolist() == [13] * 3 and result.actions.shape == (13, 3, 1)
    assert torch.equal(start, kept) and torch.equal(result.states[0], kept)
    assert not result.returns.requires_grad


def test_a_rollout_refuses_actions_that_are_not_finite():
    task = make_task("Pendulum")
    with pytest.raises(InputError, match="action that is not finite"):
        rollout(make_physics(task), lambda obs: obs[:, :1] * torch.nan, task.reset(3, generator(0)), 5)
    with pytest.raises(InputError, match="horizon 0"):
        rollout(make_physics(task), policy, task.reset(3, generator(0)), 0)


def test_a_rollout_marks_episodes_that_diverge():
    task = make_task("CartPole")
    start = task.reset(8, generator(0))
    result = rollout(Diverges(task), lambda obs: torch.zeros(len(obs), 1), start, record=True)
    assert result.diverged.any() and result.states.isfinite().all() and result.returns.isfinite().all()
    assert torch.equal(result.returns, result.lengths.float())
    assert not (result.diverged & result.terminated).any()


def test_an_episode_that_diverges_while_the_policy_reads_nan_is_no_policy_error():
    task = make_task("CartPole")
    result = rollout(Diverges(task), lambda obs: obs[:, :1].clamp(-1, 1), task.reset(8, generator(0)))
    assert result.lengths.max() <= 500
