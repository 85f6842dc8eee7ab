"""The same function of rows behind every kind of bridge, to be compared with torch's own autograd."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mage_diffsim.bridges import ColumnsOp, FiniteDifference, Op, from_jax, from_warp

KINDS = ("plain", "jax-vjp", "jax-vjp-keep", "jax-jvp", "jax-jvp-keep", "warp", "columns", "fd")


def reference(x: Tensor, u: Tensor) -> Tensor:
    """y = sin(x) exp(u0) + x^2 u1, x [N, 3], u [N, 2]; its derivatives by hand are in the kinds below."""
    return x.sin() * u[:, :1].exp() + x.square() * u[:, 1:]


def columns(x: Tensor, u: Tensor) -> Tensor:
    """d y / d u, shape [N, 3, 2]."""
    return torch.stack((x.sin() * u[:, :1].exp(), x.square()), dim=-1)


class PlainOp(Op):
    """The derivative written in torch, without any other framework."""

    name = "plain"

    def forward(self, *inputs: Tensor) -> Tensor:
        return reference(*inputs)

    def vjp(self, inputs: tuple[Tensor, ...], cotangent: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        x, u = inputs
        by_x = cotangent * (x.cos() * u[:, :1].exp() + 2.0 * x * u[:, 1:])
        by_u = torch.einsum("nk,nka->na", cotangent, columns(x, u))
        return by_x if needs[0] else None, by_u if needs[1] else None


def _jax(kind: str) -> Op:
    jnp = pytest.importorskip("jax").numpy
    _, derivative, *keep = kind.split("-")
    source = {"derivative": derivative, "residuals": "keep" if keep else "recompute"}
    return from_jax(lambda x, u: jnp.sin(x) * jnp.exp(u[:, :1]) + x**2 * u[:, 1:], **source, name=kind)


def _warp(dtype: torch.dtype) -> Op:
    wp = pytest.importorskip("warp")
    from mage_diffsim.bridges.warp import kernel

    real = wp.float64 if dtype == torch.float64 else wp.float32

    @kernel
    def forward(x: wp.array2d(dtype=real), u: wp.array2d(dtype=real), two: real, y: wp.array2d(dtype=real)):
        n = wp.tid()
        for k in range(3):
            y[n, k] = wp.sin(x[n, k]) * wp.exp(u[n, 0]) + x[n, k] * x[n, k] * u[n, 1]

    @kernel
    def adjoint(
        x: wp.array2d(dtype=real),
        u: wp.array2d(dtype=real),
        two: real,
        cotangent: wp.array2d(dtype=real),
        by_x: wp.array2d(dtype=real),
        by_u: wp.array2d(dtype=real),
    ):
        n = wp.tid()
        for k in range(3):
            by_x[n, k] = cotangent[n, k] * (wp.cos(x[n, k]) * wp.exp(u[n, 0]) + two * x[n, k] * u[n, 1])
            by_u[n, 0] += cotangent[n, k] * wp.sin(x[n, k]) * wp.exp(u[n, 0])
            by_u[n, 1] += cotangent[n, k] * x[n, k] * x[n, k]

    return from_warp(forward, adjoint, dtype=dtype, output_dim=3, constants=(2.0,), name="warp")


@functools.cache
def build(kind: str, dtype: torch.dtype = torch.float64) -> Op:
    """The operation of one kind, made once per test process (compilation is most of the time)."""
    if kind == "plain":
        return PlainOp()
    if kind.startswith("jax"):
        return _jax(kind)
    if kind == "warp":
        return _warp(dtype)
    if kind == "columns":
        return ColumnsOp(reference, columns, others="fd", name=kind)
    return FiniteDifference(reference, name=kind)


@pytest.fixture
def make_op() -> Callable[..., Op]:
    """``make_op(kind, dtype=float64)``."""
    return build


@pytest.fixture
def truth() -> Callable[[Tensor, Tensor], Tensor]:
    """The function in plain torch."""
    return reference


@pytest.fixture(params=KINDS)
def op(request: pytest.FixtureRequest) -> Op:
    """Every kind, in float64."""
    return build(request.param)


@pytest.fixture
def close(op: Op) -> Callable[[Tensor, Tensor], bool]:
    """Equal up to rounding, or up to the truncation of central differences where those are what is asked for."""
    tolerance = 1e-8 if op.name in ("fd", "columns") else 1e-13

    def compare(a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and torch.allclose(a, b, rtol=tolerance, atol=tolerance)

    return compare


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    """x [4, 3] and u [4, 2], float64, both requiring a gradient."""
    generator = torch.Generator().manual_seed(0)
    x, u = (torch.randn(4, k, dtype=torch.float64, generator=generator) for k in (3, 2))
    return x.requires_grad_(), u.requires_grad_()


@pytest.fixture
def without_x64():
    """64-bit types are off in JAX, as it comes and as most users have it, and still off after the test."""
    from mage_diffsim.bridges.jax import load_jax

    assert not load_jax().config.jax_enable_x64
    yield
    assert not load_jax().config.jax_enable_x64


@pytest.fixture
def wide(without_x64):
    """64-bit types are on in the test's own JAX."""
    from mage_diffsim.bridges.jax import x64

    with x64():
        yield
