"""The tasks of dm_control's suite against values recorded from dm_control 1.0.50 with MuJoCo 3.17."""

import json
import math
from pathlib import Path

import pytest
import torch

from mage_diffsim.envs import make_physics, make_task
from mage_diffsim.envs.tasks.dm_control.tolerance import tolerance
from mage_diffsim.errors import InputError

RECORDED = json.loads(Path(__file__).with_name("dm_control.json").read_text())
COMMON = {
    "walker": (slice(0, 24), slice(0, 24)),
    "cheetah": (slice(0, 17), slice(0, 17)),
    "hopper": (slice(0, 13), slice(0, 13)),
    "humanoid": (slice(0, 67), slice(0, 67)),
    "quadruped": ([*range(48), 48, 49, 50], [*range(48), 51, 52, 53]),
}
"""Which columns of our observations are which of dm_control's."""
GOALS = [(domain, goal) for domain in COMMON for goal in RECORDED[domain]["rows"][0]["rewards"]]


def recorded(domain, goal):
    """The task, states, actions and the states that dm_control's steps lead to."""
    task = make_task(f"Dm{domain.capitalize()}", goal=goal)
    rows = RECORDED[domain]["rows"]
    columns = {key: torch.tensor([r[key] for r in rows], dtype=torch.float64) for key in rows[0].keys() - {"rewards"}}
    state = task.state_at(columns["qpos"], columns["qvel"], columns["act"])
    following = task.state_at(columns["next_qpos"], columns["next_qvel"], columns["next_act"])
    rewards = torch.tensor([row["rewards"][goal] for row in rows], dtype=torch.float64)
    return task, state, columns["action"], following, columns["obs"], rewards


@pytest.mark.parametrize(("domain", "goal"), GOALS)
def test_observations_and_rewards_are_those_of_dm_control(domain, goal):
    task, state, action, following, theirs, rewards = recorded(domain, goal)
    assert (task.dt, task.horizon) == (pytest.approx(RECORDED[domain]["dt"]), RECORDED[domain]["horizon"])
    obs, next_obs = task.observe(state), task.observe(following)
    assert len(task.obs_names) == obs.shape[-1]
    ours, columns = COMMON[domain]
    torch.testing.assert_close(next_obs[:, ours], theirs[:, columns], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(task.reward(obs, action, next_obs), rewards, rtol=1e-9, atol=1e-9)
    assert not task.terminated(next_obs).any()


@pytest.mark.parametrize("domain", COMMON)
def test_a_step_is_that_of_dm_control(domain):
    """Theirs starts the solver where the step before ended, in an earlier MuJoCo."""
    task, state, action, following, *_ = recorded(domain, GOALS[[d for d, _ in GOALS].index(domain)][1])
    found = make_physics(task, "mujoco", dtype=torch.float64, solver="model").step(state, action)
    assert (found - following).abs().max() <= 1e-6


@pytest.mark.parametrize("domain", COMMON)
def test_starts_are_those_of_dm_control(domain):
    task = recorded(domain, GOALS[[d for d, _ in GOALS].index(domain)][1])[0]
    model = task.simulation.model
    start = task.reset(20, torch.Generator().manual_seed(0))
    assert torch.equal(start, task.reset(20, torch.Generator().manual_seed(0)))
    qpos, moving = task.qpos(start), task.qvel(start).abs().amax(1) > 0.0
    assert moving.all() if domain == "cheetah" else not moving.any()
    if domain == "quadruped":  # as low as nothing touches
        assert (qpos[:, 2] > 0.1).all() and qpos[:, 2].std() > 0.05 and (qpos[:, 7:] == 0.0).all()
        return
    for joint, at in enumerate(model.jnt_qposadr):
        low, high = model.jnt_range[joint]
        if model.jnt_limited[joint] and domain != "cheetah":
            assert ((low <= qpos[:, at]) & (qpos[:, at] <= high)).all() and qpos[:, at].std() > 0.15 * (high - low)
    if domain in ("walker", "hopper"):
        assert qpos[:, 2].abs().max() > 2.0


@pytest.mark.parametrize("row", RECORDED["tolerance"]["rows"], ids=lambda row: f"{row['sigmoid']}-{row['margin']}")
def test_tolerance_is_that_of_dm_control(row):
    x = torch.tensor(RECORDED["tolerance"]["x"], dtype=torch.float64, requires_grad=True)
    high = math.inf if row["high"] is None else row["high"]
    options = dict(margin=row["margin"], sigmoid=row["sigmoid"], value_at_margin=row["value"])
    found = tolerance(x, row["low"], high, **options)
    torch.testing.assert_close(found, torch.tensor(row["found"], dtype=torch.float64), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    step = 1e-6
    slope = (tolerance(x + step, row["low"], high, **options) - tolerance(x - step, row["low"], high, **options)) / 2e-6
    kink = (slope - gradient).abs() > 1e-6  # at an end of the interval, or where the value reaches 0
    assert gradient.isfinite().all() and kink.sum() <= 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(sigmoid="square"), "unknown sigmoid 'square'"),
        (dict(low=1.0), "accepted are low <= high"),
        (dict(margin=-1.0), "accepted are low <= high, 0 <= margin"),
        (dict(margin=1.0, value_at_margin=0.0), "value_at_margin is 0.0 with sigmoid gaussian"),
    ],
)
def test_what_tolerance_does_not_take_is_refused(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        tolerance(torch.zeros(3), **arguments)


def test_an_unknown_goal_lists_the_goals():
    with pytest.raises(InputError, match="unknown goal of task DmWalker 'fly': choose one of run, stand, walk"):
        make_task("DmWalker", goal="fly")
