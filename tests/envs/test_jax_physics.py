"""Physics as JAX functions: residuals, compilations and what is refused."""

from __future__ import annotations

import sys

import pytest
import torch

jax = pytest.importorskip("jax")

from mage_diffsim.bridges.jax import load_jax  # noqa: E402
from mage_diffsim.envs.jax import JaxPhysics  # noqa: E402
from mage_diffsim.envs.physics import make_physics  # noqa: E402
from mage_diffsim.envs.registry import make_task  # noqa: E402
from mage_diffsim.errors import InputError, MissingExtra  # noqa: E402
from tests.bridges.jax_functions import COMPILATIONS  # noqa: E402
from tests.envs.analytic_tasks import samples, values_and_gradients  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("derivative", ["vjp", "jvp"])
def test_kept_residuals_give_the_gradient_of_recomputing(analytic_task, dtype, derivative):
    inputs = samples(analytic_task, dtype)
    kept, recomputed = (
        values_and_gradients(make_physics(analytic_task, "jax", dtype=dtype, **source), *inputs)
        for source in ({"derivative": derivative, "residuals": "keep"}, {})
    )
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for a, b in zip(kept, recomputed, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_residuals_of_differences_are_refused():
    with pytest.raises(InputError, match="finite differences have no residuals to keep: use residuals 'recompute'"):
        JaxPhysics(make_task("Pendulum"), derivative="fd", residuals="keep")


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
    with pytest.raises(MissingExtra, match=r"pip install -e '\.\[mjx\]' in the project's folder"):
        JaxPhysics(make_task("Pendulum"))
