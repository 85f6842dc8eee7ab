"""Steps and derivatives with contacts of boxes, cylinders and ellipsoids, compiled."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest
import torch

pytest.importorskip("warp")

from mage_diffsim.envs import make_physics
from mage_diffsim.envs.mujoco.convergence import with_solver
from mage_diffsim.envs.warp import model as warp_model
from mage_diffsim.envs.warp.compiler import cost
from tests.envs.warp_models import (
    Solids,
    assert_adjoint_and_tangents_agree,
    assert_step_and_derivatives_are_those_of_mujoco_c,
    physics_of,
    samples,
    scaled,
)


def test_a_step_and_its_derivatives_are_those_of_mujoco_c():
    assert_step_and_derivatives_are_those_of_mujoco_c(Solids)


@pytest.mark.slow
def test_adjoint_and_tangents_agree():
    assert_adjoint_and_tangents_agree(Solids)


@pytest.mark.slow
def test_contacts_in_loops_give_the_same(monkeypatch):
    task, state, action = samples(Solids)
    cotangent = torch.randn(state.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def derivatives(physics):
        x, u = state.clone().requires_grad_(), action.clone().requires_grad_()
        output = physics.step(x, u)
        return output.detach(), torch.cat(torch.autograd.grad(output, (x, u), cotangent), -1)

    written = derivatives(physics_of(Solids))
    monkeypatch.setattr(cost, "LOOPED", -1.0)
    monkeypatch.setattr(warp_model, "_shared", {})
    for found, expected in zip(derivatives(make_physics(task, "warp", dtype=torch.float64)), written, strict=True):
        assert scaled(found - expected, expected).max() <= 1e-10


@pytest.mark.slow
def test_float32_is_close():
    _, state, action = samples(Solids)
    expected = physics_of(Solids).step(state, action)
    found = physics_of(Solids, torch.float32).step(state.float(), action.float())
    error = scaled(found.double() - expected, expected).sort().values
    assert error[len(error) // 2] <= 1e-5 and error[-3] <= 1e-3, error[-10:]


def test_dropped_solids_move_as_in_mujoco_c():
    """Next to C for 200 simulator steps, they go apart as C does from a start that is 1e-12 away."""
    task, _, _ = samples(Solids)
    model, frames = with_solver(task.simulation.model, "converged"), 200 // task.frame_skip
    start = task.reset(8, torch.Generator().manual_seed(1)).double()
    action, physics = torch.zeros(len(start), task.action_dim, dtype=torch.float64), physics_of(Solids)
    trajectory = [start]
    for _ in range(frames):
        trajectory.append(physics.step(trajectory[-1], action))
    found = torch.stack(trajectory, 1).numpy()

    def in_c(row, nudge):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = row[: model.nq] + nudge, row[model.nq : model.nq + model.nv]
        places = [data.qpos.copy()]
        for _ in range(frames):
            for _ in range(task.frame_skip):
                mujoco.mj_step(model, data)
            places.append(data.qpos.copy())
        return np.array(places)

    touching = np.random.default_rng(0)
    for row, path in zip(start.numpy(), found, strict=True):
        expected = in_c(row, 0.0)
        others = [in_c(row, 1e-12 * touching.choice([-1.0, 1.0], model.nq)) for _ in range(4)]
        spread = np.maximum.accumulate(np.max([np.abs(x - expected).max(1) for x in others], axis=0))
        assert (np.abs(path[:, : model.nq] - expected).max(1) <= 10.0 * spread + 1e-12).all()
