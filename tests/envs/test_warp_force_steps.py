"""Steps of models with tendons, transmissions and actuators on Warp: equal to MuJoCo C in value and derivative."""

from __future__ import annotations

import pytest

pytest.importorskip("mujoco")
pytest.importorskip("warp")

import torch

from mage_diffsim.envs import make_physics
from tests.envs.force_models import Forceful, Implicit, model
from tests.envs.small_models import jacobian
from tests.envs.warp_models import physics_of, samples, scaled
from tests.marks import slow_but

Stages = model("Stages", integrator="RK4", density="200")
EVERY = slow_but([Forceful], [Forceful, Implicit, Stages])


@pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)
def test_steps_and_derivatives_are_those_of_mujoco_c(model):
    task, state, action = samples(model)
    reference = make_physics(task, "mujoco", dtype=torch.float64)
    expected, found = reference.step(state, action), physics_of(model).step(state, action)
    assert scaled(found - expected, expected).max() <= 1e-10
    state, action = state[:30], action[:30]
    expected, found = jacobian(reference.step, state, action), jacobian(physics_of(model).step, state, action)
    # A few states are next to a kink: where a tendon begins to touch a geom, a spring to pull, a force to be clipped.
    error = scaled(found - expected, expected).sort().values
    assert error[-5] <= 1e-6, error[-10:]


@pytest.mark.parametrize("model", EVERY, ids=lambda m: m.name)
def test_adjoint_and_tangents_agree(model):
    _, state, action = samples(model)
    adjoint = jacobian(physics_of(model).step, state[:30], action[:30])
    tangents = jacobian(physics_of(model, derivative="jvp").step, state[:30], action[:30])
    assert scaled(adjoint - tangents, adjoint).max() <= 1e-10
