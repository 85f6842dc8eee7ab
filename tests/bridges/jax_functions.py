"""JAX functions behind the bridge, and a count of what JAX compiles."""

from __future__ import annotations

import pytest
import torch

jax = pytest.importorskip("jax")

jnp = jax.numpy
SOURCES = [dict(derivative=d, residuals=r) for d in ("vjp", "jvp") for r in ("recompute", "keep")]
COMPILATIONS: list[str] = []


def _record(event: str, duration: float, **_: object) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILATIONS.append(event)


jax.monitoring.register_event_duration_secs_listener(_record)


def smooth(x, u):
    return jnp.sin(x) * jnp.exp(u[:, :1]) + x**2 * u[:, 1:]


def draw(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(grad)
