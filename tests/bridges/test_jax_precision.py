"""64-bit types inside the bridge, and the caller's own switch, which stays as it was."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")
from mage_diffsim.bridges import from_jax  # noqa: E402
from mage_diffsim.bridges.jax import to_jax  # noqa: E402
from mage_diffsim.errors import InputError  # noqa: E402
from tests.bridges.jax_functions import COMPILATIONS, SOURCES, draw, jnp, smooth  # noqa: E402

pytestmark = pytest.mark.usefixtures("without_x64")


class TestTypes:
    def test_float64_survives_in_every_thread(self):
        op = from_jax(smooth)
        x, u = draw(4, 3), draw(4, 2, grad=True)
        found: list[torch.Tensor] = []

        def work():
            y = op(x, u)
            found.extend((y, *torch.autograd.grad(y.sum(), u)))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert [t.dtype for t in found] == [torch.float64] * 2

    def test_converting_float64_by_hand_with_x64_off_raises(self):
        with pytest.raises(
            InputError, match=r"a torch.float64 tensor would reach JAX as float32: call it with jax_enable_x64 on"
        ):
            to_jax(draw(4, 3))

    def test_function_that_changes_the_dtype_raises(self, wide):
        wide = jnp.ones(3, dtype="float64")
        with pytest.raises(InputError, match=r"scaled: output is torch.float64 on cpu; the inputs are torch.float32"):
            from_jax(lambda x: x * wide, name="scaled")(torch.ones(4, 3))

    @pytest.mark.parametrize("residuals", ["recompute", "keep"])
    def test_an_array_made_inside_is_float64_and_the_message_says_what_helps(self, residuals):
        x = torch.ones(4, 3, requires_grad=True)
        with pytest.raises(InputError, match=r"jnp.zeros\(n\) is float64: give a dtype, as jnp\.zeros"):
            from_jax(lambda x: x + jnp.zeros(3), residuals=residuals)(x)
        assert from_jax(lambda x: x + jnp.zeros(3, x.dtype), residuals=residuals)(x).dtype == torch.float32
        with pytest.raises(InputError, match=r"accepted is the same$"):
            from_jax(lambda x: x.astype("float32"))(x.double())

    def test_function_that_returns_no_array_raises(self):
        with pytest.raises(InputError, match="pair: the JAX function returned a tuple; accepted is one array"):
            from_jax(lambda x: (x, x), name="pair")(torch.ones(4, 3))
        with pytest.raises(InputError, match="pair: the JAX function returned a tuple; accepted is one array"):
            from_jax(lambda x: (x, x), residuals="keep", name="pair")(torch.ones(4, 3, requires_grad=True))

    def test_unknown_derivative_lists_the_valid_ones(self):
        with pytest.raises(InputError, match="unknown derivative of a JAX function 'adjoint': choose one of jvp, vjp"):
            from_jax(smooth, derivative="adjoint")

    def test_device_that_jax_lacks(self):
        class OnCuda:
            is_cuda = True
            device = "cuda:0"

        if jax.default_backend() == "gpu":
            pytest.skip("JAX sees a GPU here")
        original = to_jax.__wrapped__ if hasattr(to_jax, "__wrapped__") else to_jax
        with pytest.raises(InputError, match="a tensor is on cuda:0 but JAX sees only cpu devices: use device cpu"):
            original(OnCuda())


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: "-".join(s.values()))
class TestTheCallersOwnPrecision:
    """A call has 64-bit types whatever the caller's switch, and the caller's switch and numbers stay."""

    def test_the_callers_arrays_and_random_numbers_stay_as_they_were(self, source):
        def numbers() -> tuple[object, list[float]]:
            return jnp.ones(3).dtype, jax.random.normal(jax.random.key(0), (3,)).tolist()

        before = numbers()
        during = []

        def function(x, u):
            during.append(jnp.ones(3).dtype)
            return smooth(x, u)

        op = from_jax(function, **source)
        x, u = draw(4, 3, grad=True), draw(4, 2, grad=True)
        y = op(x, u)
        assert numbers() == before
        torch.autograd.grad(y.sum(), (x, u))
        assert numbers() == before
        assert before[0] == "float32" and set(map(str, during)) == {"float64"}

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_results_and_compilations_are_the_same_with_the_switch_on_and_off(self, source, dtype):
        op = from_jax(smooth, **source)
        inputs = [draw(5, k).to(dtype).requires_grad_() for k in (3, 2)]

        def call():
            y = op(*inputs)
            return (y.detach(), *torch.autograd.grad(y.sum(), inputs))

        expected, compiled = call(), len(COMPILATIONS)
        for switch in (True, False):
            with jax.enable_x64(switch):
                assert all(map(torch.equal, call(), expected))
                assert jax.config.jax_enable_x64 == switch
        jax.config.update("jax_enable_x64", True)
        try:
            assert all(map(torch.equal, call(), expected))
            assert jax.config.jax_enable_x64
        finally:
            jax.config.update("jax_enable_x64", False)
        assert len(COMPILATIONS) == compiled

    def test_the_switch_is_as_before_when_the_function_raises(self, source):
        def refuses(x):
            raise ArithmeticError("not today")

        with pytest.raises(ArithmeticError, match="not today"):
            from_jax(refuses, **source)(draw(4, 3))
        assert not jax.config.jax_enable_x64

    def test_gradients_are_central_differences_in_any_thread(self, source):
        """Forward and backward each in a thread that has never entered the context."""
        op = from_jax(smooth, **source)
        inputs = draw(5, 3, grad=True), draw(5, 2, grad=True)
        passed: list[bool] = []
        thread = threading.Thread(target=lambda: passed.append(torch.autograd.gradcheck(op, inputs)))
        thread.start()
        thread.join()
        y = op(*inputs)
        found: list[tuple[torch.Tensor, ...]] = []
        thread = threading.Thread(target=lambda: found.append(torch.autograd.grad(y.sum(), inputs)))
        thread.start()
        thread.join()
        x, u = inputs
        assert passed == [True]
        torch.testing.assert_close(found[0][0], x.cos() * u[:, :1].exp() + 2.0 * x * u[:, 1:], rtol=1e-13, atol=1e-13)

    def test_a_call_back_into_python_gets_float64(self, source):
        seen = []

        def host(x):
            seen.append(x.dtype)
            return 2.0 * np.asarray(x)

        @jax.custom_jvp
        def doubled(x):
            return jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="expand_dims")

        doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2.0 * tangents[0]))
        x = draw(4, 3, grad=True)
        y = from_jax(doubled, **source)(x)
        assert torch.equal(y, 2.0 * x) and torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full_like(x, 2.0))
        assert set(map(str, seen)) == {"float64"}


def test_an_operation_inside_a_jax_callback_leaves_the_switch_alone():
    op = from_jax(jnp.tanh)

    def host(x):
        return op(torch.from_numpy(np.array(x, dtype="float64"))).numpy().astype("float32")

    x = jnp.linspace(-1.0, 1.0, 5)
    y = jax.jit(lambda x: jax.pure_callback(host, jax.ShapeDtypeStruct(x.shape, x.dtype), x))(x)
    assert y.dtype == "float32" and jnp.allclose(y, jnp.tanh(x), rtol=1e-6)
    assert jnp.ones(3).dtype == "float32"
