"""Pendulum and CartPole in JAX and in Warp: equal to the torch equations in value and derivative."""

from __future__ import annotations

import math

import pytest
import torch

from mage_diffsim.bridges.jax import load_jax
from mage_diffsim.envs.physics import make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.errors import InputError
from tests.envs.analytic_tasks import samples, values_and_gradients

SOURCES = [("jax", "vjp"), ("jax", "jvp"), ("warp", "adjoint")]


@pytest.fixture(params=["jax", "warp"])
def backend(request) -> str:
    """A backend with its default derivative source."""
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture(params=SOURCES, ids="-".join)
def source(request) -> dict[str, str]:
    """A backend with one of its exact derivative sources."""
    backend, derivative = request.param
    pytest.importorskip(backend)
    return {"backend": backend, "derivative": derivative}


def away_from_the_clip(task, state, action):
    """Rows where no difference quotient straddles a bound of the action or of the pendulum's velocity."""
    free = (action.abs() - 1.0).abs().squeeze(1) > 1e-3
    if task.name == "Pendulum":
        theta, theta_dot = state.unbind(1)
        unclipped = theta_dot + 0.05 * (15.0 * theta.sin() + 6.0 * action.clamp(-1.0, 1.0)[:, 0])
        free &= (unclipped.abs() - 8.0).abs() > 1e-3
    return free


def test_equal_to_torch_in_float64(analytic_task, source):
    inputs = samples(analytic_task)
    ours = values_and_gradients(make_physics(analytic_task, dtype=torch.float64, **source), *inputs)
    exact = values_and_gradients(make_physics(analytic_task, "torch", dtype=torch.float64), *inputs)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_equal_to_torch_in_float32(analytic_task, source):
    inputs = samples(analytic_task, torch.float32)
    ours = values_and_gradients(make_physics(analytic_task, **source), *inputs)
    exact = values_and_gradients(make_physics(analytic_task, "torch"), *inputs)
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_central_differences_agree(backend, analytic_task):
    state, action, cotangent = samples(analytic_task)
    free = away_from_the_clip(analytic_task, state.detach(), action.detach())
    assert free.sum() > 150
    exact, differences = (
        values_and_gradients(
            make_physics(analytic_task, backend, dtype=torch.float64, derivative=derivative), state, action, cotangent
        )
        for derivative in (None, "fd")
    )
    assert torch.equal(exact[0], differences[0])
    for a, b in zip(exact[1:], differences[1:], strict=True):
        torch.testing.assert_close(a[free], b[free], rtol=1e-6, atol=1e-6 * a.abs().max().item())


def test_gradcheck(analytic_task, source):
    state, action, _ = samples(analytic_task, n=12)
    action = (0.5 * action.detach()).requires_grad_()
    keep = away_from_the_clip(analytic_task, state.detach(), action.detach())
    physics = make_physics(analytic_task, dtype=torch.float64, **source)
    assert torch.autograd.gradcheck(
        physics.step, (state.detach()[keep].requires_grad_(), action.detach()[keep].requires_grad_())
    )


@pytest.mark.parametrize("clip_order", ["v1", "v0"])
@pytest.mark.parametrize(("speed", "slope"), [(8.0, 1.0), (-8.0, 1.0), (8.1, 0.0), (-8.1, 0.0), (7.9, 1.0)])
def test_slope_at_the_velocity_bound_is_one(clip_order, source, speed, slope):
    """Upright and unforced, the new velocity is the old one: at the bound itself the clip has slope 1, as in torch."""
    task = make_task("Pendulum", clip_order=clip_order)
    physics = make_physics(task, dtype=torch.float64, **source)
    state = torch.tensor([[0.0, speed]], dtype=torch.float64, requires_grad=True)
    action = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    next_state = physics.step(state, action)
    by_state, by_action = torch.autograd.grad(next_state[0, 1], (state, action), retain_graph=True)
    assert by_state[0, 1].item() == slope
    assert by_action.item() == pytest.approx(slope * 0.05 * 3.0 * 2.0)
    # The angle moves by the clipped velocity in v1, by the unclipped one in v0.
    (moved,) = torch.autograd.grad(next_state[0, 0], action)
    assert moved.item() == pytest.approx((slope if clip_order == "v1" else 1.0) * 0.05 * 0.05 * 3.0 * 2.0)


@pytest.mark.parametrize(("given", "slope"), [(1.0, 1.0), (-1.0, 1.0), (1.0 + 1e-9, 0.0), (0.0, 1.0)])
def test_action_gradient_at_the_bound_is_that_of_a_torch_clamp(backend, given, slope):
    """Closed form: d theta_dot' / d a = slope * 2 * 3 dt / (m l^2)."""
    physics = make_physics(make_task("Pendulum"), backend, dtype=torch.float64)
    action = torch.tensor([[given]], dtype=torch.float64, requires_grad=True)
    next_state = physics.step(torch.zeros(1, 2, dtype=torch.float64), action)
    (by_action,) = torch.autograd.grad(next_state[0, 1], action)
    assert by_action.item() == pytest.approx(slope * 0.3)


def test_closed_form_of_a_resting_cartpole(backend):
    """At the upright rest: theta_acc = -F / (M l (4/3 - m / M)), x_acc = F / M - m l theta_acc / M."""
    physics = make_physics(make_task("CartPole"), backend, dtype=torch.float64)
    action = torch.tensor([[0.5]], dtype=torch.float64, requires_grad=True)
    next_state = physics.step(torch.zeros(1, 4, dtype=torch.float64), action)
    by_action = torch.stack([torch.autograd.grad(y, action, retain_graph=True)[0][0, 0] for y in next_state[0]])
    theta_acc = -10.0 / (1.1 * 0.5 * (4.0 / 3.0 - 0.1 / 1.1))
    x_acc = 10.0 / 1.1 - 0.05 * theta_acc / 1.1
    expected = 0.02 * torch.tensor([0.0, x_acc, 0.0, theta_acc], dtype=torch.float64)
    torch.testing.assert_close(by_action, expected, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(next_state[0].detach(), 0.5 * expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Pendulum", {"g": 9.0, "m": 1.3, "l": 0.8, "dt": 0.04, "max_speed": 2.0, "action_high": (3.0,)}),
        ("CartPole", {"gravity": 9.0, "masscart": 1.5, "masspole": 0.3, "length": 0.7, "dt": 0.03}),
    ],
)
def test_every_changed_constant_is_honoured(backend, name, changes):
    original = make_task(name)
    for attribute, value in changes.items():
        task = make_task(name)
        setattr(task, attribute, value)
        inputs = samples(task, n=50)
        exact = values_and_gradients(make_physics(task, "torch", dtype=torch.float64), *inputs)
        ours = values_and_gradients(make_physics(task, backend, dtype=torch.float64), *inputs)
        unchanged = make_physics(original, "torch", dtype=torch.float64).step(*inputs[:2])
        assert not torch.allclose(exact[0], unchanged), f"{attribute} changes nothing"
        for a, b in zip(ours, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_angles_are_not_wrapped(backend):
    physics = make_physics(make_task("Pendulum"), backend, dtype=torch.float64)
    far = torch.tensor([[1.0 + 200.0 * math.pi, 0.5]], dtype=torch.float64)
    near = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    action = torch.zeros(1, 1, dtype=torch.float64)
    moved = physics.step(far, action) - physics.step(near, action)
    torch.testing.assert_close(moved, far - near, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_environments(backend, analytic_task, rows):
    state, action, cotangent = (x[:rows].detach() for x in samples(analytic_task))
    physics = make_physics(analytic_task, backend, dtype=torch.float64)
    found = values_and_gradients(physics, state.requires_grad_(), action.requires_grad_(), cotangent)
    assert [x.shape for x in found] == [state.shape, state.shape, action.shape]


def test_wrong_input_is_refused_by_name(backend, analytic_task):
    physics = make_physics(analytic_task, backend, dtype=torch.float64)
    state, action, _ = samples(analytic_task, n=4)
    with pytest.raises(InputError, match=r"state is torch.float32 on cpu; this physics takes torch.float64 on cpu"):
        physics.step(state.float(), action)


@pytest.mark.gpu
def test_equal_to_torch_on_a_gpu(backend, analytic_task):
    if backend == "jax" and load_jax().default_backend() != "gpu":
        pytest.skip("JAX has no CUDA plugin here")
    inputs = tuple(x.detach().cuda().requires_grad_() for x in samples(analytic_task))
    ours = values_and_gradients(make_physics(analytic_task, backend, dtype=torch.float64, device="cuda"), *inputs)
    exact = values_and_gradients(make_physics(analytic_task, "torch", dtype=torch.float64, device="cuda"), *inputs)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
