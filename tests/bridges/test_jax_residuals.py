"""Residuals kept between forward and backward: equal to recomputing, and freed with the graph."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

jax = pytest.importorskip("jax")
from mage_diffsim.bridges import ColumnsOp, from_jax  # noqa: E402
from mage_diffsim.errors import InputError  # noqa: E402
from tests.bridges.jax_functions import draw, jnp, smooth  # noqa: E402

pytestmark = pytest.mark.usefixtures("without_x64")


def diagonal(x):
    """The Jacobian of the sine of every component."""
    return torch.diag_embed(x.cos())


@pytest.fixture(params=["vjp", "jvp"])
def derivative(request):
    return request.param


class TestResiduals:
    """What only an operation that keeps them can get wrong; the contract's tests run over it as well."""

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    @pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
    def test_gradients_are_those_of_recomputing(self, derivative, dtype, wanted):
        inputs = [draw(5, k).to(dtype).requires_grad_(w) for k, w in zip((3, 2), wanted, strict=True)]
        cotangent = draw(5, 3).to(dtype)
        found = []
        for residuals in ("recompute", "keep"):
            y = from_jax(smooth, derivative=derivative, residuals=residuals)(*inputs)
            found.append((y.detach(), *torch.autograd.grad(y, [x for x in inputs if x.requires_grad], cotangent)))
        tolerance = 1e-13 if dtype == torch.float64 else 1e-5
        for a, b in zip(*found, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)

    def test_gradients_are_central_differences(self, derivative):
        inputs = draw(5, 3, grad=True), draw(5, 2, grad=True)
        assert torch.autograd.gradcheck(from_jax(smooth, derivative=derivative, residuals="keep"), inputs)

    @pytest.mark.parametrize(
        ("source", "forward", "backward"),
        [(("vjp", "recompute"), 1, 1), (("vjp", "keep"), 1, 1), (("jvp", "recompute"), 1, 1), (("jvp", "keep"), 1, 0)],
        ids=lambda x: "-".join(x) if isinstance(x, tuple) else None,
    )
    def test_calls_of_jax(self, monkeypatch, source, forward, backward):
        calls = []
        real = jax.jit

        def counted(*arguments, **settings):
            jitted = real(*arguments, **settings)
            return lambda *inputs: calls.append(1) or jitted(*inputs)

        monkeypatch.setattr(jax, "jit", counted)
        op = from_jax(smooth, derivative=source[0], residuals=source[1])
        y = op(draw(4, 3, grad=True), draw(4, 2))
        assert len(calls) == forward
        y.sum().backward()
        assert len(calls) == forward + backward

    def test_columns_solve_a_loop_once(self):
        """The function's own loop is not batched over the columns, and its output not computed apart from them."""
        rounds = []

        def halved(x):
            def halve(y):
                jax.debug.callback(lambda _: rounds.append(1), y.sum())
                return 0.5 * y

            return jax.lax.while_loop(lambda y: jnp.any(jnp.abs(y) > 1.0), halve, x)

        x = torch.full((2, 5), 8.0, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(from_jax(halved, derivative="jvp", residuals="keep")(x).sum(), x)
        jax.effects_barrier()
        assert torch.equal(gradient, torch.full_like(x, 0.125))
        assert len(rounds) == 3

    def test_columns_are_no_matrix_product_of_torch(self):
        """Its precision is the user's choice for networks."""

        class Refuse(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                assert not {"mm", "bmm", "addmm", "baddbmm"} & {func.overloadpacket.__name__}
                return func(*args, **(kwargs or {}))

        x = draw(4, 3, grad=True)
        for op in (from_jax(jnp.sin, derivative="jvp", residuals="keep"), ColumnsOp(torch.sin, diagonal, name="sin")):
            with Refuse():
                (gradient,) = torch.autograd.grad(op(x).sum(), x)
            torch.testing.assert_close(gradient, x.detach().cos())

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

    def test_they_go_with_the_graph(self, derivative):
        op = from_jax(smooth, derivative=derivative, residuals="keep")
        y = op(draw(4, 3), draw(4, 2, grad=True))
        leaves = jax.tree.leaves(y.grad_fn.kept, is_leaf=torch.is_tensor)
        arrays = [weakref.ref(a) for a in leaves if isinstance(a, (torch.Tensor, jax.Array))]
        del leaves
        assert arrays and all(a() is not None for a in arrays)
        y.sum().backward()
        del y
        gc.collect()
        assert not any(a() is not None for a in arrays)

    @pytest.mark.parametrize("function", [jnp.exp, jnp.tanh, jnp.sqrt], ids=lambda f: f.__name__)
    @pytest.mark.parametrize("columns", [1, 3])
    def test_editing_an_output_that_is_its_own_residual(self, function, derivative, columns):
        x = (draw(64, columns).abs() + 0.5).requires_grad_()
        op = from_jax(function, derivative=derivative, residuals="keep")
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

    def test_columns_need_rows(self):
        for output, shape in ((lambda x: x.sum(-1), r"\(4,\)"), (lambda x: x.sum(0, keepdims=True), r"\(1, 3\)")):
            with pytest.raises(InputError, match=rf"returned shape {shape}; derivative 'jvp' accepts \(N, D\)"):
                from_jax(output, derivative="jvp", residuals="keep")(draw(4, 3, grad=True))
        with pytest.raises(InputError, match="returned a tuple; accepted is one array"):
            from_jax(lambda x: (x, x), derivative="jvp", residuals="keep")(draw(4, 3, grad=True))

    def test_unknown_policy_lists_the_valid_ones(self):
        with pytest.raises(
            InputError, match="unknown residual policy of a JAX function 'save': choose one of keep, rec"
        ):
            from_jax(smooth, residuals="save")
