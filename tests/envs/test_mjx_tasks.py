"""The MuJoCo tasks on MJX against converged MuJoCo C, one compilation a task.

Their derivatives take minutes to compile: ``benchmarks/gradient_quality.py`` measures them.
"""

import pytest
import torch

from mage_diffsim.envs import BatchedEnv, make_physics, make_task

pytest.importorskip("mujoco.mjx")

TASKS = ("InvertedPendulum", "InvertedDoublePendulum", "Reacher", "Swimmer", "HalfCheetah", "Hopper", "Walker2d", "Ant")


def visited(task, n, steps=100, seed=0):
    """States of random episodes that go on after a fall, so that bodies lie and fold; and exact starts."""
    generator = torch.Generator().manual_seed(seed)
    physics = make_physics(task, "mujoco", dtype=torch.float64)
    env = BatchedEnv(task, physics, n, [generator])
    env.reset()
    state = env.state
    states = []
    for _ in range(steps):
        states.append(state)
        action = torch.rand(n, task.action_dim, dtype=torch.float64, generator=generator) * 2 - 1
        state = physics.step(state, action.round(decimals=0))  # full throttle, and nothing
    return torch.stack([states[i * steps // n][i] for i in range(n)])


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_one_step_is_that_of_converged_mujoco_c(name):
    task = make_task(name)
    n = 256
    state = visited(task, n)
    action = torch.rand(n, task.action_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mjx = make_physics(task, "mjx", dtype=torch.float64)
    expected = make_physics(task, "mujoco", dtype=torch.float64).step(state, action)
    with torch.no_grad():
        found = mjx.step(state, action)
    error = (found - expected).abs().amax(1) / expected.abs().amax(1).clamp(min=1.0)
    worst = int(error.argmax())
    assert error[worst] <= 1e-9, f"state {state[worst].tolist()}, action {action[worst].tolist()}"
