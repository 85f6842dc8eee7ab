"""JAX functions in torch: zero copies, no recompilation, no race, no shared memory."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")
from mage_diffsim.bridges import from_jax  # noqa: E402
from mage_diffsim.bridges import jax as bridge  # noqa: E402
from mage_diffsim.bridges.jax import load_jax, to_jax, to_torch, x64  # noqa: E402
from mage_diffsim.errors import MissingExtra  # noqa: E402
from tests.bridges.jax_functions import COMPILATIONS, SOURCES, draw, jnp, smooth  # noqa: E402

pytestmark = pytest.mark.usefixtures("without_x64")


@pytest.mark.usefixtures("wide")
class TestViews:
    def test_torch_to_jax_is_the_same_memory(self):
        x = draw(16, 3)
        assert to_jax(x).unsafe_buffer_pointer() == x.data_ptr()

    def test_jax_to_torch_is_the_same_memory(self):
        array = jnp.arange(12.0).reshape(4, 3) + 1.0
        assert to_torch(array, torch.device("cpu")).data_ptr() == array.unsafe_buffer_pointer()

    def test_unaligned_memory_is_copied_not_misread(self):
        x = draw(13)[1:]
        array = to_jax(x)
        assert array.unsafe_buffer_pointer() != x.data_ptr()
        assert array.tolist() == x.tolist()

    @pytest.mark.parametrize("shape", [(0, 3), (1, 3), (3, 1), (1, 1), (2, 3, 4)])
    def test_round_trip(self, shape):
        x = draw(*shape)
        assert torch.equal(to_torch(to_jax(x), x.device), x)

    def test_the_public_calls_give_the_same_where_the_native_ones_are_missing(self, monkeypatch):
        x, cotangent = draw(5, 3, grad=True), draw(5, 3)
        expected = torch.autograd.grad(from_jax(jnp.tanh)(x), x, cotangent)[0]
        assert bridge._cpu_calls() is not None
        monkeypatch.setattr(bridge, "_cpu_calls", lambda: None)
        assert torch.equal(torch.autograd.grad(from_jax(jnp.tanh)(x), x, cotangent)[0], expected)
        assert to_jax(x).unsafe_buffer_pointer() == x.data_ptr()


class TestAgainstJax:
    @pytest.mark.usefixtures("wide")
    @pytest.mark.parametrize("derivative", ["vjp", "jvp"])
    def test_value_and_gradient_equal_those_of_jax_itself(self, derivative):
        x, u, cotangent = draw(5, 3, grad=True), draw(5, 2, grad=True), draw(5, 3)
        y = from_jax(smooth, derivative=derivative)(x, u)
        expected, pull_back = jax.vjp(smooth, jnp.asarray(x.detach().numpy()), jnp.asarray(u.detach().numpy()))
        torch.testing.assert_close(y.detach(), torch.tensor(expected.tolist(), dtype=y.dtype), rtol=1e-13, atol=1e-13)
        ours = torch.autograd.grad(y, (x, u), cotangent)
        for a, b in zip(ours, pull_back(jnp.asarray(cotangent.numpy())), strict=True):
            torch.testing.assert_close(a, torch.tensor(b.tolist(), dtype=a.dtype), rtol=1e-13, atol=1e-13)

    def test_any_shapes_in_reverse_mode(self):
        a, b = draw(2, 3, 4, grad=True), draw(4, grad=True)
        op = from_jax(lambda a, b: jnp.tanh(a @ b))
        assert op(a, b).shape == (2, 3)
        assert torch.autograd.gradcheck(op, (a, b))

    def test_forward_mode_goes_through_a_loop_that_has_no_reverse_mode(self):
        def newton_root(x, u):
            """sqrt(x^2 + u^2) by Newton's iteration, until it has converged."""
            target = x**2 + u**2
            return jax.lax.while_loop(
                lambda y: jnp.any(jnp.abs(y * y - target) > 1e-14), lambda y: 0.5 * (y + target / y), jnp.ones_like(x)
            )

        x, u = (draw(6, 1).abs() + 0.5 for _ in range(2))
        x.requires_grad_(), u.requires_grad_()
        with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
            from_jax(newton_root)(x, u).sum().backward()
        y = from_jax(newton_root, derivative="jvp")(x, u)
        by_x, by_u = torch.autograd.grad(y.sum(), (x, u))
        torch.testing.assert_close(by_x, x.detach() / y.detach(), rtol=1e-10, atol=0.0)
        torch.testing.assert_close(by_u, u.detach() / y.detach(), rtol=1e-10, atol=0.0)


class TestCompilation:
    @pytest.mark.parametrize("source", SOURCES, ids=lambda s: "-".join(s.values()))
    def test_none_after_the_first_call_at_a_batch_size(self, source):
        traces = []

        def function(x, u):
            traces.append(x.shape)
            return smooth(x, u) + 1.0

        op = from_jax(function, **source)

        def call(x, u):
            u = u.detach().requires_grad_()
            torch.autograd.grad(op(x, u).sum(), u)
            op(x, u.detach())

        start = len(COMPILATIONS)
        call(draw(8, 3), draw(8, 2))
        warm = len(COMPILATIONS)
        assert warm > start, "the count does not see compilations"
        traced = len(traces)
        for x in (draw(8, 3), draw(3, 8).T, draw(16, 6)[::2, :3], draw(1, 3).expand(8, 3), draw(25)[1:].view(8, 3)):
            call(x, draw(8, 2))
        assert len(COMPILATIONS) == warm
        assert len(traces) == traced

    def test_none_for_unusual_strides_of_a_size_one_axis(self):
        op = from_jax(lambda x: 3.0 * x)
        op(draw(1, 7).reshape(7, 1))
        warm = len(COMPILATIONS)
        x = draw(1, 7).T
        assert x.stride() == (1, 7) and x.is_contiguous()
        op(x)
        assert len(COMPILATIONS) == warm


class TestMemoryIsNotShared:
    def test_identity(self):
        x = draw(4, 3)
        kept = x.clone()
        from_jax(lambda x: x)(x).zero_()
        assert torch.equal(x, kept)

    def test_equal_gradients_of_a_sum(self):
        a, b, cotangent = draw(4, 3, grad=True), draw(4, 3, grad=True), draw(4, 3)
        kept = cotangent.clone()
        by_a, by_b = torch.autograd.grad(from_jax(lambda a, b: a + b)(a, b), (a, b), cotangent)
        by_a.zero_()
        assert torch.equal(by_b, kept) and torch.equal(cotangent, kept)

    def test_constant_output(self):
        with x64():
            constant = jnp.ones((4, 3))
        op = from_jax(lambda x: constant)
        op(draw(4, 3)).zero_()
        assert (op(draw(4, 3)) == 1.0).all() and np.array_equal(constant, np.ones((4, 3)))

    def test_output_outlives_everything_else(self):
        x = draw(64, 3)
        y = from_jax(lambda x: 2.0 * x)(x)
        expected = 2.0 * x
        del x
        zero = from_jax(lambda x: 0.0 * x)
        for _ in range(50):
            zero(draw(64, 3))
        assert torch.equal(y, expected)


RACE = """
import jax
import jax.numpy as jnp
jnp.zeros(1).block_until_ready()  # the backend starts with asynchronous dispatch, before the bridge is imported
import torch
from mage_diffsim.bridges import from_jax
slow = from_jax(lambda x: jax.lax.fori_loop(0, 40, lambda _, y: 0.5 * (y + jnp.tanh(y @ y)), x))
x = torch.eye(400, dtype=torch.float64)
expected = slow(x).clone()
for _ in range(3):
    y = x.clone()
    z = slow(y)
    y.fill_(99.0)
    assert torch.equal(z, expected)
"""


def test_no_race_with_asynchronous_dispatch():
    """Editing the input right after the call, in a process where JAX returns before it has computed."""
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(MissingExtra, match=r"jax is not installed: pip install -e '\.\[mjx\]' in the project's folder"):
        load_jax.__wrapped__()


@pytest.mark.gpu
class TestCuda:
    """What only a GPU can show."""

    def setup_method(self):
        if jax.default_backend() != "gpu":
            pytest.skip("JAX has no CUDA plugin here")

    def test_parity_with_torch_and_results_on_the_device(self):
        x, u = draw(5, 3).cuda(), draw(5, 2).cuda().requires_grad_()
        y = from_jax(smooth)(x, u)
        (by_u,) = torch.autograd.grad(y.sum(), u)
        expected = x.sin() * u[:, :1].exp() + x**2 * u[:, 1:]
        assert y.device == by_u.device == x.device
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(by_u, torch.autograd.grad(expected.sum(), u)[0], rtol=1e-12, atol=1e-12)

    def test_inputs_cross_as_views(self):
        x = draw(16, 3).cuda()
        assert to_jax(x).unsafe_buffer_pointer() == x.data_ptr()

    def test_unaligned_memory_is_copied(self):
        x = draw(13).cuda()[1:]
        assert x.data_ptr() % 16
        torch.testing.assert_close(from_jax(lambda x: 2.0 * x)(x), 2.0 * x)

    def test_side_stream_with_a_delay(self):
        """The input is written late, on a stream of the caller's, and overwritten right after the call."""
        op = from_jax(lambda x: 2.0 * x)
        op(torch.ones(1 << 20, device="cuda"))
        stream = torch.cuda.Stream()
        x = torch.zeros(1 << 20, device="cuda")
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(100_000_000)
            x.fill_(3.0)
            y = op(x)
            x.fill_(99.0)
            late = y + 0.0
        stream.synchronize()
        assert (late == 6.0).all()

    @pytest.mark.parametrize("source", SOURCES, ids=lambda s: "-".join(s.values()))
    def test_a_call_does_not_make_the_host_wait(self, source):
        """The stream is still busy with what was in it before the call when the call returns."""
        op = from_jax(smooth, **source)
        x, u = draw(5, 3).cuda(), draw(5, 2).cuda().requires_grad_()
        (expected,) = torch.autograd.grad(op(x, u).sum(), u)
        torch.cuda.synchronize()
        torch.cuda._sleep(4_000_000_000)  # two seconds
        before = torch.cuda.Event()
        before.record()
        (by_u,) = torch.autograd.grad(op(x, u).sum(), u)
        assert not before.query()
        assert torch.equal(by_u, expected)

    @pytest.mark.parametrize("source", SOURCES, ids=lambda s: "-".join(s.values()))
    def test_inputs_that_are_freed_are_still_read(self, source):
        """Their memory goes to the next tensors, which are filled while JAX may not have begun."""
        op = from_jax(smooth, **source)
        rows = 1 << 16
        u = torch.ones(rows, 2, device="cuda", dtype=torch.float64, requires_grad=True)
        op(torch.ones(rows, 3, device="cuda", dtype=torch.float64), u.detach())
        torch.cuda.synchronize()
        x = torch.ones(rows, 3, device="cuda", dtype=torch.float64)
        address = x.data_ptr()
        torch.cuda._sleep(100_000_000)
        y = op(x, u.detach())
        del x
        others = [torch.full((rows, 3), 9.0, device="cuda", dtype=torch.float64) for _ in range(4)]
        assert address in [other.data_ptr() for other in others]
        torch.testing.assert_close(y, torch.full_like(y, math.sin(1.0) * math.e + 1.0))

    def test_dropped_outputs_are_not_overwritten_while_still_read(self):
        op = from_jax(lambda x: x + 1.0)
        x = torch.zeros(1 << 20, device="cuda")
        reader = torch.cuda.Stream()
        y = op(x)
        reader.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(reader):
            torch.cuda._sleep(100_000_000)
            y.record_stream(reader)
            late = y.clone()
        del y
        for k in range(20):
            op(torch.full_like(x, float(k)))
        reader.synchronize()
        assert (late == 1.0).all()

    def test_memory_peak_is_flat(self):
        op = from_jax(smooth)
        x, u = draw(1 << 16, 3).cuda(), draw(1 << 16, 2).cuda().requires_grad_()

        def used() -> int:
            """The most bytes that the allocators of this process, torch's and JAX's, have held on the device."""
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() + jax.devices("gpu")[0].memory_stats()["peak_bytes_in_use"]

        for _ in range(20):
            torch.autograd.grad(op(x, u).sum(), u)
        before = used()
        for _ in range(500):
            torch.autograd.grad(op(x, u).sum(), u)
        assert used() - before < 8e6  # 500 inputs or outputs that stay would be 500 MB or more

    def test_tensor_off_the_current_device(self):
        if torch.cuda.device_count() < 2:
            pytest.skip("needs two CUDA devices")
        x = draw(4, 3).to("cuda:1")
        assert torch.equal(from_jax(lambda x: 2.0 * x)(x), 2.0 * x)
