"""Residuals kept between forward and backward: equal to recomputing, and freed with the graph."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

jax = pytest.importorskip("jax")
from mage_diffsim.bridges import from_jax  # noqa: E402
from mage_diffsim.errors import InputError  # noqa: E402
from tests.bridges.jax_functions import draw, jnp, smooth  # noqa: E402

pytestmark = pytest.mark.usefixtures("without_x64")


class TestResiduals:
    """What only an operation that keeps them can get wrong; the contract's tests run over it as well."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
    def test_gradients_are_those_of_recomputing(self, dtype, wanted):
        inputs = [draw(5, k).to(dtype).requires_grad_(w) for k, w in zip((3, 2), wanted, strict=True)]
        cotangent = draw(5, 3).to(dtype)
        found = []
        for residuals in ("recompute", "keep"):
            y = from_jax(smooth, residuals=residuals)(*inputs)
            found.append((y.detach(), *torch.autograd.grad(y, [x for x in inputs if x.requires_grad], cotangent)))
        tolerance = 1e-13 if dtype == torch.float64 else 1e-5
        for a, b in zip(*found, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)

    def test_gradients_are_central_differences(self):
        inputs = draw(5, 3, grad=True), draw(5, 2, grad=True)
        assert torch.autograd.gradcheck(from_jax(smooth, residuals="keep"), inputs)

    def test_the_function_is_evaluated_once(self):
        evaluations = []

        def counted(x):
            jax.debug.callback(lambda: evaluations.append(1))
            return jnp.sin(x)

        for residuals, expected in (("keep", 1), ("recompute", 2)):
            evaluations.clear()
            from_jax(counted, residuals=residuals)(draw(4, 3, grad=True)).sum().backward()
            jax.effects_barrier()
            assert len(evaluations) == expected

    def test_none_without_a_gradient_to_compute(self, monkeypatch):
        op = from_jax(smooth, residuals="keep")
        asked = []
        original = type(op).forward_keeping
        monkeypatch.setattr(type(op), "forward_keeping", lambda *a: asked.append(a[2]) or original(*a))
        x, u = draw(4, 3), draw(4, 2, grad=True)
        op(x, u.detach())
        with torch.no_grad():
            op(x, u)
        with torch.inference_mode():
            op(x, u)
        assert not asked
        op(x, u)
        assert asked == [(False, True)]

    def test_they_go_with_the_graph(self):
        op = from_jax(smooth, residuals="keep")
        y = op(draw(4, 3), draw(4, 2, grad=True))
        arrays = [weakref.ref(a) for a in jax.tree.leaves(y.grad_fn.kept)]
        assert arrays and all(a() is not None for a in arrays)
        y.sum().backward()
        del y
        gc.collect()
        assert not any(a() is not None for a in arrays)

    @pytest.mark.parametrize("function", [jnp.exp, jnp.tanh, jnp.sqrt], ids=lambda f: f.__name__)
    def test_editing_an_output_that_is_its_own_residual(self, function):
        x = (draw(64, 3).abs() + 0.5).requires_grad_()
        op = from_jax(function, residuals="keep")
        (expected,) = torch.autograd.grad(op(x).sum(), x)
        y = op(x)
        total = y.sum()
        y.data.zero_()
        assert torch.equal(torch.autograd.grad(total, x)[0], expected)

    def test_editing_a_gradient_that_is_a_residual(self):
        """A rule whose pull-back returns what it was left, so that both might be one buffer."""

        @jax.custom_vjp
        def straight(x):
            return x.sum(-1)

        straight.defvjp(lambda x: (x.sum(-1), jnp.cos(x)), lambda kept, cotangent: (kept,))
        x = draw(64, 3, grad=True)
        y = from_jax(straight, residuals="keep")(x).sum()
        (first,) = torch.autograd.grad(y, x, retain_graph=True)
        first.zero_()
        torch.testing.assert_close(torch.autograd.grad(y, x)[0], x.detach().cos(), rtol=1e-13, atol=0.0)

    def test_unknown_policy_lists_the_valid_ones(self):
        with pytest.raises(
            InputError, match="unknown residual policy of a JAX function 'save': choose one of keep, rec"
        ):
            from_jax(smooth, residuals="save")

    def test_columns_have_none(self):
        with pytest.raises(
            InputError, match="smooth: residuals 'keep' were asked for, and derivative 'jvp' is taken by columns"
        ):
            from_jax(smooth, derivative="jvp", residuals="keep")
