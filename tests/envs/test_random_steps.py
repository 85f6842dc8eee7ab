"""Whole steps of random models: those of MuJoCo C, with exact derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs import make_physics
from mage_diffsim.envs.mujoco.model import quiet
from mage_diffsim.envs.mujoco.task import with_unit_quaternions
from tests.envs.random_models import random_model
from tests.envs.small_models import Body, jacobian
from tests.envs.test_random_models import states
from tests.envs.warp_models import scaled


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 5, 7, 8, 23])
def test_a_step_of_a_random_model_is_that_of_mujoco_c_with_its_derivatives(seed):
    """Most states are clean: at kinks differences are something else."""
    task = type("Random", (Body,), {"name": "Random", "mjcf": random_model(seed), "frame_skip": 1})()
    with quiet():
        found = states(task.simulation)

    def column(name, width):
        return torch.tensor(np.stack([np.array(getattr(x, name)).reshape(-1, width) for x in found]))

    poses = torch.cat([column("mocap_pos", 3), column("mocap_quat", 4)], -1).flatten(1)
    parts = [column(name, 1).flatten(1) for name in ("qpos", "qvel", "act")]
    state = with_unit_quaternions(task.simulation, task.state_at(*parts, poses))
    action = torch.rand(len(state), task.action_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    results = {}
    for backend, derivative in (("mujoco", "fd"), ("warp", "adjoint"), ("warp", "jvp")):
        physics = make_physics(task, backend, dtype=torch.float64, derivative=derivative)
        results[derivative] = physics.step(state, action), jacobian(physics.step, state, action)
    (value, differences), (found_value, adjoint), (_, tangent) = results.values()
    assert scaled(found_value - value, value).max() < 1e-10
    assert scaled(adjoint - tangent, tangent).max() < 1e-10
    assert scaled(adjoint - differences, differences).median() < 1e-6
