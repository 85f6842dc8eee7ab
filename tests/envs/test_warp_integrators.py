"""MuJoCo's integrators on Warp: equal to converged MuJoCo C in value and derivative."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs import make_physics
from tests.envs.small_models import Body, jacobian
from tests.envs.warp_models import LEG, physics_of, samples, scaled
from tests.marks import slow_but


class ExplicitLeg(Body):
    """Euler with damping that is not implicit."""

    name, mjcf = "ExplicitLeg", LEG.replace('integrator="RK4"/>', '><flag eulerdamp="disable"/></option>')


MODELS = (ExplicitLeg,)


@pytest.mark.parametrize("model", slow_but([ExplicitLeg], MODELS), ids=lambda m: m.name)
def test_a_step_and_its_derivative_are_those_of_converged_mujoco_c(model):
    task, state, action = samples(model)
    reference, physics = make_physics(task, "mujoco", dtype=torch.float64), physics_of(model)
    expected, found = reference.step(state, action), physics.step(state, action)
    assert scaled(found - expected, expected).max() <= 1e-10
    adjoint = jacobian(physics.step, state, action)
    differences = jacobian(reference.step, state[:40], action[:40])
    # The few states next to a kink are not differentiable.
    assert scaled(adjoint[:40] - differences, differences).sort().values[-4] <= 1e-6
    tangents = jacobian(physics_of(model, derivative="jvp").step, state, action)
    assert scaled(adjoint - tangents, adjoint).max() <= 1e-11
