"""Section physics: how long do one physics step and its derivative take?"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from rich.console import Console

from mage_diffsim.devices import torch_device
from mage_diffsim.envs.differences import jacobian_of
from mage_diffsim.envs.physics import Physics, make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.sampling import sample_states
from mage_diffsim.errors import InputError, MissingExtra, reason_of
from mage_diffsim.experiments.timing import interleaved
from throughput_sections.options import Options
from throughput_sections.rows import Failed, Row, row
from throughput_sections.sources import left_out, name_of, sources_of

VISITED = 1024
"""States that are rolled out; larger batches repeat them."""
LARGEST = {"mujoco-warp": 8192, "mjx": 1024}
"""Most worlds of backends that are measured with --quick on a GPU: their memory, or the time that they compile."""
SLOW_TO_COMPILE = ("mjx",)
"""Backends that are begun in the first half of the time only, where it is limited."""


def measure_physics(options: Options, console: Console) -> Iterator[Row]:
    """Times one step of N visited states on every derivative source, in turns.

    A step is timed alone, with its pull-back to the action, and with the whole action-Jacobian, which takes as many
    pull-backs as the state has components. With --quick on a GPU every backend is measured on its own, and what fails
    or has no time is named.

    Raises:
        Failed: a result is not finite, or a pull-back is not that of the Jacobian; with --quick on a GPU, a backend
            failed, and the others are measured.
    """
    if options.quick and options.on_a_gpu:
        yield from measure_apart(options, console)
        return
    for task in options.task_names():
        sources = make_sources(task, options, sources_of(task, options, console), console)
        for n in options.batch_sizes():
            yield from measure_sources(options, task, sources, n)


def measure_apart(options: Options, console: Console) -> Iterator[Row]:
    """Times every backend on its own, at its default derivative source, Warp first."""
    skipped: list[str] = []
    failed: list[str] = []
    for backend, task in itertools.product(options.backends or ("warp", "mujoco-warp", "mjx"), options.task_names()):
        found = [s for s in sources_of(task, options, console) if s[0] == backend][:1]
        what = f"{task} {backend}"
        if not found or (backend == "mjx" and task != options.task_names()[0]):
            continue
        if options.used_up(0.5 if backend in SLOW_TO_COMPILE else 1.0):
            skipped.append(what)
            continue
        try:
            sources = make_sources(task, options, found, console)
            for n in options.batch_sizes() if sources else ():
                if n <= LARGEST.get(backend, n):
                    yield from measure_sources(options, task, sources, n)
        except Exception as error:
            failed.append(what)
            console.print(f"{what} failed ({type(error).__name__}): {reason_of(error)}", highlight=False, markup=False)
    if skipped:
        console.print(f"left out for want of time: {'; '.join(skipped)}", highlight=False)
    if failed:
        raise Failed(f"{len(failed)} backends, the first {failed[0]}")


def make_sources(
    task: str, options: Options, sources: Iterable[tuple[str, str, str]], console: Console
) -> dict[str, tuple[Physics, float]]:
    """Returns the physics of (backend, derivative source, residual policy) in the chosen precisions, and the seconds
    that making them took."""
    made: dict[str, tuple[Physics, float]] = {}
    for backend, derivative, residuals in sources:
        for dtype in options.dtypes:
            settings: dict[str, Any] = dict(derivative=derivative, residuals=residuals, device=options.device)
            start = time.perf_counter()
            try:
                physics = make_physics(make_task(task), backend, dtype=getattr(torch, dtype), **settings)
            except (InputError, MissingExtra) as error:
                left_out(task, backend, error, console)
                continue
            made[f"{name_of(physics)} {dtype}"] = physics, time.perf_counter() - start
    return made


@functools.cache
def visited(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns VISITED states and actions, float64 on the CPU: the same for every source and number of worlds."""
    sample = sample_states(make_physics(make_task(task), dtype=torch.float64), VISITED, ways=("uniform",), steps=40)
    return sample.state, sample.action


def measure_sources(options: Options, task: str, sources: Mapping[str, tuple[Physics, float]], n: int) -> Iterator[Row]:
    """Times all sources at one size, compared with the first. Making a physics counts as its first call.

    Raises:
        Failed: a result is not finite, or a pull-back is not that of the Jacobian.
    """
    states, actions = (x.repeat(-(-n // VISITED), 1)[:n] for x in visited(task))
    functions: dict[str, Callable[[], torch.Tensor]] = {}
    for name, (physics, _) in sources.items():
        state, action = states.to(physics.device, physics.dtype), actions.to(physics.device, physics.dtype)

        def forward(physics=physics, state=state, action=action) -> torch.Tensor:
            with torch.no_grad():
                return physics.step(state, action)

        def pull_back(physics=physics, state=state, action=action) -> torch.Tensor:
            leaf = action.clone().requires_grad_()
            return torch.autograd.grad(physics.step(state, leaf).sum(), leaf)[0]

        def jacobian(physics=physics, state=state, action=action) -> torch.Tensor:
            return jacobian_of(lambda a: physics.step(state, a), action)

        functions |= {f"{name}: forward": forward, f"{name}: VJP": pull_back}
        if options.jacobians:
            functions[f"{name}: action-Jacobian"] = jacobian
    found = interleaved(functions, options.rounds(task), torch_device(options.device), until=options.until)
    first = next(iter(sources), "")
    for key, times in found.items():
        name, what = key.split(": ")
        value = functions[key]()
        if not value.isfinite().all():
            raise Failed(f"{task} {key}: not finite")
        check = "finite"
        if what == "action-Jacobian":  # the pull-back of ones is its sum over outputs
            whole, pulled = value.sum(dim=1), functions[f"{name}: VJP"]()
            apart = float((whole - pulled).abs().max() / whole.abs().max().clamp(min=1e-8))
            if not apart < 1e-3:
                raise Failed(f"{task} {name}: VJP and Jacobian are {apart:.1e} apart")
            check = f"finite; VJP and Jacobian {apart:.0e} apart"
        if what == "forward":
            times = times._replace(first_s=times.first_s + sources[name][1])
        against = (first, found[f"{first}: {what}"]) if name != first else None
        yield row("physics", f"{task} {what}", name, times, unit="batch", size=n, count=n, against=against, check=check)
