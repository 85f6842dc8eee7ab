"""Section bridges: what does a bridge cost beyond the pure framework call?"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.console import Console

from mage_diffsim.bridges import from_jax, from_warp
from mage_diffsim.bridges.jax import load_jax
from mage_diffsim.bridges.warp import kernel, load_warp
from mage_diffsim.devices import torch_device
from mage_diffsim.errors import MissingExtra
from mage_diffsim.experiments.timing import Times, interleaved, memory_growth, percentile
from throughput_sections.options import Options
from throughput_sections.rows import Failed, Row, row

CALLS = 5000
"""Number of calls of a bridge over which memory is watched."""
LEAK_MIB = 32.0
"""Growth over :data:`CALLS` calls that counts as a leak. An allocator's own changes stay below."""
ROWS, COLUMNS = 1024, 18
"""Shape of the batch."""


def measure_bridges(options: Options, console: Console) -> Iterator[Row]:
    """Times JAX and Warp as torch functions, against the pure calls, an empty Function and a bridge without jit."""
    device = torch_device(options.device)
    x = torch.randn(ROWS, COLUMNS, device=device)
    for measure in (measure_jax_bridge, measure_warp_bridge):
        try:
            yield from measure(x, options)
        except MissingExtra as error:
            console.print(f"{measure.__name__} is left out: {error}", highlight=False, markup=False)


class Empty(torch.autograd.Function):
    """Does nothing. Its time is what torch takes for any autograd Function."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> torch.Tensor:
        return cotangents[0]


def forward_backward(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Returns a function that calls ``function`` on x and pulls ones back."""
    ones = torch.ones_like(x)

    def run() -> torch.Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf, ones)[0]

    return run


def times_100(function: Callable[[], object]) -> Callable[[], None]:
    """Returns a function that calls ``function`` a hundred times."""

    def run() -> None:
        for _ in range(100):
            function()

    return run


def bridge_rows(
    name: str, functions: dict[str, Callable[[], object]], options: Options, device: torch.device, check: str
) -> Iterator[Row]:
    """Times a bridge's variants, and derives its overhead over the pure call."""
    rounds = options.repeats or (5 if options.quick else 20)
    found = interleaved({k: times_100(f) for k, f in functions.items()}, rounds, device, until=options.until)
    for variant, times in found.items():
        against = ("bridge", found["bridge, forward + backward"]) if variant.startswith("un-jitted") else None
        yield row("bridges", name, variant, times, unit="call", size=ROWS, calls=100, against=against, check=check)
    bridge, pure, empty = (found[k] for k in ("bridge, forward + backward", "pure, forward + backward",
                                              "empty torch Function"))  # fmt: skip
    differences = tuple(b - p for b, p in zip(bridge.rounds, pure.rounds, strict=True))
    ratio = statistics.median(differences) / statistics.median(empty.rounds)
    check = f"{ratio:.1f} times an empty Function; {check}"
    overhead = Times(
        percentile(differences, 0.5), percentile(differences, 0.95), 0.0, differences, bridge.faults - pure.faults,
        bridge.peak_mib,
    )  # fmt: skip
    yield row("bridges", name, "overhead (bridge - pure)", overhead, unit="call", size=ROWS, calls=100,
              against=("empty torch Function", empty), check=check)  # fmt: skip


def growth_mib(function: Callable[[], object]) -> float:
    """Returns by how much memory grew over CALLS calls [MiB], or NaN where the system does not say."""
    return memory_growth(function, CALLS) / 2**20 if sys.platform.startswith("linux") else math.nan


def measure_jax_bridge(x: torch.Tensor, options: Options) -> Iterator[Row]:
    """Times tanh(sin(x) * x) through the bridge, in JAX alone, and through a bridge without jit.

    Raises:
        Failed: the gradient is wrong, the bridge compiles anew, or it leaks.
    """
    jax = load_jax()

    def f(x: Any) -> Any:
        return jax.numpy.tanh(jax.numpy.sin(x) * x)

    op = from_jax(f, name="f")
    jitted = jax.jit(f)
    pull_back = jax.jit(lambda x, ct: jax.vjp(f, x)[1](ct)[0])
    array = jax.dlpack.from_dlpack(x)
    ones = jax.numpy.ones_like(array)

    class Unjitted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            y, ctx.pull_back = jax.vjp(f, jax.dlpack.from_dlpack(x.detach()))
            return torch.from_dlpack(y)

        @staticmethod
        def backward(ctx: Any, *cotangents: torch.Tensor) -> torch.Tensor:
            (gradient,) = ctx.pull_back(jax.dlpack.from_dlpack(cotangents[0].contiguous()))
            return torch.from_dlpack(gradient)

    functions: dict[str, Callable[[], object]] = {
        "pure, forward": lambda: jitted(array).block_until_ready(),
        "pure, forward + backward": lambda: (jitted(array), pull_back(array, ones).block_until_ready()),
        "bridge, forward": lambda: op(x),
        "bridge, forward + backward": forward_backward(op, x),
        "un-jitted jax.vjp bridge": forward_backward(lambda x: Unjitted.apply(x), x),
        "empty torch Function": forward_backward(lambda x: Empty.apply(x), x),
    }
    leaf = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(torch.tanh(leaf.sin() * leaf).sum(), leaf)
    error = float((functions["bridge, forward + backward"]() - expected).abs().max())  # type: ignore[operator]
    if not error < 1e-5:
        raise Failed(f"the gradient of the JAX bridge is off by {error:.1e}")
    compilations: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **more: compilations.append(event) if "backend_compile" in event else None
    )
    grown = growth_mib(functions["bridge, forward + backward"])
    if compilations or grown > LEAK_MIB:
        raise Failed(f"the JAX bridge compiled {len(compilations)} times and grew by {grown:.1f} MiB in {CALLS} calls")
    check = f"gradient {error:.0e}; {grown:+.1f} MiB and no compilation in {CALLS} calls"
    yield from bridge_rows("JAX", functions, options, x.device, check)


def measure_warp_bridge(x: torch.Tensor, options: Options) -> Iterator[Row]:
    """Times sin(x) through the bridge, and its two kernels launched alone.

    Raises:
        Failed: the gradient is wrong, or the bridge leaks.
    """
    wp = load_warp()

    @kernel
    def forward(x: wp.array2d(dtype=float), y: wp.array2d(dtype=float)):  # type: ignore[valid-type]
        i = wp.tid()
        for j in range(x.shape[1]):
            y[i, j] = wp.sin(x[i, j])

    @kernel
    def adjoint(x: wp.array2d(dtype=float), ct: wp.array2d(dtype=float), g: wp.array2d(dtype=float)):  # type: ignore[valid-type]
        i = wp.tid()
        for j in range(x.shape[1]):
            g[i, j] = ct[i, j] * wp.cos(x[i, j])

    op = from_warp(forward, adjoint, dtype=torch.float32, output_dim=COLUMNS)
    output, ones, gradient = torch.empty_like(x), torch.ones_like(x), torch.empty_like(x)
    arrays = [wp.from_torch(t) for t in (x, output, ones, gradient)]
    device = wp.device_from_torch(x.device)

    def pure_forward() -> None:
        wp.launch(forward, dim=ROWS, inputs=arrays[:2], device=device)

    def pure_both() -> None:
        pure_forward()
        wp.launch(adjoint, dim=ROWS, inputs=[arrays[0], *arrays[2:]], device=device)

    functions: dict[str, Callable[[], object]] = {
        "pure, forward": pure_forward,
        "pure, forward + backward": pure_both,
        "bridge, forward": lambda: op(x),
        "bridge, forward + backward": forward_backward(op, x),
        "empty torch Function": forward_backward(lambda x: Empty.apply(x), x),
    }
    error = float((forward_backward(op, x)() - x.cos()).abs().max())
    if not error < 1e-5:
        raise Failed(f"the gradient of the Warp bridge is off by {error:.1e}")
    grown = growth_mib(functions["bridge, forward + backward"])
    if grown > LEAK_MIB:
        raise Failed(f"the Warp bridge grew by {grown:.1f} MiB in {CALLS} calls")
    check = f"gradient {error:.0e}; {grown:+.1f} MiB in {CALLS} calls"
    yield from bridge_rows("Warp", functions, options, x.device, check)
