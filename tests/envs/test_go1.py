"""The robot Go1: it stands, its reward is the one written down, and bad speeds are refused."""

import math

import pytest
import torch

from mage_diffsim.envs import make_physics, make_task
from mage_diffsim.errors import InputError


def test_the_middle_of_all_actions_holds_the_robot_in_its_pose():
    task = make_task("Go1")
    physics = make_physics(task, "mujoco", dtype=torch.float64)
    state, action = task.reset(4, torch.Generator().manual_seed(0)), torch.zeros(4, 12, dtype=torch.float64)
    for _ in range(100):
        last, state = state, physics.step(state, action)
    obs = task.observe(state)
    assert ((state[:, 2] > 0.25) & (state[:, 2] < 0.27)).all() and obs[:, 8].min() > 0.99
    assert obs[:, 9:21].abs().max() < 0.25 and not task.terminated(obs).any()
    standing = math.exp(-(0.5**2) / 0.25) + 0.5
    assert (task.reward(task.observe(last), action, obs) - standing).abs().max() < 0.05


def test_the_reward_is_highest_at_the_speed_that_is_asked_for():
    task = make_task("Go1", speed=1.0)
    qpos, qvel = torch.as_tensor(task.simulation.model.key("home").qpos).repeat(3, 1), torch.zeros(3, 18).double()
    qvel[0, 0], qvel[1, 0], qvel[2, 1] = 1.0, 0.5, 1.0
    obs = task.observe(task.state_at(qpos, qvel))
    reward = task.reward(obs, torch.zeros(3, 12).double(), obs)
    assert reward.tolist() == pytest.approx([1.5, 0.5 + math.exp(-1.0), 0.5 + math.exp(-8.0)])
    over = qpos.clone()
    over[:, 3:7] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert task.terminated(task.observe(task.state_at(over, qvel))).all()


@pytest.mark.parametrize("speed", [-1.0, 3.0, math.nan])
def test_other_speeds_are_refused(speed):
    with pytest.raises(InputError, match=r"task Go1: speed is .*; accepted is a number from 0 to 2"):
        make_task("Go1", speed=speed)
