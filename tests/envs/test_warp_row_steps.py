"""Compiled models with limits, friction loss and equalities: equal to converged MuJoCo C in value and derivative."""

from __future__ import annotations

import pytest
import torch

mujoco = pytest.importorskip("mujoco")
pytest.importorskip("warp")

from mage_diffsim.envs import make_physics  # noqa: E402
from mage_diffsim.envs.differences import jacobian_of, true_jacobians  # noqa: E402
from mage_diffsim.envs.mujoco.task import with_unit_quaternions  # noqa: E402
from tests.envs.row_models import MODELS, Held, Rubbing, Sled, Stiff  # noqa: E402
from tests.envs.small_models import jacobian  # noqa: E402
from tests.envs.warp_models import physics_of, samples, scaled  # noqa: E402
from tests.marks import slow_but  # noqa: E402

CHECKED = 40
"""States of a comparison with central differences."""


@pytest.mark.parametrize("model", slow_but([Rubbing], (*MODELS, Held)), ids=lambda m: m.name)
def test_a_step_and_its_derivative_are_those_of_converged_mujoco_c(model):
    task, state, action = samples(model, 400, 30)
    reference, physics = make_physics(task, "mujoco", dtype=torch.float64), physics_of(model)
    expected, found = reference.step(state, action), physics.step(state, action)
    assert scaled(found - expected, expected).max() <= 1e-10
    state, action = state[::4], action[::4]
    adjoint = jacobian(physics.step, state, action)
    differences = jacobian(reference.step, state[:CHECKED], action[:CHECKED])
    # The few states next to a kink are not differentiable.
    assert scaled(adjoint[:CHECKED] - differences, differences).sort().values[-4] <= 1e-6
    tangents = jacobian(physics_of(model, derivative="jvp").step, state, action)
    assert scaled(adjoint - tangents, adjoint).max() <= 1e-11


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_samples_are_in_every_zone(model):
    """What the comparisons above would be empty without: rows of each kind, friction at either end and between."""
    (_, state, _), m = samples(model, 400, 30), model().simulation.model
    nq = m.nq
    data, seen = mujoco.MjData(m), set()
    for row in state.numpy():
        data.qpos[:], data.qvel[:] = row[:nq], row[nq : nq + m.nv]
        mujoco.mj_forward(m, data)
        seen |= set(zip(data.efc_type.tolist(), data.efc_state.tolist(), strict=True))
    states = mujoco.mjtConstraintState
    zones = [int(states.mjCNSTRSTATE_QUADRATIC)]
    ends = [int(states.mjCNSTRSTATE_LINEARNEG), int(states.mjCNSTRSTATE_LINEARPOS)]
    assert seen >= {(kind, zone) for kind in model.kinds for zone in zones + (ends if kind in model.rubbing else [])}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-3), (torch.float64, 1e-10)], ids=str)
def test_redundant_and_stiff_rows_are_solved_to_rounding(dtype, bound):
    """At states that violate them by decimetres; errors are relative to the step."""
    task, n = Stiff(), 500
    generator, nq, nv = torch.Generator().manual_seed(0), task.simulation.nq, task.simulation.nv
    state = task.reset(n, generator).double()
    scale = torch.tensor([0.02, 0.3, 1.0], dtype=torch.float64)[torch.randint(3, (n, 1), generator=generator)]
    state[:, :nq] += scale * torch.randn(n, nq, generator=generator, dtype=torch.float64)
    state[:, nq : nq + nv] += 3.0 * scale * torch.randn(n, nv, generator=generator, dtype=torch.float64)
    state = with_unit_quaternions(task.simulation, state).float().double()
    action = torch.rand(n, 1, generator=generator, dtype=torch.float32).double()
    expected = make_physics(task, "mujoco", dtype=torch.float64).step(state, action)
    found = make_physics(task, "warp", dtype=dtype).step(state.to(dtype), action.to(dtype)).double()
    error = (found - expected).abs().amax(1) / (expected - state).abs().amax(1)
    assert found.isfinite().all() and error.quantile(0.999) <= bound


def test_the_crossing_of_a_zone_is_found_as_a_kink():
    """A sled of mass m, pulled so that its friction is as large as it can be: held on one side, sliding on the other.

    There m a = g u - f, with f = D (a + b v) where it is held and f = loss where it slides, and dv'/du is h g / (m + D)
    or h g / m.
    """
    task = Sled()
    m = task.simulation.model
    state = torch.tensor([[0.0, 1e-3]], dtype=torch.float64)
    data = mujoco.MjData(m)
    data.qvel[0] = state[0, 1]
    mujoco.mj_forward(m, data)
    mass, gear, d, loss = 2.0, 10.0, float(data.efc_D[0]), float(m.dof_frictionloss[0])
    edge = (loss + mass * (loss / d + float(data.efc_aref[0]))) / gear
    assert 0.0 < edge < 1.0
    action = edge + torch.tensor([[-1e-2], [0.0], [1e-2]], dtype=torch.float64)
    here, blocks = torch.cat([state.expand(3, 2), action], 1), {"action": [2]}
    backends = {"mujoco": make_physics(task, "mujoco", dtype=torch.float64), "warp": physics_of(Sled)}
    for physics in backends.values():
        truth = true_jacobians(lambda x, p=physics: p.step(x[:, :2], x[:, 2:]), here, blocks)["action"]
        assert truth.clean.tolist() == [True, False, True]
    slope = jacobian_of(lambda u: backends["warp"].step(state.expand(3, 2), u), action)[:, 1, 0]
    held, sliding = (m.opt.timestep * gear / x for x in (mass + d, mass))
    assert slope[0].item() == pytest.approx(held, rel=1e-10) and slope[2].item() == pytest.approx(sliding, rel=1e-10)
    assert min(abs(slope[1].item() - x) for x in (held, sliding)) <= 1e-10, "one of the two, not their mean"
