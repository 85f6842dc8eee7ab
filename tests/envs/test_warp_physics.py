"""Physics as Warp kernels: equal to the torch equations in value and derivative, in both float types."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

wp = pytest.importorskip("warp")

from mage_diffsim.bridges.warp import load_warp  # noqa: E402
from mage_diffsim.envs.physics import make_physics  # noqa: E402
from mage_diffsim.envs.registry import make_task  # noqa: E402
from mage_diffsim.envs.warp import WarpPhysics  # noqa: E402
from mage_diffsim.errors import InputError, MissingExtra  # noqa: E402

TASKS = [("Pendulum", {}), ("Pendulum", {"clip_order": "v0"}), ("CartPole", {})]


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


def test_equal_to_torch_in_float64(task):
    inputs = samples(task)
    ours = values_and_gradients(make_physics(task, "warp", dtype=torch.float64), *inputs)
    exact = values_and_gradients(make_physics(task, "torch", dtype=torch.float64), *inputs)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_equal_to_torch_in_float32(task):
    inputs = samples(task, torch.float32)
    ours = values_and_gradients(make_physics(task, "warp"), *inputs)
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
            make_physics(task, "warp", dtype=torch.float64, derivative=derivative), state, action, cotangent
        )
        for derivative in ("adjoint", "fd")
    )
    assert torch.equal(exact[0], differences[0])
    for a, b in zip(exact[1:], differences[1:], strict=True):
        torch.testing.assert_close(a[free], b[free], rtol=1e-6, atol=1e-6 * a.abs().max().item())


def test_gradcheck(task):
    state, action, _ = samples(task, n=12)
    action = (0.5 * action.detach()).requires_grad_()
    keep = away_from_the_clip(task, state.detach(), action.detach())
    physics = make_physics(task, "warp", dtype=torch.float64)
    assert torch.autograd.gradcheck(
        physics.step, (state.detach()[keep].requires_grad_(), action.detach()[keep].requires_grad_())
    )


@pytest.mark.parametrize("clip_order", ["v1", "v0"])
@pytest.mark.parametrize(("speed", "slope"), [(8.0, 1.0), (-8.0, 1.0), (8.1, 0.0), (-8.1, 0.0), (7.9, 1.0)])
def test_slope_at_the_velocity_bound_is_one(clip_order, speed, slope):
    """Upright and unforced, the new velocity is the old one: at the bound itself the clip has slope 1, as in torch."""
    task = make_task("Pendulum", clip_order=clip_order)
    physics = make_physics(task, "warp", dtype=torch.float64)
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
    physics = make_physics(make_task("Pendulum"), "warp", dtype=torch.float64)
    action = torch.tensor([[given]], dtype=torch.float64, requires_grad=True)
    next_state = physics.step(torch.zeros(1, 2, dtype=torch.float64), action)
    (by_action,) = torch.autograd.grad(next_state[0, 1], action)
    assert by_action.item() == pytest.approx(slope * 0.3)


def test_closed_form_of_a_resting_cartpole():
    """At the upright rest: theta_acc = -F / (M l (4/3 - m / M)), x_acc = F / M - m l theta_acc / M."""
    physics = make_physics(make_task("CartPole"), "warp", dtype=torch.float64)
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
        ours = values_and_gradients(make_physics(task, "warp", dtype=torch.float64), *inputs)
        unchanged = make_physics(original, "torch", dtype=torch.float64).step(*inputs[:2])
        assert not torch.allclose(exact[0], unchanged), f"{attribute} changes nothing"
        for a, b in zip(ours, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_angles_are_not_wrapped():
    physics = make_physics(make_task("Pendulum"), "warp", dtype=torch.float64)
    far = torch.tensor([[1.0 + 200.0 * math.pi, 0.5]], dtype=torch.float64)
    near = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    action = torch.zeros(1, 1, dtype=torch.float64)
    moved = physics.step(far, action) - physics.step(near, action)
    torch.testing.assert_close(moved, far - near, rtol=1e-12, atol=1e-12)


LOADING = """
import contextlib
import torch
import warp
import mage_diffsim.bridges.warp as bridge
from mage_diffsim.envs.physics import make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.warp.pendulum import make_kernels

task = make_task("Pendulum")
physics = make_physics(task, "warp", dtype=torch.float64)
unloaded = make_kernels(task)(torch.float32)
warp.config.log_level = warp.LOG_INFO
bridge.quiet = contextlib.nullcontext  # so that what is loaded is told
state, action = torch.zeros(3, 2), torch.zeros(3, 1, requires_grad=True)
physics.step(state.double(), action.double()).sum().backward()
print("stepped")
unloaded(state, action)
"""


def test_a_step_loads_no_module():
    """The constructor has loaded them: a CUDA graph can be captured at once. Kernels used without it do load late."""
    done = subprocess.run([sys.executable, "-c", LOADING], capture_output=True, text=True, timeout=300)
    during, after = done.stdout.split("stepped")
    assert "load on device" not in during
    assert "load on device" in after


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_environments(task, rows):
    state, action, cotangent = (x[:rows].detach() for x in samples(task))
    physics = make_physics(task, "warp", dtype=torch.float64)
    found = values_and_gradients(physics, state.requires_grad_(), action.requires_grad_(), cotangent)
    assert [x.shape for x in found] == [state.shape, state.shape, action.shape]


def test_wrong_input_is_refused_by_name(task):
    physics = make_physics(task, "warp", dtype=torch.float64)
    state, action, _ = samples(task, n=4)
    with pytest.raises(InputError, match=r"state is torch.float32 on cpu; this physics takes torch.float64 on cpu"):
        physics.step(state.float(), action)


def test_unknown_derivative_lists_the_valid_ones():
    with pytest.raises(InputError, match="unknown derivative source of backend warp 'vjp': choose one of adjoint, fd"):
        WarpPhysics(make_task("Pendulum"), derivative="vjp")


def test_cuda_without_a_gpu_in_warp_is_refused_at_once():
    if wp.is_cuda_available():
        pytest.skip("Warp sees a GPU here")
    with pytest.raises(InputError, match="device cuda was asked for, but Warp sees no CUDA device"):
        WarpPhysics(make_task("Pendulum"), device="cuda")


def test_missing_warp_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "warp", None)
    load_warp.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install 'mage-diffsim\[warp\]'"):
        WarpPhysics(make_task("Pendulum"))


@pytest.mark.gpu
def test_equal_to_torch_on_a_gpu(task):
    inputs = tuple(x.detach().cuda().requires_grad_() for x in samples(task))
    ours = values_and_gradients(make_physics(task, "warp", dtype=torch.float64, device="cuda"), *inputs)
    exact = values_and_gradients(make_physics(task, "torch", dtype=torch.float64, device="cuda"), *inputs)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
