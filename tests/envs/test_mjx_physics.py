"""MJX: equal to converged MuJoCo C in value, to its central differences in derivative, without LAPACK."""

from __future__ import annotations

import copy

import pytest
import torch

jax = pytest.importorskip("jax")
mujoco = pytest.importorskip("mujoco")
pytest.importorskip("mujoco.mjx")
from mage_diffsim.bridges.jax import from_jax, load_jax, x64  # noqa: E402
from mage_diffsim.envs.mjx import _load_step  # noqa: E402
from mage_diffsim.envs.physics import make_physics  # noqa: E402
from mage_diffsim.envs.tasks.half_cheetah import HalfCheetah  # noqa: E402
from tests.envs.mjx_models import (  # noqa: E402
    SMALL,
    Ball,
    EllipticLeg,
    EulerLeg,
    Fluid,
    Free,
    Leg,
    N,
    differences,
    error,
    jacobian_of,
    physics_of,
    reference,
    samples,
)
from tests.envs.small_models import jacobian  # noqa: E402
from tests.marks import slow_but  # noqa: E402


@pytest.mark.parametrize("task_class", slow_but([Ball], [*SMALL, HalfCheetah]))
def test_a_step_is_that_of_converged_mujoco_c(task_class):
    expected, _, _ = reference(task_class)
    found = physics_of(task_class).step(*samples(task_class))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("task_class", slow_but([Ball], [*SMALL, HalfCheetah]))
def test_derivatives_are_the_central_differences_of_mujoco_c(task_class):
    _, expected, clean = reference(task_class)
    found = jacobian_of(task_class)
    assert found.isfinite().all()
    assert clean.sum() > 0.6 * N
    assert error(found, expected)[clean].max() < 1e-6


@pytest.mark.slow
def test_forward_mode_through_the_solver_agrees():
    assert error(jacobian_of(EllipticLeg, "jvp"), jacobian_of(EllipticLeg)).max() < 1e-8
    values = (physics_of(EllipticLeg, derivative).step(*samples(EllipticLeg)) for derivative in ("jvp", "implicit"))
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)


def test_a_step_with_its_columns_is_the_step_and_the_implicit_derivative():
    state, action = (x.clone() for x in samples(Ball))
    cotangent = torch.randn_like(state, generator=torch.Generator().manual_seed(0))
    found = []
    for physics in (
        make_physics(Ball(), "mjx", dtype=torch.float64, derivative="jvp", residuals="keep"),
        physics_of(Ball),
    ):
        inputs = state.requires_grad_(), action.requires_grad_()
        y = physics.step(*inputs)
        found.append((y.detach(), *torch.autograd.grad(y, inputs, cotangent)))
    for kept, apart in zip(*found, strict=True):
        torch.testing.assert_close(kept, apart, rtol=1e-8, atol=1e-8 * apart.abs().max().item())


@pytest.mark.parametrize("task_class", [Ball, Leg, EllipticLeg, Free])
def test_samples_are_in_contact(task_class):
    """So that the comparisons above mean something."""
    state, _ = samples(task_class)
    simulation = task_class().simulation
    data = mujoco.MjData(simulation.model)
    touching = 0
    for row in state.numpy():
        data.qpos[:], data.qvel[:] = row[: simulation.nq], row[simulation.nq : simulation.nq + simulation.nv]
        mujoco.mj_forward(simulation.model, data)
        touching += data.ncon > 0
    assert touching > 0.3 * N


def stock_step(simulation, iterations):
    """MJX as it comes, environment by environment: its vmapped LAPACK calls can deadlock on a CPU."""
    from mujoco import mjx

    model = copy.copy(simulation.model)
    model.opt.jacobian, model.opt.solver = mujoco.mjtJacobian.mjJAC_DENSE, mujoco.mjtSolver.mjSOL_NEWTON
    model.opt.iterations = iterations
    with x64():
        device = mjx.put_model(model, impl="jax")
    nq = simulation.nq

    def one(inputs):
        data = mjx.make_data(model, impl="jax").replace(qpos=inputs[0][:nq], qvel=inputs[0][nq:], ctrl=inputs[1])
        data, _ = jax.lax.scan(lambda d, _: (mjx.step(device, d), None), data, None, length=simulation.frame_skip)
        return jax.numpy.concatenate([data.qpos, data.qvel])

    return lambda moving, control: jax.lax.map(one, (moving, control))


@pytest.mark.slow
def test_one_solver_iteration_is_found_out():
    """The folk remedy for MJX's reverse mode: a step and a derivative that the comparisons here must reject."""
    load_jax()
    simulation = EulerLeg().simulation
    width = simulation.nq + simulation.nv
    state, action = samples(EulerLeg)
    expected, central, clean = reference(EulerLeg)
    stock = from_jax(stock_step(simulation, 1))
    control = EulerLeg().scale_action(action)
    assert (stock(state, control) - expected).abs().max() > 1e-6
    assert error(jacobian(stock, state[:, :width], control), central)[clean].max() > 1e-2


@pytest.mark.slow
def test_stock_reverse_mode_through_a_converging_solver_raises():
    """Upstream's limitation; when this fails, see whether the rule here is still needed."""
    load_jax()
    simulation = Leg().simulation
    step = stock_step(simulation, 10)
    moving, control = (jax.ShapeDtypeStruct((1, n), "float64") for n in (simulation.nq + simulation.nv, 1))
    with x64(), pytest.raises(ValueError, match=r"Reverse-mode differentiation does not work for lax.while_loop"):
        jax.eval_shape(lambda m, c: jax.vjp(step, m, c)[1](m), moving, control)


@pytest.mark.slow
def test_float32_is_close():
    state, action = samples(Leg)
    expected, central, _ = reference(Leg)
    physics = make_physics(Leg(), "mjx")
    found = physics.step(state.float(), action.float())
    assert found.dtype == torch.float32
    assert (found.double() - expected).abs().amax(1).median() < 1e-4
    derivative = jacobian(physics.step, state.float(), action.float()).double()
    assert derivative.isfinite().all()
    assert error(derivative, central).median() < 1e-3


@pytest.mark.slow
def test_quaternions_stay_unit_and_derivatives_are_tangent():
    state, action = samples(Free)
    simulation = Free().simulation
    assert simulation.quaternions == (3, 7)
    scaled = state.clone()
    scaled[:, 3:7] *= 1.7
    found = physics_of(Free).step(scaled, action)
    torch.testing.assert_close(found, physics_of(Free).step(state, action), rtol=1e-12, atol=1e-12)
    derivative = jacobian_of(Free)
    for first in simulation.quaternions:
        quaternion = found[:, first : first + 4]
        torch.testing.assert_close(quaternion.norm(dim=1), torch.ones(N, dtype=torch.float64), rtol=0, atol=1e-12)
        radial = (derivative[:, :, first : first + 4] * state[:, None, first : first + 4]).sum(-1)
        assert radial.abs().max() < 1e-9 * derivative.abs().max()


@pytest.mark.parametrize("task_class", slow_but([Ball], SMALL))
def test_degenerate_states_have_finite_derivatives(task_class):
    """Zeros, the initial position at rest, no velocity, the action at its bounds; huge values do not hang."""
    task = task_class()
    state, action = (x.clone() for x in samples(task_class))
    simulation = task.simulation
    state[0] = 0.0
    state[1] = task.state_at(torch.as_tensor(simulation.qpos0)[None], torch.zeros(1, simulation.nv))[0]
    state[2, simulation.nq :] = 0.0
    action[0], action[1], action[2] = 0.0, 1.0, -1.0
    assert jacobian(physics_of(task_class).step, state, action).isfinite().all()
    state[3, simulation.nq :], state[4], state[5] = 1e6, 1e30, torch.nan
    found = physics_of(task_class).step(state, action)
    assert found[6:].isfinite().all()
    assert found[5].isnan().any()


@pytest.mark.slow
def test_a_resting_free_body_turns_with_its_velocity():
    """d q' / d omega = dt / 2 at rest, where the derivative of a norm is not defined."""
    task = Free()
    state, action = samples(Free)
    state = state.clone()
    state[:] = task.state_at(torch.as_tensor(task.simulation.qpos0)[None], torch.zeros(1, task.simulation.nv))
    state[:, 2] = 5.0
    step = make_physics(task, "mujoco", dtype=torch.float64).step
    expected = differences(step, state, action, 1e-6, 1e-6)
    found = jacobian(physics_of(Free).step, state, action)
    assert error(found, expected).max() < 1e-6
    omega = task.simulation.nq + 3
    torch.testing.assert_close(found[0, 4, omega].item(), 0.5 * task.dt, rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("task_class", slow_but([Ball], [Ball, Leg, EllipticLeg]))
def test_nothing_calls_lapack(task_class):
    """jaxlib's batched LAPACK calls can starve their own threads on a CPU."""
    load_jax()
    simulation = task_class().simulation
    step = _load_step().make_step(simulation, implicit=True)
    moving = jax.ShapeDtypeStruct((N, simulation.nq + simulation.nv), "float64")
    control = jax.ShapeDtypeStruct((N, simulation.model.nu), "float64")
    with x64():
        cotangent = jax.eval_shape(step, moving, control)
        lowered = jax.jit(lambda m, c, w: jax.vjp(step, m, c)[1](w)).lower(moving, control, cotangent).as_text()
    assert "lapack" not in lowered
    assert "custom_call" not in lowered


def test_zero_environments():
    state, action = (x[:0] for x in samples(Fluid))
    assert physics_of(Fluid).step(state, action).shape == state.shape


@pytest.mark.gpu
def test_equal_on_a_gpu():
    if load_jax().default_backend() != "gpu":
        pytest.skip("JAX has no CUDA plugin here")
    state, action = (x.cuda() for x in samples(Leg))
    physics = make_physics(Leg(), "mjx", dtype=torch.float64, device="cuda")
    torch.testing.assert_close(physics.step(state, action).cpu(), reference(Leg)[0], rtol=1e-9, atol=1e-9)
    assert error(jacobian(physics.step, state, action).cpu(), jacobian_of(Leg)).max() < 1e-8
    assert jacobian_of(Leg).isfinite().all()
