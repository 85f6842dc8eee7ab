"""MuJoCo models on Warp: equal to converged MuJoCo C in value and derivative."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mujoco")
wp = pytest.importorskip("warp")
from mage_diffsim.envs import make_physics  # noqa: E402
from mage_diffsim.envs.warp import model as warp_model  # noqa: E402
from tests.envs.small_models import jacobian  # noqa: E402
from tests.envs.warp_models import SMALL, TASKS, EulerLeg, Leg, Pile, Trees, physics_of, samples, scaled  # noqa: E402
from tests.marks import slow_but  # noqa: E402

FAST = ("InvertedPendulum", "HalfCheetah", Leg, EulerLeg)
"""Models whose kernels the fast tests compile."""


@pytest.mark.parametrize("model", slow_but(FAST, (*TASKS, *SMALL)), ids=lambda m: m if isinstance(m, str) else m.name)
def test_a_step_is_that_of_converged_mujoco_c(model):
    task, state, action = samples(model, 1024, 30) if model in TASKS else samples(model)
    expected = make_physics(task, "mujoco", dtype=torch.float64).step(state, action)
    found = physics_of(model).step(state, action)
    worst = int(scaled(found - expected, expected).argmax())
    assert scaled(found - expected, expected)[worst] <= 1e-10, f"{state[worst].tolist()}, {action[worst].tolist()}"
    assert (found - state).abs().max() > 1e-3


@pytest.mark.parametrize(
    "model", slow_but((*FAST, "Reacher"), (*TASKS, *SMALL)), ids=lambda m: m if isinstance(m, str) else m.name
)
def test_derivatives_are_the_central_differences_of_mujoco_c(model):
    task, state, action = samples(model)
    found = jacobian(physics_of(model).step, state, action)
    reference = make_physics(task, "mujoco", dtype=torch.float64)
    state, action = state[:40], action[:40]
    expected = jacobian(reference.step, state, action)
    error = scaled(found[:40] - expected, expected)
    # The few states next to a kink are not differentiable; benchmarks/gradient_quality.py tells them apart.
    assert error.sort().values[-4] <= 1e-6, error.sort().values[-8:]
    assert expected[:, :, task.state_dim :].abs().max() > 1e-3


@pytest.mark.parametrize(
    "model", slow_but([Leg], (*SMALL, "HalfCheetah", "Walker2d")), ids=lambda m: m if isinstance(m, str) else m.name
)
def test_adjoint_and_tangents_agree(model):
    task, state, action = samples(model)
    adjoint = jacobian(physics_of(model).step, state, action)
    tangents = jacobian(physics_of(model, derivative="jvp").step, state, action)
    assert scaled(adjoint - tangents, adjoint).max() <= 1e-11
    readouts = task.simulation.nq + task.simulation.nv
    assert (adjoint[:, :, readouts : task.state_dim] == 0.0).all(), "the state's readouts are outputs only"


def test_samples_touch_and_reach_limits():
    """What the comparisons above would be empty without."""
    mujoco = pytest.importorskip("mujoco")
    for model in (Pile, Leg, EulerLeg, "HalfCheetah", "Hopper", "Walker2d", "Ant"):
        task, state, _ = samples(model)
        data, kinds, pairs = mujoco.MjData(task.simulation.model), set(), set()
        for row in state.numpy():
            data.qpos[:], data.qvel[:] = row[: task.simulation.nq], row[task.simulation.nq :][: task.simulation.nv]
            mujoco.mj_forward(task.simulation.model, data)
            kinds |= set(data.efc_type.tolist())
            pairs |= {tuple(sorted(int(task.simulation.model.geom_type[g]) for g in c.geom)) for c in data.contact}
        limit, frictionless, pyramid = (
            int(getattr(mujoco.mjtConstraint, f"mjCNSTR_{name}"))
            for name in ("LIMIT_JOINT", "CONTACT_FRICTIONLESS", "CONTACT_PYRAMIDAL")
        )
        assert pyramid in kinds, task
        if model in (Leg, EulerLeg):
            assert {limit, frictionless} <= kinds and (3, 3) in pairs, (task, kinds, pairs)
        if model is Pile:
            assert frictionless in kinds and pairs >= {(0, 2), (0, 3), (2, 2), (2, 3)}, pairs


@pytest.mark.parametrize("model", slow_but([Leg], ["HalfCheetah", Leg, Trees]), ids=str)
def test_float32_is_close(model):
    _, state, action = samples(model)
    exact = physics_of(model)
    single = physics_of(model, torch.float32)
    expected, found = exact.step(state, action), single.step(state.float(), action.float())
    assert found.dtype == torch.float32
    assert scaled(found.double() - expected, expected).quantile(0.99) <= 1e-4
    expected, found = jacobian(exact.step, state, action), jacobian(single.step, state.float(), action.float())
    assert scaled(found.double() - expected, expected).median() <= 1e-3


@pytest.mark.slow
def test_bodies_thrown_deep_into_the_ground_come_out_as_in_mujoco_c():
    task, _, _ = samples("HalfCheetah")
    generator = torch.Generator().manual_seed(3)
    state = task.reset(300, generator).double()
    state[:, 1] -= torch.rand(300, generator=generator, dtype=torch.float64)
    state[:, 2:9] += torch.randn(300, 7, generator=generator, dtype=torch.float64)
    state[:, 9:18] += 8.0 * torch.randn(300, 9, generator=generator, dtype=torch.float64)
    action = 2.0 * torch.rand(300, 6, generator=generator, dtype=torch.float64) - 1.0
    expected = make_physics(task, "mujoco", dtype=torch.float64).step(state, action)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 2e-3)):
        physics = physics_of("HalfCheetah", dtype)
        found = physics.step(state.to(dtype), action.to(dtype)).double()
        assert scaled(found - expected, expected).max() <= bound
        gradient = jacobian(physics.step, state[:64].to(dtype), action[:64].to(dtype))
        assert gradient.isfinite().all()


def test_a_hundred_steps_stay_within_what_a_rounding_error_grows_to():
    task, _, _ = samples("HalfCheetah")
    generator = torch.Generator().manual_seed(4)
    start = task.reset(16, generator).double()
    warp, mujoco = physics_of("HalfCheetah"), make_physics(task, "mujoco", dtype=torch.float64)
    ours, theirs, nudged = start, start, start + 1e-12
    nudged = torch.cat([nudged[:, :18], start[:, 18:]], dim=1)
    for _ in range(100):
        action = 2.0 * torch.rand(16, 6, generator=generator, dtype=torch.float64) - 1.0
        ours, theirs, nudged = warp.step(ours, action), mujoco.step(theirs, action), mujoco.step(nudged, action)
    apart, chaos = (ours - theirs).abs().amax(1), (nudged - theirs).abs().amax(1)
    assert (apart <= 10.0 * chaos + 1e-9).all(), (apart, chaos)


def test_a_solver_that_does_not_converge_is_reported(monkeypatch):
    """Cut to one Newton step, the rows that need more come back as NaN, in value and derivative."""
    from mage_diffsim.envs.warp.compiler import solver

    task, state, action = samples(EulerLeg)
    whole = physics_of(EulerLeg).step(state, action)
    monkeypatch.setattr(solver, "ITERATIONS", 1)
    monkeypatch.setattr(warp_model, "_shared", {})
    hasty = make_physics(task, "warp", dtype=torch.float64)
    state = state.clone().requires_grad_()
    found = hasty.step(state, action)
    (gradient,) = torch.autograd.grad(found.sum(), state)
    failed = found.isnan().all(1)
    assert 0 < failed.sum() < len(state)
    torch.testing.assert_close(found[~failed].detach(), whole[~failed], rtol=1e-11, atol=1e-11)
    assert gradient[failed].isnan().any(1).all() and gradient[~failed].isfinite().all()


@pytest.mark.slow
def test_exact_rest_and_symmetry_have_finite_derivatives():
    for model in ("Ant", "Hopper", "Walker2d", Trees, Pile):
        task, _, _ = samples(model)
        rest = task.state_at(
            torch.as_tensor(task.simulation.qpos0)[None].repeat(9, 1),
            torch.zeros(9, task.simulation.nv, dtype=torch.float64),
        )
        for dtype in (torch.float64, torch.float32):
            if model in ("Hopper", "Walker2d", Pile) and dtype == torch.float32:
                continue  # one compilation less each
            state, action = rest.to(dtype), torch.zeros(9, task.action_dim, dtype=dtype)
            assert jacobian(physics_of(model, dtype).step, state, action).isfinite().all(), (task, dtype)
