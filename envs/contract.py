"""The contract of a task: everything the learner relies on, checked on every backend.

>>> report = check_task("Pendulum")
>>> report.passed, [row for row in report.rows() if row[1] != "passed"]

Each *subject* (``reset``, ``observe``, ``reward``, ``terminated`` and one ``step`` per backend and derivative source)
goes through the same checks: shapes and types, finite values, determinism, independence of the rows of a batch, no
change of inputs, gradients against central differences, finite gradients at degenerate points.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

import torch

from mage_diffsim.envs.checks import (
    ROUNDING,
    Check,
    Differences,
    Outcome,
    Subject,
    all_finite,
    check_kinds,
    check_reset,
    check_values,
    closeness,
    finite_differences,
    jacobian_of,
    row_text,
    run_check,
)
from mage_diffsim.envs.coverage import (
    Coverage,
    check_states,
    coverage,
    pick,
    spread_out,
    steps_within_budget,
)
from mage_diffsim.envs.mujoco.convergence import settings_text, solver_gap
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import BACKENDS, SOLVERS, Physics, backends_of, load, make_physics
from mage_diffsim.envs.registry import check_definition, make_task
from mage_diffsim.envs.sampling import WAYS, Visited, actions_inside, explore
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import InputError, MissingExtra, unknown_name
from mage_diffsim.shapes import Float, Tensor

LEAST_ENVIRONMENTS = 10
"""Environments that explore, if not more: each way of driving them twice."""
MOST_STATES = 256
"""Of a caller's states."""


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """What each kind of check accepts; all errors are relative (see the check's own detail)."""

    gradient: float
    """max|J - J_fd| / max|J_fd| of the worst clean state (float64), of the median clean state (float32), beyond the
    error of the finite difference itself."""
    agreement: float
    """Next states of two backends, relative to max(1, |next state|)."""
    independence: float
    """A row alone against the same row within a batch, relative to max(1, |value|)."""

    @staticmethod
    def of(task: Task, dtype: torch.dtype) -> Tolerances:
        """The defaults for float64 and float32; MuJoCo's contacts are stiff and amplify what float32 rounds."""
        if dtype == torch.float64:
            return Tolerances(gradient=1e-6, agreement=1e-10, independence=1e-12)
        contacts = isinstance(task, MujocoTask) and task.simulation.has_contacts
        return Tolerances(gradient=1e-3, agreement=1e-4 if contacts else 1e-5, independence=1e-5)


@dataclasses.dataclass(frozen=True)
class Report:
    """All checks of one task."""

    task: str
    dtype: str
    device: str
    checks: tuple[Check, ...]
    coverage: Coverage | None = None
    """Where the checks have looked; None if there was no state to look at."""
    solver: str = "converged"
    """Of the physics, see :attr:`.Physics.solvers`."""

    @property
    def passed(self) -> bool:
        """No check failed (skipped ones do not count)."""
        return all(c.status != "failed" for c in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(c for c in self.checks if c.status == "failed")

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """One row per check for a table: check, status, worst, tolerance, detail."""

        def number(x: float | None) -> str:
            return "" if x is None else f"{x:.3g}"

        return [
            (f"{c.subject}: {c.name}", c.status, number(c.worst), number(c.tolerance), c.detail) for c in self.checks
        ]

    def to_json(self) -> str:
        """The report as JSON; a number that is not finite becomes its name in text."""

        def plain(x: object) -> object:
            return str(x) if isinstance(x, float) and not math.isfinite(x) else x

        checks = [{k: plain(v) for k, v in dataclasses.asdict(c).items()} for c in self.checks]
        coverage = None if self.coverage is None else dataclasses.asdict(self.coverage)
        head = {"task": self.task, "dtype": self.dtype, "device": self.device, "solver": self.solver}
        head |= {"passed": self.passed}
        return json.dumps(head | {"checks": checks, "coverage": coverage})


def check_task(
    task: Task | str,
    backend: str | None = None,
    derivative: str | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    solver: str = "converged",
    samples: int = 32,
    steps: int | None = None,
    seed: int = 0,
    states: Float[Tensor, "K S"] | None = None,
    tolerances: Tolerances | None = None,
) -> Report:
    """Check the whole contract of a task.

    Args:
        task: a task, or a name for :func:`make_task`.
        backend: one backend only; by default every backend of the task, those that are not installed or cannot run on
            this device reported as skipped.
        derivative: one derivative source only; by default all that the backend offers.
        dtype: float64, or float32 with wider tolerances.
        device: where the physics runs.
        solver: of the physics, see :attr:`.Physics.solvers`; backends without it are reported as skipped.
        samples: number of states the checks run on: a quarter initial ones, the others from rollouts (see
            :mod:`.coverage`), some as far apart as possible and some evenly spread over the time.
        steps: length of the rollouts; None is an episode, or what the budget of :mod:`.coverage` allows.
        seed: seed of the sampled states and actions.
        states: further states to look at, e.g. from a trained policy's rollouts; of more than ``MOST_STATES`` those
            that lie farthest apart.
        tolerances: other bounds than :meth:`Tolerances.of` this task and ``dtype``.

    Raises:
        InputError: unknown task, backend, derivative source or solver; or the one backend asked for cannot run on this
            device; or no backend has the solver; or ``states`` of another shape, or not finite.
    """
    if isinstance(task, str):
        task = make_task(task)
    check_definition(type(task))
    if states is not None:
        check_states(task, states)
    if solver not in SOLVERS:
        raise unknown_name("solver", solver, SOLVERS)
    known = backends_of(task)
    if backend is not None and backend not in known:
        make_physics(task, backend)  # raises the error that lists the valid names
    device = torch.device(device)
    untyped = check_kinds(task, samples, seed, dtype=dtype, device=device)
    if untyped:
        return Report(task.name, str(dtype), str(device), tuple(untyped))
    checks: list[Check] = list(check_reset(task, samples, seed))
    names = [backend] if backend else known
    if not any(solver in load(BACKENDS[name]).solvers for name in names):
        make_physics(task, names[0], solver=solver)  # raises the error that says who has it
    settings: dict[str, Any] = dict(dtype=dtype, device=device, solver=solver)

    physics: dict[str, Physics] = {}
    sources: set[str] = set()
    for name in names:
        try:
            offered = load(BACKENDS[name]).derivatives_of(task)
            sources.update(offered)
            if derivative is not None and derivative not in offered and backend is not None:
                raise unknown_name(f"derivative source of backend {name}", derivative, offered)
            for source in offered if derivative is None else {derivative} & set(offered):
                physics[f"{name}/{source}"] = make_physics(task, name, derivative=source, **settings)
            built = Check(f"step {name}", "built", "passed", None, None, f"derivative sources {', '.join(offered)}")
        except MissingExtra as error:
            built = Check(f"step {name}", "built", "skipped", None, None, str(error))
        except InputError as error:
            if backend is not None:
                raise
            built = Check(f"step {name}", "built", "skipped", None, None, str(error))
        except Exception as error:
            message = f"raised {type(error).__name__}: {' '.join(str(error).split())}"
            built = Check(f"step {name}", "built", "failed", None, None, message)
        checks.append(built)
    if derivative is not None and sources and derivative not in sources:
        raise unknown_name(f"derivative source of task {task.name}", derivative, sources)
    if not physics:
        return Report(task.name, str(dtype), str(device), tuple(checks), solver=solver)
    if isinstance(task, MujocoTask):
        checks.append(run_check("step", "solver", None, lambda: (True, *_gap(task, solver))))

    tolerances = tolerances or Tolerances.of(task, dtype)
    explorer = _explorer(task, next(iter(physics.values())))
    steps = steps_within_budget(task, samples) if steps is None else steps
    explored: list[Visited] = []

    def reach() -> Outcome:
        explored.append(explore(explorer, max(samples, LEAST_ENVIRONMENTS), steps, seed))
        return True, None, f"{len(explored[0].states)} states in {steps} steps of {', '.join(WAYS)} actions"

    checks.append(run_check("rollout", "runs", None, reach))
    pool = task.reset(samples, torch.Generator().manual_seed(seed)).to(device, torch.float64)
    if explored:
        initial = pool[: max(samples // 4, 1)]
        pool = torch.cat([initial, pick(explored[0].states.double(), initial, samples - len(initial))])
    if states is not None:
        states = states.to(device, torch.float64)
        more = states if len(states) <= MOST_STATES else states[spread_out(states, pool, MOST_STATES)]
        pool = torch.cat([pool, more])
    pool = pool.to(dtype)
    for subject in _subjects(task, physics, pool, seed):
        checks += check_values(subject, tolerances.independence)
        checks += _check_gradients(subject, tolerances)
    checks += _check_agreement(task, physics, pool, tolerances, seed)
    looked = None
    if explored:
        # What a broken function raises here has failed its own check above.
        broken = any(c.status == "failed" for c in checks)
        with contextlib.suppress(Exception) if broken else contextlib.nullcontext():
            at = pool.to(explorer.dtype)
            with torch.no_grad():
                following = explorer.step(at.clone(), _random_actions(len(at), task, at, seed))
            looked = coverage(task, at, following, explored[0], states)
    return Report(task.name, str(dtype), str(device), tuple(checks), looked, solver)


# What is checked, and on what -------------------------------------------------------------------------------------


def _explorer(task: Task, asked: Physics) -> Physics:
    """The task's first backend, if it runs here: it steps any number of environments, where others compile anew."""
    try:
        return make_physics(task, dtype=torch.float64, device=asked.device, solver=asked.solver)
    except Exception:  # it has a line of its own in the report, if it was asked for
        return asked


def _subjects(task: Task, physics: dict[str, Physics], state: Tensor, seed: int) -> Iterator[Subject]:
    """The task's functions and every physics, each with inputs; next observations come from the first physics."""
    first = next(iter(physics.values()))
    n = state.shape[0]
    action = _random_actions(n, task, state, seed)
    with torch.no_grad():
        obs = task.observe(state.clone())
        next_obs = task.observe(first.step(state.clone(), action.clone()))
    # Degenerate points: everything zero, and the action at its two bounds in zero and in sampled states. As many rows
    # as the sample has, because some backends compile anew for every number of rows.
    third = torch.arange(n, device=state.device)[:, None] % 3
    zero = torch.arange(n, device=state.device)[:, None] < max(n // 2, 3)
    actions = (third - 1).to(state.dtype).expand_as(action)
    states, observations = state.masked_fill(zero, 0.0), obs.masked_fill(zero, 0.0)

    yield Subject(
        "observe",
        task.observe,
        task.observe,
        {"state": state},
        {"state": states},
        (task.obs_dim,),
        state.dtype,
        True,
        may_alias=True,  # who keeps an obs, or gives it away, copies it
    )
    yield Subject(
        "reward",
        task.reward,
        task.reward,
        {"obs": obs, "action": action, "next_obs": next_obs},
        {"obs": observations, "action": actions, "next_obs": observations},
        (),
        state.dtype,
        True,
    )
    yield Subject(
        "terminated", task.terminated, None, {"next_obs": next_obs}, {"next_obs": observations}, (), torch.bool, True
    )
    exacts: dict[str, tuple[Physics, dict[str, Differences]]] = {}
    for name, p in physics.items():
        if p.backend not in exacts:
            exacts[p.backend] = _exact(p), {}
        exact, differences = exacts[p.backend]
        yield Subject(
            f"step {name}",
            p.step,
            exact.step,
            {"state": state, "action": action},
            {"state": states, "action": actions},
            (task.state_dim,),
            state.dtype,
            False,
            differences,
            p.accuracy.get(p.derivative, 0.0),
            _rounding(p),
        )


def _rounding(physics: Physics) -> dict[str, float]:
    """What rounding leaves of the differences that MuJoCo C's derivatives are, by input."""
    task = physics.task
    if physics.backend != "mujoco" or not isinstance(task, MujocoTask):
        return {}
    qpos, qvel, control = task.difference_steps
    span = max(high - low for low, high in zip(task.action_low, task.action_high, strict=True))
    return {"state": ROUNDING / min(qpos, qvel), "action": ROUNDING / control * max(1.0, 0.5 * span)}


def _random_actions(n: int, task: Task, like: Tensor, seed: int) -> Float[Tensor, "N A"]:
    return actions_inside(n, task.action_dim, torch.Generator().manual_seed(seed + 1)).to(like)


def _exact(physics: Physics) -> Physics:
    """What finite differences are taken of: the same function in float64.

    A backend without float64 is compared with the task's first one that has it.
    """
    task = physics.task
    for backend in (physics.backend, *backends_of(task)):
        with contextlib.suppress(InputError, MissingExtra):
            return make_physics(task, backend, dtype=torch.float64, device=physics.device, solver=physics.solver)
    return physics


def _gap(task: MujocoTask, solver: str) -> tuple[float, str]:
    """How far the model's own solver settings are from the converged step, and which of the two was checked."""
    own = f"the model's own settings ({settings_text(task.simulation)})"
    return solver_gap(
        task.simulation
    ), f"{solver}; the worst value is how far {own} leave a step from the converged one"


# The checks -------------------------------------------------------------------------------------------------------


def _check_gradients(subject: Subject, tolerances: Tolerances) -> Iterator[Check]:
    if subject.call64 is not None:
        for k in subject.inputs:
            yield from _check_gradient(subject, k, tolerances)

            def degenerate(k: str = k) -> Outcome:
                return all_finite(jacobian_of(subject, k, subject.degenerate), subject.degenerate)

            yield run_check(subject.name, f"degenerate gradient {k}", None, degenerate)


def _check_gradient(subject: Subject, wrt: str, tolerances: Tolerances) -> list[Check]:
    """Gradient with respect to one input against central differences; kinks are a line of their own."""
    kinks: list[Check] = []
    tolerance = max(tolerances.gradient, subject.accuracy)

    def gradient() -> Outcome:
        jacobian = jacobian_of(subject, wrt, subject.inputs).double()
        if wrt not in subject.differences:
            subject.differences[wrt] = finite_differences(subject, wrt)
        expected, uncertain, clean = subject.differences[wrt]
        scale = expected.abs().amax((1, 2))
        scale = torch.where(scale > 1e-8, scale, 1.0)
        difference = (jacobian - expected).abs()
        error = (difference.amax((1, 2)) / scale).nan_to_num(nan=math.inf)
        # A finite difference has an error of its own, which is not held against the gradient.
        beyond = (
            (difference - uncertain - subject.rounding.get(wrt, 0.0)).clamp(min=0.0).amax((1, 2)) / scale
        ).nan_to_num(nan=math.inf)
        n, number = len(error), int((~clean).sum())
        if number:
            worst = float(error[~clean].max())
            detail = f"{number} of {n} states are kinks, left out of the gradient check above"
            kinks.append(Check(subject.name, f"kinks {wrt}", "passed", worst, None, detail))
        if number == n:
            return False, math.inf, f"no clean state among {n}: one-sided differences disagree everywhere"
        in_float32 = subject.dtype == torch.float32
        statistic, which = (torch.median, "median") if in_float32 else (torch.amax, "worst")
        whole, worst = float(statistic(error[clean])), float(statistic(beyond[clean]))
        shown = beyond if beyond[clean].any() else error
        where = row_text(subject.inputs, int(shown.masked_fill(~clean, -1.0).argmax()))
        detail = (
            f"{which} relative error of {n - number} clean states beyond the finite difference's own error "
            f"({whole:.2g} with it); the largest at {where}"
        )
        return worst <= tolerance, worst, detail

    return [run_check(subject.name, f"gradient {wrt}", tolerance, gradient), *kinks]


def _check_agreement(
    task: Task, physics: dict[str, Physics], state: Tensor, tolerances: Tolerances, seed: int
) -> Iterator[Check]:
    """Every backend's next states against those of the task's first backend, also where only one is being checked."""
    first = backends_of(task)[0]
    action = _random_actions(state.shape[0], task, state, seed)
    for name, other in physics.items():
        if other.backend == first:
            continue

        def agree(other: Physics = other) -> Outcome:
            reference = make_physics(task, first, dtype=torch.float64, device=other.device, solver=other.solver)
            with torch.no_grad():
                a, b = (p.step(state.to(p.dtype, copy=True), action.to(p.dtype, copy=True)) for p in (reference, other))
            inputs = {"state": state, "action": action}
            return closeness(a, b, tolerances.agreement, inputs, f"next states of {first} and {other.backend}")

        try:
            yield run_check(f"step {name}", "agreement", tolerances.agreement, agree)
        except MissingExtra as error:
            yield Check(f"step {name}", "agreement", "skipped", None, tolerances.agreement, str(error))
