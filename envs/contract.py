"""The contract of a task: everything the learner relies on, checked on every backend.

>>> report = check_task("Pendulum")
>>> report.passed, [row for row in report.rows() if row[1] != "passed"]

Each *subject* (``reset``, ``observe``, ``reward``, ``terminated`` and one ``step`` per backend and derivative source)
goes through the same checks: shapes and types, finite values, determinism, independence of the rows of a batch, no
change of inputs, gradients against central differences, finite gradients at degenerate points.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch

from mage_diffsim.bridges.errors import InputError, MissingExtra, unknown_name
from mage_diffsim.bridges.types import Bool, Float, Tensor
from mage_diffsim.envs.batched import BatchedEnv
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.physics import BACKENDS, Physics, backends_of, load, make_physics
from mage_diffsim.envs.registry import check_definition, make_task
from mage_diffsim.envs.task import Task

STEP_SIZES = (1e-4, 1e-5, 1e-6, 1e-7)
"""Finite-difference steps tried at every state; the one on the plateau is used."""
ROUNDING = 16 * torch.finfo(torch.float64).eps
"""Rounding error of a finite difference, relative to |f| / h: a few ulp in each of two values, at half the step."""
KINK = 1e-3
"""A state is clean when, at some step size, one-sided and halved-step differences agree to this relative bound."""

Outcome = tuple[bool, float | None, str]
"""Of one check: whether it passed, the worst value, one sentence."""

Differences = tuple[Float[Tensor, "N Y X"], Float[Tensor, "N Y 1"], Bool[Tensor, " N"]]
"""Central differences, their rounding error, and which rows are clean."""


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """What each kind of check accepts; all errors are relative (see the check's own detail)."""

    gradient: float
    """max|J - J_fd| / max|J_fd| of the worst clean state (float64), of the median clean state (float32), beyond the
    rounding error of the finite difference itself."""
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
class Check:
    """One line of the report."""

    subject: str
    """What was checked: ``reward``, ``step torch/autograd``, ..."""
    name: str
    """Which property: ``shape``, ``finite``, ``gradient``, ..."""
    status: Literal["passed", "failed", "skipped"]
    worst: float | None
    """Worst value found, to be compared with ``tolerance``."""
    tolerance: float | None
    detail: str
    """One sentence; for a failure it names the offending input."""


@dataclasses.dataclass(frozen=True)
class Report:
    """All checks of one task."""

    task: str
    dtype: str
    device: str
    checks: tuple[Check, ...]

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
        return json.dumps(
            {"task": self.task, "dtype": self.dtype, "device": self.device, "passed": self.passed, "checks": checks}
        )


@dataclasses.dataclass(frozen=True)
class _Subject:
    """A batched function under test, with the sampled and the degenerate inputs it is tested on."""

    name: str
    call: Callable[..., Tensor]
    call64: Callable[..., Tensor] | None
    """The same function in float64, for the finite differences; None where there is nothing to differentiate."""
    inputs: dict[str, Tensor]
    degenerate: dict[str, Tensor]
    shape: tuple[int, ...]
    """Shape of one row of the output."""
    dtype: torch.dtype
    any_batch_axes: bool
    """Takes any number of leading axes, and either float type (the task's functions do, physics do not)."""
    differences: dict[str, Differences] = dataclasses.field(default_factory=dict)
    """Of ``call64`` by input, once they are computed; subjects with the same ``call64`` share them."""
    accuracy: float = 0.0
    """Relative error that its derivative is allowed by design."""

    def __call__(self, inputs: dict[str, Tensor] | None = None) -> Tensor:
        # Clones, so that a function that writes into its input or reuses its output does not spoil other checks.
        with torch.no_grad():
            return self.call(*(x.clone() for x in (inputs or self.inputs).values())).clone()


def check_task(
    task: Task | str,
    backend: str | None = None,
    derivative: str | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    samples: int = 32,
    steps: int = 64,
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
        samples: number of states the checks run on, half from resets and half from random rollouts.
        steps: length of the random rollouts.
        seed: seed of the sampled states and actions.
        states: further states to include, e.g. from a trained policy's rollouts.
        tolerances: other bounds than :meth:`Tolerances.of` this task and ``dtype``.

    Raises:
        InputError: unknown task, backend or derivative source; or the one backend asked for cannot run on this device.
    """
    if isinstance(task, str):
        task = make_task(task)
    check_definition(type(task))
    known = backends_of(task)
    if backend is not None and backend not in known:
        make_physics(task, backend)  # raises the error that lists the valid names
    device = torch.device(device)
    checks: list[Check] = list(_check_reset(task, samples, seed))

    physics: dict[str, Physics] = {}
    sources: set[str] = set()
    for name in [backend] if backend else known:
        try:
            offered = load(BACKENDS[name]).derivatives_of(task)
            sources.update(offered)
            if derivative is not None and derivative not in offered and backend is not None:
                raise unknown_name(f"derivative source of backend {name}", derivative, offered)
            for source in offered if derivative is None else {derivative} & set(offered):
                physics[f"{name}/{source}"] = make_physics(task, name, dtype=dtype, device=device, derivative=source)
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
        return Report(task.name, str(dtype), str(device), tuple(checks))

    tolerances = tolerances or Tolerances.of(task, dtype)
    reference = next(iter(physics.values()))
    pool = task.reset(samples, torch.Generator().manual_seed(seed)).to(device, dtype)

    def reach() -> Outcome:
        # Half of the pool stays at its start.
        pool[: samples // 2] = _random_rollout(task, reference, samples, steps, seed)[: samples // 2]
        return True, None, f"{samples} environments, {steps} random steps"

    checks.append(_run("rollout", "runs", None, reach))
    if states is not None:
        pool = torch.cat([pool, states.to(device, dtype)])
    for subject in _subjects(task, physics, pool, seed):
        checks += _check_subject(subject, tolerances)
    checks += _check_agreement(task, physics, pool, tolerances, seed)
    return Report(task.name, str(dtype), str(device), tuple(checks))


# What is checked, and on what -------------------------------------------------------------------------------------


def _random_rollout(task: Task, physics: Physics, n: int, steps: int, seed: int) -> Float[Tensor, "N S"]:
    """States that ``n`` environments reach under random actions, each after another number of steps."""
    generator = torch.Generator().manual_seed(seed)
    env = BatchedEnv(task, physics, n, [generator])
    env.reset()
    visited = []
    for _ in range(steps):
        action = torch.rand(n, task.action_dim, dtype=torch.float64, generator=generator) * 2 - 1
        visited.append(env.step(action.to(physics.device, physics.dtype)).next_state)
    return torch.stack([visited[i * steps // n][i] for i in range(n)])


def _subjects(task: Task, physics: dict[str, Physics], state: Tensor, seed: int) -> Iterator[_Subject]:
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

    yield _Subject(
        "observe", task.observe, task.observe, {"state": state}, {"state": states}, (task.obs_dim,), state.dtype, True
    )
    yield _Subject(
        "reward",
        task.reward,
        task.reward,
        {"obs": obs, "action": action, "next_obs": next_obs},
        {"obs": observations, "action": actions, "next_obs": observations},
        (),
        state.dtype,
        True,
    )
    yield _Subject(
        "terminated", task.terminated, None, {"next_obs": next_obs}, {"next_obs": observations}, (), torch.bool, True
    )
    references: dict[str, tuple[Physics, dict[str, Differences]]] = {}
    for name, p in physics.items():
        if p.backend not in references:
            exact = _reference(p, backends_of(task)[0])
            # Where it is another backend's, it is the same for all.
            references[p.backend] = next((r for r in references.values() if r[0].backend == exact.backend), (exact, {}))
        exact, differences = references[p.backend]
        yield _Subject(
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
        )


def _random_actions(n: int, task: Task, like: Tensor, seed: int) -> Float[Tensor, "N A"]:
    """Inside the bounds, so that a finite-difference step does not leave them."""
    generator = torch.Generator().manual_seed(seed + 1)
    draw = torch.rand(n, task.action_dim, dtype=torch.float64, generator=generator)
    return (1.98 * draw - 0.99).to(like)


def _reference(physics: Physics, first: str) -> Physics:
    """What finite differences are taken of: the task's first backend in its most exact form, if it runs here."""
    for backend in (first, physics.backend):
        try:
            exact = make_physics(physics.task, backend, dtype=torch.float64, device=physics.device)
            return exact.reference()
        except (InputError, MissingExtra):
            continue
    return physics


# The checks -------------------------------------------------------------------------------------------------------


def _check_reset(task: Task, n: int, seed: int) -> Iterator[Check]:
    def draw(s: int) -> Tensor:
        return task.reset(n, torch.Generator().manual_seed(s))

    def shape() -> Outcome:
        x = draw(seed)
        good = tuple(x.shape) == (n, task.state_dim) and x.dtype == torch.float64
        return good, None, f"{tuple(x.shape)} {x.dtype}; accepted is {(n, task.state_dim)} torch.float64"

    def finite() -> Outcome:
        return _all_finite(draw(seed), {})

    def same_seed() -> Outcome:
        global_stream = torch.get_rng_state()
        good = torch.equal(draw(seed), draw(seed))
        untouched = torch.equal(global_stream, torch.get_rng_state())
        torch.set_rng_state(global_stream)
        if not untouched:
            return False, None, "reset draws from torch's global random stream instead of its generator"
        return good, None, "same seed, same states" if good else "the same seed gives different states"

    def other_seed() -> Outcome:
        if torch.equal(draw(seed), draw(seed + 1)):
            return True, None, "note: another seed gives the same states, so every episode starts alike"
        return True, None, "another seed, other states"

    for name, check in (("shape", shape), ("finite", finite), ("same seed", same_seed), ("other seed", other_seed)):
        yield _run("reset", name, None, check)


def _check_subject(subject: _Subject, tolerances: Tolerances) -> Iterator[Check]:
    n = next(iter(subject.inputs.values())).shape[0]

    def shape() -> Outcome:
        y = subject()
        expected = (n, *subject.shape)
        device = next(iter(subject.inputs.values())).device
        if tuple(y.shape) != expected or y.dtype != subject.dtype or y.device != device:
            return False, None, f"{tuple(y.shape)} {y.dtype} on {y.device}; accepted is {expected} {subject.dtype}"
        if subject.any_batch_axes:
            lifted = subject({k: x[None, :, None] for k, x in subject.inputs.items()})
            if tuple(lifted.shape) != (1, n, 1, *subject.shape) or not torch.equal(lifted.reshape(y.shape), y):
                return False, None, f"with leading axes (1, {n}, 1) the output is {tuple(lifted.shape)} or differs"
            for other in (torch.float32, torch.float64):
                got = subject({k: x.to(other) for k, x in subject.inputs.items()}).dtype
                if got != (other if subject.dtype.is_floating_point else subject.dtype):
                    return False, None, f"{other} in gives {got} out; keep the dtype"
        return True, None, f"{expected} {y.dtype}"

    def finite() -> Outcome:
        y = torch.cat([subject(), subject(subject.degenerate)])
        return _all_finite(y, {k: torch.cat([x, subject.degenerate[k]]) for k, x in subject.inputs.items()})

    def deterministic() -> Outcome:
        return _close(subject(), subject(), 0.0, subject.inputs, "two calls with the same input")

    def independent() -> Outcome:
        rows = sorted({0, n // 3, n // 2, n - 1})
        alone = torch.cat([subject({k: x[i : i + 1] for k, x in subject.inputs.items()}) for i in rows])
        tested = {k: x[rows] for k, x in subject.inputs.items()}
        return _close(subject()[rows], alone, tolerances.independence, tested, "a row alone and in the batch")

    def pure() -> Outcome:
        given = {k: x.clone() for k, x in subject.inputs.items()}
        with torch.no_grad():
            y = subject.call(*given.values())
        for k, x in given.items():
            if not torch.equal(x, subject.inputs[k]):
                return False, None, f"its input {k} is changed in place"
            # Nothing edits a state or an obs in place, so an obs may be (a view of) its state; a next state may not.
            if subject.name != "observe" and x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr():
                return False, None, f"its output shares memory with its input {k}"
        before = y.clone()
        subject({k: x.flip(0) for k, x in subject.inputs.items()})
        if not torch.allclose(y, before, rtol=0.0, atol=0.0, equal_nan=True):
            return False, None, "a second call overwrites the output of the first"
        return True, None, "inputs unchanged, outputs not overwritten"

    yield _run(subject.name, "shape", None, shape)
    yield _run(subject.name, "finite", None, finite)
    yield _run(subject.name, "deterministic", 0.0, deterministic)
    yield _run(subject.name, "independent rows", tolerances.independence, independent)
    yield _run(subject.name, "pure", None, pure)
    if subject.call64 is not None:
        for k in subject.inputs:
            yield from _check_gradient(subject, k, tolerances)

            def degenerate(k: str = k) -> Outcome:
                return _all_finite(_jacobian(subject, k, subject.degenerate), subject.degenerate)

            yield _run(subject.name, f"degenerate gradient {k}", None, degenerate)


def _check_gradient(subject: _Subject, wrt: str, tolerances: Tolerances) -> list[Check]:
    """Gradient with respect to one input against central differences; kinks are a line of their own."""
    kinks: list[Check] = []
    tolerance = max(tolerances.gradient, subject.accuracy)

    def gradient() -> Outcome:
        jacobian = _jacobian(subject, wrt, subject.inputs).double()
        if wrt not in subject.differences:
            subject.differences[wrt] = _finite_differences(subject, wrt)
        expected, rounding, clean = subject.differences[wrt]
        scale = expected.abs().amax((1, 2))
        scale = torch.where(scale > 1e-8, scale, 1.0)
        difference = (jacobian - expected).abs()
        error = (difference.amax((1, 2)) / scale).nan_to_num(nan=math.inf)
        # What decides is the error beyond what rounding can do to the finite difference; what is shown is all of it.
        beyond = ((difference - rounding).clamp(min=0.0).amax((1, 2)) / scale).nan_to_num(nan=math.inf)
        n, number = len(error), int((~clean).sum())
        if number:
            worst = float(error[~clean].max())
            detail = f"{number} of {n} states are kinks, left out of the gradient check above"
            kinks.append(Check(subject.name, f"kinks {wrt}", "passed", worst, None, detail))
        if number == n:
            return False, math.inf, f"no clean state among {n}: one-sided differences disagree everywhere"
        error = error.masked_fill(~clean, -1.0)
        worst_row = int(error.argmax())
        in_float32 = subject.dtype == torch.float32
        worst = float(error[clean].median()) if in_float32 else float(error[worst_row])
        decisive = float(beyond[clean].median()) if in_float32 else float(beyond[clean].max())
        which = "median" if in_float32 else "worst"
        return (
            decisive <= tolerance,
            worst,
            f"{which} relative error of {n - number} clean states; the largest at {_row(subject.inputs, worst_row)}",
        )

    return [_run(subject.name, f"gradient {wrt}", tolerance, gradient), *kinks]


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
            reference = make_physics(task, first, dtype=torch.float64, device=other.device).reference()
            with torch.no_grad():
                a, b = (p.step(state.to(p.dtype, copy=True), action.to(p.dtype, copy=True)) for p in (reference, other))
            inputs = {"state": state, "action": action}
            return _close(a, b, tolerances.agreement, inputs, f"next states of {first} and {other.backend}")

        try:
            yield _run(f"step {name}", "agreement", tolerances.agreement, agree)
        except MissingExtra as error:
            yield Check(f"step {name}", "agreement", "skipped", None, tolerances.agreement, str(error))


# Pieces -----------------------------------------------------------------------------------------------------------


def _run(subject: str, name: str, tolerance: float | None, check: Callable[[], Outcome]) -> Check:
    """A check's outcome as a line; whatever a task under test raises is that check's failure."""
    try:
        good, worst, detail = check()
    except MissingExtra:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        return Check(subject, name, "failed", None, tolerance, f"raised {type(error).__name__}: {message}")
    return Check(subject, name, "passed" if good else "failed", worst, tolerance, detail)


def _row(inputs: dict[str, Tensor], i: int) -> str:
    return ", ".join(f"{k} [{', '.join(f'{v:.6g}' for v in x[i].tolist())}]" for k, x in inputs.items())


def _all_finite(y: Tensor, inputs: dict[str, Tensor]) -> Outcome:
    bad = ~y.reshape(y.shape[0], -1).isfinite().all(1)
    if not bad.any():
        return True, None, f"all {y.shape[0]} finite"
    i = int(bad.nonzero()[0])
    return False, None, f"{int(bad.sum())} of {y.shape[0]} are not finite, e.g. at {_row(inputs, i) or f'row {i}'}"


def _close(a: Tensor, b: Tensor, tolerance: float, inputs: dict[str, Tensor], what: str) -> Outcome:
    a, b = a.reshape(a.shape[0], -1).double(), b.reshape(b.shape[0], -1).double()
    # Two that are both not a number are a matter of the check for finite values.
    error = ((a - b).abs() / a.abs().clamp(min=1.0)).masked_fill((a.isnan() & b.isnan()) | (a == b), 0.0)
    error = error.amax(1).nan_to_num(nan=math.inf)
    i = int(error.argmax())
    worst = float(error[i])
    if worst <= tolerance:
        return True, worst, f"{what} agree"
    return False, worst, f"{what} differ, most at {_row(inputs, i)}"


def _jacobian(subject: _Subject, wrt: str, inputs: dict[str, Tensor]) -> Float[Tensor, "N Y X"]:
    """d output / d inputs[wrt] of every row, one backward per output; zero where it does not depend on the input."""
    rows = []
    for j in range(math.prod(subject.shape)):
        leaves = {k: x.clone().requires_grad_(k == wrt) for k, x in inputs.items()}
        with torch.enable_grad():
            # An in-place write into a leaf would raise: what is tested here is the gradient, so hand over copies.
            y = subject.call(*(x.clone() for x in leaves.values())).clone().reshape(leaves[wrt].shape[0], -1)
        x = leaves[wrt]
        gradient = torch.autograd.grad(y[:, j].sum(), x, allow_unused=True)[0] if y.requires_grad else None
        rows.append(torch.zeros_like(x) if gradient is None else gradient)
    return torch.stack(rows, 1)


def _finite_differences(subject: _Subject, wrt: str) -> Differences:
    """Central differences in float64 at the step size on the plateau, their rounding error, and which rows are clean.

    A row is clean when at some step h the forward, the backward and the central difference of h / 2 all lie within
    ``KINK`` of the central difference of h, relative to its largest entry and up to rounding. Of these h, each row
    takes the one whose halved step changes it least.
    """
    assert subject.call64 is not None
    inputs = {k: x.double() for k, x in subject.inputs.items()}
    x = inputs[wrt]

    def shifted(column: int, h: float) -> tuple[Tensor, Tensor]:
        """f(x + h e) and the exact difference of its argument: x + h - x is not h in floating point."""
        moved = x.clone()
        moved[:, column] += h
        with torch.no_grad():
            y = subject.call64(*(inputs | {wrt: moved}).values()).clone()  # type: ignore[misc]
        return y.reshape(x.shape[0], -1), (moved[:, column] - x[:, column])[:, None]

    with torch.no_grad():
        here = subject.call64(*(v.clone() for v in inputs.values())).clone().reshape(x.shape[0], -1)

    def differences(h: float) -> tuple[Tensor, Tensor]:
        """Central difference [N, Y, X] and the distance of the one-sided ones from it, [N, Y, X]."""
        central, apart = [], []
        for column in range(x.shape[1]):
            (up, dx_up), (down, dx_down) = shifted(column, h), shifted(column, -h)
            central.append((up - down) / (dx_up - dx_down))
            forward, backward = (up - here) / dx_up, (down - here) / dx_down
            apart.append(torch.maximum((forward - central[-1]).abs(), (backward - central[-1]).abs()))
        return torch.stack(central, -1), torch.stack(apart, -1)

    best = torch.zeros(x.shape[0], math.prod(subject.shape), x.shape[1], dtype=x.dtype, device=x.device)
    rounding = torch.zeros_like(best[..., :1])
    least = torch.full_like(x[:, 0], math.inf)
    clean = torch.zeros_like(least, dtype=torch.bool)
    for h in STEP_SIZES:
        central, apart = differences(h)
        halved = (differences(h / 2)[0] - central).abs()
        floor = ROUNDING / h * here.abs()[..., None]
        scale = central.abs().amax((1, 2))
        scale = torch.where(scale > 1e-8, scale, 1.0)
        agrees = (torch.maximum(apart, halved) - floor).amax((1, 2)) <= KINK * scale
        halved = halved.amax((1, 2))
        better = torch.where(agrees == clean, halved / scale < least, agrees)
        best = torch.where(better[:, None, None], central, best)
        rounding = torch.where(better[:, None, None], floor, rounding)
        least = torch.where(better, halved / scale, least)
        clean = clean | agrees
    return best, rounding, clean
