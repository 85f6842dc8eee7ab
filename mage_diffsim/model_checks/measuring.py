"""Measures one backend on one model: compilation, agreement with MuJoCo C, states that are not finite, speed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mage_diffsim.bridges.jax import jax_compilations
from mage_diffsim.bridges.warp import load_warp
from mage_diffsim.display import show_log
from mage_diffsim.envs.checks import Tolerances
from mage_diffsim.envs.physics import BACKENDS, SOLVERS, Physics, load, make_physics, step_of
from mage_diffsim.envs.sampling import actions_inside
from mage_diffsim.errors import TooLarge
from mage_diffsim.experiments import timing
from mage_diffsim.model_checks.apart import peak_mib
from mage_diffsim.model_checks.comparing import BLOCKS, compare
from mage_diffsim.model_checks.coverage import TOO_LARGE
from mage_diffsim.model_checks.finding import reason_of, task_of
from mage_diffsim.model_checks.reference import Points, Reference
from mage_diffsim.model_checks.visiting import visit
from mage_diffsim.shapes import Bool, Float, Tensor

DTYPES = {"float64": torch.float64, "float32": torch.float32}
SOAK_ROWS = 4096
"""Worlds side by side that visit many states."""
ROUNDS, PATIENCE_S = 31, 20.0
"""Rounds of timing, and seconds after which no further one begins."""


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    states: int = 48
    """Visited states at which values and derivatives are compared."""
    worlds: int = 1024
    """Worlds of the timed steps; 0 leaves timing out."""
    soak: int = 0
    """States that are visited besides, to find values and gradients that are not finite."""
    dtype: Literal["float64", "float32"] = "float64"
    derivative: str | None = None
    """Derivative source; None is the backend's default."""
    device: str = "cpu"
    threads: int = 1
    """CPU threads of the backend and of MuJoCo C."""
    seed: int = 0
    cache: str | None = None
    """Folder for compiled kernels; None is the user's."""


def measure(path: Path, backend: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """Yields what is found, one part after the other; run it in a process of its own, whose memory it measures.

    A model that turns out to be too large is a part with its ``status`` and ``in_the_way``.

    Raises:
        InputError, MissingExtra: the backend refuses the model, the derivative source, the dtype or the device.
    """
    if settings.cache is not None:
        os.environ["WARP_CACHE_PATH"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = settings.cache
    torch.set_num_threads(settings.threads)
    try:
        physics, compilation = compile_physics(path, backend, settings)
    except TooLarge as error:  # known only when its code is written
        yield {"status": f"refused: {reason_of(error, path)}", "in_the_way": f"{TOO_LARGE} (1)"}
        return
    found = dict(compilation)
    yield compilation
    reference = Reference(path)
    points = reference.visited(settings.states, np.random.default_rng(settings.seed))
    ill = reference.ill_posed(points).numpy()
    yield {"ill_posed": int(ill.sum())}
    if ill.all():
        yield {"status": "unjudged: rounding errors change MuJoCo C's own step from every visited state"}
        return
    points = Points(points.state[~ill], points.action[~ill])
    value = torch.from_numpy(reference.step(points))
    inexactness, exact = reference.inexactness(points), _exact_step(physics)
    truths = reference.truth(points, exact)
    agreement = compare(physics, points.joined(), value, inexactness, truths, reference.tangents(points))
    found |= agreement
    yield agreement
    start = torch.from_numpy(points.state)[value.isfinite().all(1)]
    if settings.soak:
        soak = _soak(physics, start, reference, settings)
        found |= soak
        yield soak
    if settings.worlds and len(start):
        yield _speed(physics, start, settings)
    yield {"status": verdict(found, Tolerances.of(physics.task, physics.dtype), physics)}


def compile_physics(path: Path, backend: str, settings: Settings) -> tuple[Physics, dict[str, Any]]:
    """Makes the physics and takes one step with its derivative; returns it, and what that cost.

    ``cached`` says whether what had to be compiled lay on disk; it is None where a backend compiles nothing.
    """
    task, said = task_of(path), []
    load(BACKENDS[backend]).check_covers(task)
    if backend == "warp":
        load_warp()  # imports are no part of the cost
    options: dict[str, Any] = dict(dtype=DTYPES[settings.dtype], device=settings.device, derivative=settings.derivative)
    with jax_compilations() if backend == "mjx" else contextlib.nullcontext() as compiled, show_log(said.append):
        began, used = time.perf_counter(), time.process_time()
        physics = make_physics(task, backend, **options)
        rows = settings.worlds or settings.states
        state = physics.reset(rows, torch.Generator().manual_seed(settings.seed))
        action = torch.zeros(rows, task.action_dim, dtype=physics.dtype, device=physics.device, requires_grad=True)
        physics.step(state, action).sum().backward()
        wall, cpu = time.perf_counter() - began, time.process_time() - used
    said = [text for text in said if text.startswith("compiling")] if compiled is None else compiled
    cost = {"compile_s": wall, "compile_cpu_s": cpu, "compile_mib": peak_mib()}
    return physics, {"derivative": physics.derivative, "cached": None if backend == "mujoco" else not said} | cost


def _exact_step(physics: Physics) -> Callable[[Points], np.ndarray] | None:
    """The backend's own step in float64, if its contacts are exact."""
    if physics.backend != "warp":
        return None
    if physics.dtype != torch.float64:
        physics = make_physics(physics.task, physics.backend, dtype=torch.float64, device=physics.device)
    step = step_of(physics)
    return lambda points: step(points.joined().to(physics.device)).cpu().numpy()


def _soak(physics: Physics, start: Float[Tensor, "M S"], reference: Reference, settings: Settings) -> dict[str, Any]:
    lost = 0

    def diverges(state: Tensor, action: Tensor) -> Bool[Tensor, " K"]:
        """Where MuJoCo C diverges, too."""
        nonlocal lost
        rows = reference.step(Points(state.double().cpu().numpy(), action.double().cpu().numpy()))
        found = ~torch.from_numpy(rows).isfinite().all(1)
        lost += int(found.sum())
        return found.to(state.device)

    rows = min(SOAK_ROWS, settings.soak)
    visits = visit(
        physics, settings.soak, rows=rows, seed=settings.seed, start=start if len(start) else None, diverges=diverges
    )
    return {
        "soak_states": visits.states,
        "soak_nonfinite_values": visits.nonfinite_values,
        "soak_nonfinite_gradients": visits.nonfinite_gradients,
        "soak_diverged_in_c": lost,
    }


def _speed(physics: Physics, start: Float[Tensor, "M S"], settings: Settings) -> dict[str, Any]:
    """Times a step, a step with its pull-back, and steps of MuJoCo C on the same threads, in turns."""
    task, n = physics.task, settings.worlds
    states = start[torch.arange(n) % len(start)]
    actions = actions_inside(n, task.action_dim, torch.Generator().manual_seed(settings.seed))
    there = states.to(physics.device, physics.dtype), actions.to(physics.device, physics.dtype)
    in_c = {solver: make_physics(task, "mujoco", dtype=torch.float64, solver=solver) for solver in SOLVERS}

    def step() -> None:
        with torch.no_grad():
            physics.step(*there)

    def step_vjp() -> None:
        state, action = (x.clone().requires_grad_() for x in there)
        torch.autograd.grad(physics.step(state, action).sum(), (state, action))

    def step_of_c(solver: str) -> None:
        with torch.no_grad():
            in_c[solver].step(states, actions)

    functions = {
        "step_ms": step,
        "step_vjp_ms": step_vjp,
        "c_step_ms": lambda: step_of_c("model"),
        "c_converged_ms": lambda: step_of_c("converged"),
    }
    until = time.monotonic() + PATIENCE_S
    taken = timing.interleaved(functions, ROUNDS, physics.device, until=until)
    return {"worlds": n} | {name: 1e3 * times.median_s for name, times in taken.items()}


def verdict(found: Mapping[str, Any], accepted: Tolerances, physics: Physics) -> str:
    """``right``, ``wrong: ...`` or ``unjudged: ...``, from what was found.

    The worst value counts, beyond MuJoCo C's own error. In float64 the worst clean derivative counts, beyond the error
    of the differences that it is compared with; in float32 it is the median one. What a derivative source does wrong by
    design is accepted.
    """
    wrong = [f"{found[key]} {what} not finite" for key, what in NONFINITE.items() if found.get(key)]
    checks = {"value_beyond": ("values", accepted.agreement)}
    for block in BLOCKS:
        key = f"{block}_beyond" if physics.dtype == torch.float64 else f"{block}_median"
        bound = max(accepted.gradient, physics.accuracy.get(physics.derivative, 0.0))
        checks[key] = (f"derivatives by {block}", bound)
    for key, (what, bound) in checks.items():
        if found.get(key, 0.0) > bound:
            wrong.append(f"{what} {found[key]:.1e} off, accepted is {bound:.0e}")
    if wrong:
        return f"wrong: {', '.join(wrong)}"
    if not found["count"]:
        return "unjudged: MuJoCo C diverges from every visited state"
    if not any(found.get(f"{block}_clean") for block in BLOCKS):
        return "unjudged: every visited state has a kink"
    return "right"


NONFINITE = {
    "nonfinite_values": "values",
    "nonfinite_gradients": "gradients",
    "soak_nonfinite_values": "values of the soak",
    "soak_nonfinite_gradients": "gradients of the soak",
}
"""Columns that count what is not finite, in words."""
