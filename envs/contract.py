"""The contract of a task: everything the learner relies on, checked on every backend.

>>> report = check_task("Pendulum")
>>> report.passed, [row for row in report.rows() if row[1] != "passed"]

The functions ``reset``, ``observe``, ``reward``, ``terminated`` and one ``step`` per backend and derivative source go
through the same checks: shapes and types, finite values, determinism, independent rows, inputs left alone, gradients
against central differences, finite gradients at degenerate points.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mage_diffsim.envs.checks import Check, Outcome, Report, Tolerances, closeness, error_text, run_check
from mage_diffsim.envs.coverage import Coverage, check_states, coverage, pick, spread_out, steps_within_budget
from mage_diffsim.envs.definition import require_task
from mage_diffsim.envs.differences import ROUNDING, TrueJacobian
from mage_diffsim.envs.gradient_checks import check_gradients
from mage_diffsim.envs.mujoco.convergence import settings_text, solver_gap
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import (
    BACKENDS,
    SOLVERS,
    NoImplementation,
    Physics,
    backends_of,
    load,
    make_physics,
    require_backend,
)
from mage_diffsim.envs.registry import make_task
from mage_diffsim.envs.sampling import WAYS, Visited, actions_inside, explore
from mage_diffsim.envs.task import Task
from mage_diffsim.envs.value_checks import Subject, check_kinds, check_reset, check_values
from mage_diffsim.errors import InputError, MissingExtra, unknown_name
from mage_diffsim.shapes import Float, Tensor

LEAST_ENVIRONMENTS = 2 * len(WAYS)
"""Fewest environments that explore."""
MOST_STATES = 256
"""Most of a caller's states that are checked."""


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
    """Checks the whole contract of a task.

    Args:
        task: a task, or a name for :func:`make_task`.
        backend: one backend; by default every backend of the task. One that is not installed or cannot run on this
            device is reported as skipped.
        derivative: one derivative source; by default all that the backend offers.
        dtype: float64, or float32 with wider tolerances.
        device: where the physics runs.
        solver: the physics' solver, see :attr:`.Physics.solvers`; backends without it are reported as skipped.
        samples: number of states that are checked. A quarter are initial states; the others come from rollouts, some
            as far apart as possible and some evenly spread over time (see :mod:`.coverage`).
        steps: length of the rollouts; by default an episode, or what the budget of :mod:`.coverage` allows.
        seed: seed of the sampled states and actions.
        states: further states to check, e.g. from a trained policy's rollouts; of more than ``MOST_STATES`` those that
            lie farthest apart.
        tolerances: other bounds than :meth:`.Tolerances.of` this task and ``dtype``.

    Raises:
        InputError: the task, backend, derivative source or solver is unknown; the backend cannot run on this device; no
            backend has the solver; or ``states`` has another shape or is not finite.
    """
    if isinstance(task, str):
        task = make_task(task)
    require_task(task)
    if states is not None:
        check_states(task, states)
    if solver not in SOLVERS:
        raise unknown_name("solver", solver, SOLVERS)
    known = backends_of(task)
    if backend is not None:
        require_backend(task, backend)
    device = torch.device(device)
    if failures := check_kinds(task, samples, seed, dtype=dtype, device=device):
        return Report(task.name, str(dtype), str(device), tuple(failures))
    names = [backend] if backend else known
    if not any(solver in load(BACKENDS[name]).solvers for name in names):
        make_physics(task, names[0], solver=solver)  # raises the error that says who has it
    settings: dict[str, Any] = dict(dtype=dtype, device=device, solver=solver)
    built, physics = _build(task, names, derivative, settings, required=backend is not None)
    checks = [*check_reset(task, samples, seed), *built]
    if not physics:
        return Report(task.name, str(dtype), str(device), tuple(checks), solver=solver)
    if isinstance(task, MujocoTask):
        checks.append(run_check("step", "solver", None, lambda: _gap(task, solver)))

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
        runs = run_check(subject.name, "runs", None, lambda subject=subject: (True, None, str(subject().shape)))
        if runs.status == "failed":
            checks.append(runs)
            continue
        checks += check_values(subject, tolerances.independence)
        checks += check_gradients(subject, tolerances)
    checks += _check_agreement(task, physics, pool, tolerances, seed)
    looked = None
    if explored:
        # What a broken function raises here has failed its own check above.
        broken = any(c.status == "failed" for c in checks)
        with contextlib.suppress(Exception) if broken else contextlib.nullcontext():
            looked = _look(task, explorer, pool, explored[0], states, seed)
    return Report(task.name, str(dtype), str(device), tuple(checks), looked, solver)


def _build(
    task: Task, backends: Sequence[str], derivative: str | None, settings: dict[str, Any], *, required: bool
) -> tuple[list[Check], dict[str, Physics]]:
    """One check per backend, and the physics of every derivative source by ``backend/derivative``.

    Args:
        task: the task.
        backends: names of backends.
        derivative: the one source; None takes all that a backend offers.
        settings: further arguments of :func:`.make_physics`.
        required: whether the one backend was asked for, so that it raises where it cannot run.

    Raises:
        InputError: no backend has the derivative source; or a required backend cannot run.
    """
    checks: list[Check] = []
    physics: dict[str, Physics] = {}
    sources: set[str] = set()
    for name in backends:
        subject = f"step {name}"
        try:
            offered = load(BACKENDS[name]).derivatives_of(task)
            sources.update(offered)
            if derivative is not None and derivative not in offered and required:
                raise unknown_name(f"derivative source of backend {name}", derivative, offered)
            for source in offered if derivative is None else {derivative} & set(offered):
                physics[f"{name}/{source}"] = make_physics(task, name, derivative=source, **settings)
            checks.append(Check(subject, "built", "passed", None, None, f"derivative sources {', '.join(offered)}"))
        except NoImplementation as error:
            checks.append(Check(subject, "built", "failed", None, None, str(error)))
        except (InputError, MissingExtra) as error:
            if required and isinstance(error, InputError):
                raise
            checks.append(Check(subject, "built", "skipped", None, None, str(error)))
        except Exception as error:
            checks.append(Check(subject, "built", "failed", None, None, f"raised {error_text(error)}"))
    if derivative is not None and sources and derivative not in sources:
        raise unknown_name(f"derivative source of task {task.name}", derivative, sources)
    return checks, physics


def _look(task: Task, explorer: Physics, pool: Tensor, explored: Visited, given: Tensor | None, seed: int) -> Coverage:
    """What the checks saw in the states of the pool and one step later."""
    at = pool.to(explorer.dtype)
    with torch.no_grad():
        following = explorer.step(at.clone(), _random_actions(len(at), task, at, seed))
    return coverage(task, at, following, explored, given)


def _explorer(task: Task, asked: Physics) -> Physics:
    """The task's first backend, which steps any number of environments without compiling anew, if it runs here."""
    try:
        return make_physics(task, dtype=torch.float64, device=asked.device, solver=asked.solver)
    except Exception:  # if it was asked for, the report says so
        return asked


def _subjects(task: Task, physics: dict[str, Physics], state: Tensor, seed: int) -> Iterator[Subject]:
    """The task's functions and every physics, with their inputs.

    The first physics that steps gives the next observations. Where ``observe`` raises, there are no observations to
    check reward and termination on.
    """
    n = state.shape[0]
    action = _random_actions(n, task, state, seed)
    obs = _observed(task, state)
    next_obs = obs
    for p in physics.values():
        with contextlib.suppress(Exception), torch.no_grad():  # the physics' own checks fail
            next_state = p.step(state.clone(), action.clone())
            if next_state.shape == state.shape and (found := _observed(task, next_state)) is not None:
                next_obs = found
                break
    # The degenerate points are states of zeros and sampled states, with the action at 0 and at its two bounds. They are
    # as many as the sampled points, because some backends compile for each number of rows.
    third = torch.arange(n, device=state.device)[:, None] % 3
    zero = torch.arange(n, device=state.device)[:, None] < max(n // 2, 3)
    actions = (third - 1).to(state.dtype).expand_as(action)
    states = state.masked_fill(zero, 0.0)

    yield Subject(
        "observe",
        task.observe,
        task.observe,
        {"state": state},
        {"state": states},
        (task.obs_dim,),
        state.dtype,
        True,
        may_alias=True,  # callers copy an obs that they keep
    )
    if obs is not None and next_obs is not None:
        observations = obs.masked_fill(zero, 0.0)
        degenerate = {"obs": observations, "action": actions, "next_obs": observations}
        inputs = {"obs": obs, "action": action, "next_obs": next_obs}
        yield Subject("reward", task.reward, task.reward, inputs, degenerate, (), state.dtype, True)
        inputs, degenerate = {"next_obs": next_obs}, {"next_obs": observations}
        yield Subject("terminated", task.terminated, None, inputs, degenerate, (), torch.bool, True)
    exacts: dict[str, tuple[Physics, dict[str, TrueJacobian]]] = {}
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


def _observed(task: Task, state: Tensor) -> Tensor | None:
    """The observations of the states; None where ``observe`` raises."""
    with contextlib.suppress(Exception), torch.no_grad():
        return task.observe(state.clone())


def _rounding(physics: Physics) -> dict[str, float]:
    """Rounding error of MuJoCo C's derivatives, which are differences, by input."""
    task = physics.task
    if physics.backend != "mujoco" or not isinstance(task, MujocoTask):
        return {}
    qpos, qvel, control = task.difference_steps
    moving = (qpos, qvel, control) if task.simulation.na else (qpos, qvel)
    span = max(high - low for low, high in zip(task.action_low, task.action_high, strict=True))
    return {"state": ROUNDING / min(moving), "action": ROUNDING / control * max(1.0, 0.5 * span)}


def _random_actions(n: int, task: Task, like: Tensor, seed: int) -> Float[Tensor, "N A"]:
    return actions_inside(n, task.action_dim, torch.Generator().manual_seed(seed + 1)).to(like)


def _exact(physics: Physics) -> Physics:
    """The physics that finite differences are taken of: the same backend in float64, or the first one that has it."""
    task = physics.task
    for backend in (physics.backend, *backends_of(task)):
        with contextlib.suppress(InputError, MissingExtra):
            return make_physics(task, backend, dtype=torch.float64, device=physics.device, solver=physics.solver)
    return physics


def _gap(task: MujocoTask, solver: str) -> Outcome:
    """How far a step with the model's own solver settings is from the converged step."""
    own = f"the model's own settings ({settings_text(task.simulation.model)})"
    detail = f"{solver}; the worst value is how far {own} leave a step from the converged one"
    return True, solver_gap(task.simulation), detail


def _check_agreement(
    task: Task, physics: dict[str, Physics], state: Tensor, tolerances: Tolerances, seed: int
) -> Iterator[Check]:
    """Checks the next states of every backend against those of the task's first backend."""
    first = backends_of(task)[0]
    action = _random_actions(state.shape[0], task, state, seed)
    for name, other in physics.items():
        if other.backend == first:
            continue

        def agree(other: Physics = other) -> Outcome:
            reference = make_physics(task, first, dtype=torch.float64, device=other.device, solver=other.solver)
            with torch.no_grad():
                truth, found = (
                    p.step(state.to(p.dtype, copy=True), action.to(p.dtype, copy=True)) for p in (reference, other)
                )
            inputs = {"state": state, "action": action}
            unknown = reference.inexactness(state.to(reference.dtype), action.to(reference.dtype))
            what = f"next states of {first} and {other.backend}"
            return closeness(found, truth, tolerances.agreement, inputs, what, unknown)

        try:
            yield run_check(f"step {name}", "agreement", tolerances.agreement, agree)
        except MissingExtra as error:
            yield Check(f"step {name}", "agreement", "skipped", None, tolerances.agreement, str(error))
