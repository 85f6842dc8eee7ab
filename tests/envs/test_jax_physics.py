"""Physics as JAX functions: equal to the torch equations in value and derivative, compiled once."""

from __future__ import annotations

import math
import sys

import pytest
import torch

jax = pytest.importorskip("jax")

from mage_diffsim.bridges.jax import load_jax  # noqa: E402
from mage_diffsim.envs.jax import JaxPhysics  # noqa: E402
from mage_diffsim.envs.physics import make_physics  # noqa: E402
from mage_diffsim.envs.registry import make_task  # noqa: E402
from mage_diffsim.errors import InputError, MissingExtra  # noqa: E402

TASKS = [("Pendulum", {}), ("Pendulum", {"clip_order": "v0"}), ("CartPole", {})]
COMPILATIONS: list[str] = []


def _record(event: str, duration: float, **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILATIONS.append(event)


jax.monitoring.register_event_duration_secs_listener(_record)


@pytest.fixture(params=TASKS, ids=lambda p: "-".join((p[0], *p[1].values())))
def task(request):
    return make_task(request.param[0], **request.param[1])


def samples(task, dtype=torch.float64, n=200):
    """States well beyond those an episode visits, actions beyond both bounds, and the exact bounds and zeros."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([20.0, 9.0] if task.name == "Pendulum" else [3.0, 5.0, 20.0, 9.0], dtype=torch.float64)
    state = scale * (2.0 * torch.rand(n, task.state_dim, dtype=torch.float64, generator=generator) - 1.0)
    action = 1.5 * (2.0 * torch.rand(n, task.action_dim, dtype=torch.float64, generator=generator) - 1.0)
    state[0] = 0.0
    action[0] = 0.0
    action[1], action[2] = 1.0, -1.0
    cotangent = torch.randn(n, task.state_dim, dtype=torch.float64, generator=generator)
    return state.to(dtype).requires_grad_(), action.to(dtype).requires_grad_(), cotangent.to(dtype)


def values_and_gradients(physics, state, action, cotangent):
    next_state = physics.step(state, action)
    return next_state.detach(), *torch.autograd.grad(next_state, (state, action), cotangent)


@pytest.mark.parametrize("derivative", ["vjp", "jvp"])
def test_equal_to_torch_in_float64(task, derivative):
    inputs = samples(task)
    ours = values_and_gradients(make_physics(task, "jax", dtype=torch.float64, derivative=derivative), *inputs)
    exact = values_and_gradients(make_physics(task, "torch", dtype=torch.float64), *inputs)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("derivative", ["vjp", "jvp"])
def test_equal_to_torch_in_float32(task, derivative):
    inputs = samples(task, torch.float32)
    ours = values_and_gradients(make_physics(task, "jax", derivative=derivative), *inputs)
    exact = values_and_gradients(make_physics(task, "torch"), *inputs)
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def away_from_the_clip(task, state, action):
    """Rows where no difference quotient straddles a bound of the action or of the pendulum's velocity."""
    free = (action.abs() - 1.0).abs().squeeze(1) > 1e-3
    if task.name == "Pendulum":
        theta, theta_dot = state.unbind(1)
        unclipped = theta_dot + 0.05 * (15.0 * theta.sin() + 6.0 * action.clamp(-1.0, 1.0)[:, 0])
        free &= (unclipped.abs() - 8.0).abs() > 1e-3
    return free


def test_central_differences_agree(task):
    state, action, cotangent = samples(task)
    free = away_from_the_clip(task, state.detach(), action.detach())
    assert free.sum() > 150
    exact, differences = (
        values_and_gradients(
            make_physics(task, "jax", dtype=torch.float64, derivative=derivative), state, action, cotangent
        )
        for derivative in ("vjp", "fd")
    )
    assert torch.equal(exact[0], differences[0])
    for a, b in zip(exact[1:], differences[1:], strict=True):
        torch.testing.assert_close(a[free], b[free], rtol=1e-6, atol=1e-6 * a.abs().max().item())


@pytest.mark.parametrize("derivative", ["vjp", "jvp"])
def test_gradcheck(task, derivative):
    state, action, _ = samples(task, n=12)
    action = (0.5 * action.detach()).requires_grad_()
    keep = away_from_the_clip(task, state.detach(), action.detach())
    physics = make_physics(task, "jax", dtype=torch.float64, derivative=derivative)
    assert torch.autograd.gradcheck(
        physics.step, (state.detach()[keep].requires_grad_(), action.detach()[keep].requires_grad_())
    )


@pytest.mark.parametrize("clip_order", ["v1", "v0"])
@pytest.mark.parametrize("derivative", ["vjp", "jvp"])
@pytest.mark.parametrize(("speed", "slope"), [(8.0, 1.0), (-8.0, 1.0), (8.1, 0.0), (-8.1, 0.0), (7.9, 1.0)])
def test_slope_at_the_velocity_bound_is_one(clip_order, derivative, speed, slope):
    """Upright and unforced, the new velocity is the old one: at the bound itself the clip has slope 1, as in torch."""
    task = make_task("Pendulum", clip_order=clip_order)
    physics = make_physics(task, "jax", dtype=torch.float64, derivative=derivative)
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
def test_action_gradient_at_the_bound_is_that_of_a_torch_clamp(given, slope):
    """Closed form: d theta_dot' / d a = slope * 2 * 3 dt / (m l^2)."""
    physics = make_physics(make_task("Pendulum"), "jax", dtype=torch.float64)
    action = torch.tensor([[given]], dtype=torch.float64, requires_grad=True)
    next_state = physics.step(torch.zeros(1, 2, dtype=torch.float64), action)
    (by_action,) = torch.autograd.grad(next_state[0, 1], action)
    assert by_action.item() == pytest.approx(slope * 0.3)


def test_closed_form_of_a_resting_cartpole():
    """At the upright rest: theta_acc = -F / (M l (4/3 - m / M)), x_acc = F / M - m l theta_acc / M."""
    physics = make_physics(make_task("CartPole"), "jax", dtype=torch.float64)
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
def test_every_changed_constant_is_honoured(name, changes):
    original = make_task(name)
    for attribute, value in changes.items():
        task = make_task(name)
        setattr(task, attribute, value)
        inputs = samples(task, n=50)
        exact = values_and_gradients(make_physics(task, "torch", dtype=torch.float64), *inputs)
        ours = values_and_gradients(make_physics(task, "jax", dtype=torch.float64), *inputs)
        unchanged = make_physics(original, "torch", dtype=torch.float64).step(*inputs[:2])
        assert not torch.allclose(exact[0], unchanged), f"{attribute} changes nothing"
        for a, b in zip(ours, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_angles_are_not_wrapped():
    physics = make_physics(make_task("Pendulum"), "jax", dtype=torch.float64)
    far = torch.tensor([[1.0 + 200.0 * math.pi, 0.5]], dtype=torch.float64)
    near = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    action = torch.zeros(1, 1, dtype=torch.float64)
    moved = physics.step(far, action) - physics.step(near, action)
    torch.testing.assert_close(moved, far - near, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kept_residuals_give_the_gradient_of_recomputing(task, dtype):
    inputs = samples(task, dtype)
    kept, recomputed = (
        values_and_gradients(make_physics(task, "jax", dtype=dtype, residuals=residuals), *inputs)
        for residuals in ("keep", "recompute")
    )
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for a, b in zip(kept, recomputed, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("derivative", ["jvp", "fd"])
def test_residuals_of_columns_are_refused(derivative):
    with pytest.raises(InputError, match=f"residuals 'keep' were asked for, and derivative '{derivative}' is taken by"):
        JaxPhysics(make_task("Pendulum"), derivative=derivative, residuals="keep")


@pytest.mark.parametrize("backend", ["torch", "warp"])
def test_residuals_of_other_backends_are_refused(backend):
    with pytest.raises(InputError, match=f"unknown residual policy of backend {backend} 'keep': choose one of recomp"):
        make_physics(make_task("Pendulum"), backend, residuals="keep")


@pytest.mark.parametrize(
    ("derivative", "residuals"), [("vjp", "recompute"), ("vjp", "keep"), ("jvp", "recompute"), ("fd", "recompute")]
)
def test_no_compilation_after_the_first_step_at_a_batch_size(derivative, residuals):
    physics = make_physics(make_task("Pendulum"), "jax", derivative=derivative, residuals=residuals)

    def step():
        action = torch.zeros(16, 1, requires_grad=True)
        torch.autograd.grad(physics.step(torch.randn(16, 2), action).sum(), action)

    start = len(COMPILATIONS)
    step()
    warm = len(COMPILATIONS)
    assert warm > start, "the count does not see compilations"
    for _ in range(20):
        step()
    assert len(COMPILATIONS) == warm


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_environments(task, rows):
    state, action, cotangent = (x[:rows].detach() for x in samples(task))
    physics = make_physics(task, "jax", dtype=torch.float64)
    found = values_and_gradients(physics, state.requires_grad_(), action.requires_grad_(), cotangent)
    assert [x.shape for x in found] == [state.shape, state.shape, action.shape]


def test_wrong_input_is_refused_by_name(task):
    physics = make_physics(task, "jax", dtype=torch.float64)
    state, action, _ = samples(task, n=4)
    with pytest.raises(InputError, match=r"state is torch.float32 on cpu; this physics takes torch.float64 on cpu"):
        physics.step(state.float(), action)


def test_unknown_derivative_lists_the_valid_ones():
    with pytest.raises(InputError, match="unknown derivative source of backend jax 'adjoint': choose one of fd, jvp"):
        JaxPhysics(make_task("Pendulum"), derivative="adjoint")


def test_cuda_without_a_gpu_in_jax_is_refused_at_once():
    if load_jax().default_backend() == "gpu":
        pytest.skip("JAX sees a GPU here")
    with pytest.raises(InputError, match="device cuda was asked for, but JAX sees only cpu devices"):
        JaxPhysics(make_task("Pendulum"), device="cuda")


def test_missing_jax_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    load_jax.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install 'mage-diffsim\[mjx\]'"):
        JaxPhysics(make_task("Pendulum"))


@pytest.mark.gpu
def test_equal_to_torch_on_a_gpu(task):
    if load_jax().default_backend() != "gpu":
        pytest.skip("JAX has no CUDA plugin here")
    inputs = tuple(x.detach().cuda().requires_grad_() for x in samples(task))
    ours = values_and_gradients(make_physics(task, "jax", dtype=torch.float64, device="cuda"), *inputs)
    exact = values_and_gradients(make_physics(task, "torch", dtype=torch.float64, device="cuda"), *inputs)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
