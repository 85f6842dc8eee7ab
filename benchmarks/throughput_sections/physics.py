"""Section physics: how long do one physics step and its derivative take?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from rich.console import Console

from mage_diffsim.devices import torch_device
from mage_diffsim.envs.differences import jacobian_of
from mage_diffsim.envs.physics import Physics, make_physics
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.sampling import sample_states
from mage_diffsim.errors import InputError, MissingExtra
from mage_diffsim.experiments.timing import interleaved
from throughput_sections.options import Options
from throughput_sections.rows import Failed, Row, row
from throughput_sections.sources import left_out, name_of, sources_of


def measure_physics(options: Options, console: Console) -> Iterator[Row]:
    """Times one step of N visited states on every derivative source, in turns.

    A step is timed alone, with its pull-back to the action, and with the whole action-Jacobian, which takes as many
    pull-backs as the state has components.
    """
    device = torch_device(options.device)
    for task in options.task_names():
        sources: dict[str, tuple[Physics, float]] = {}
        for backend, derivative, residuals in sources_of(task, options, console):
            for dtype in options.dtypes:
                settings: dict[str, Any] = dict(derivative=derivative, residuals=residuals, device=device)
                start = time.perf_counter()
                try:
                    physics = make_physics(make_task(task), backend, dtype=getattr(torch, dtype), **settings)
                except (InputError, MissingExtra) as error:
                    left_out(task, backend, error, console)
                    continue
                sources[f"{name_of(physics)} {dtype}"] = physics, time.perf_counter() - start
        for n in options.batch_sizes():
            yield from measure_sources(options, task, sources, n)


def measure_sources(options: Options, task: str, sources: Mapping[str, tuple[Physics, float]], n: int) -> Iterator[Row]:
    """Times all sources at one size, compared with the first. Making a physics counts as its first call.

    Raises:
        Failed: a result is not finite, or a pull-back is not that of the Jacobian.
    """
    sample = sample_states(make_physics(make_task(task), dtype=torch.float64), n, ways=("uniform",), steps=40)
    functions: dict[str, Callable[[], torch.Tensor]] = {}
    for name, (physics, _) in sources.items():
        state = sample.state.to(physics.device, physics.dtype)
        action = sample.action.to(state)

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
    found = interleaved(functions, options.rounds(task), torch_device(options.device))
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
