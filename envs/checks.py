"""What a check of a task's function is made of: the function with its inputs, checks of values, and derivatives."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch

from mage_diffsim.envs.task import Task
from mage_diffsim.errors import MissingExtra
from mage_diffsim.shapes import Bool, Float, Tensor

STEP_SIZES = (1e-4, 1e-5, 1e-6, 1e-7)
"""Finite-difference steps tried at every state; the one on the plateau is used."""
ROUNDING = 16 * torch.finfo(torch.float64).eps
"""Rounding error of a finite difference, relative to |f| / h: a few ulp in each of two values, at half the step."""
KINK = 1e-3
"""A state is clean when, at some step size, one-sided and halved-step differences agree to this relative bound."""

Outcome = tuple[bool, float | None, str]
"""Of one check: whether it passed, the worst value, one sentence."""

Differences = tuple[Float[Tensor, "N Y X"], Float[Tensor, "N Y X"], Bool[Tensor, " N"]]
"""Central differences, their own error (rounding and truncation), and which rows are clean."""


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
class Subject:
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
    rounding: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Absolute error that rounding makes in its derivative by an input, where it is a difference itself."""
    may_alias: bool = False
    """Whether its output may be (a view of) an input."""

    def __call__(self, inputs: dict[str, Tensor] | None = None) -> Tensor:
        # Clones, so that a function that writes into its input or reuses its output does not spoil other checks.
        with torch.no_grad():
            return self.call(*(x.clone() for x in (inputs or self.inputs).values())).clone()


def check_reset(task: Task, n: int, seed: int) -> Iterator[Check]:
    """Initial states: shape and dtype, finite values, and that they depend on the generator alone."""

    def draw(s: int) -> Tensor:
        return task.reset(n, torch.Generator().manual_seed(s))

    def shape() -> Outcome:
        x = draw(seed)
        good = tuple(x.shape) == (n, task.state_dim) and x.dtype == torch.float64
        return good, None, f"{tuple(x.shape)} {x.dtype}; accepted is {(n, task.state_dim)} torch.float64"

    def finite() -> Outcome:
        return all_finite(draw(seed), {})

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
        yield run_check("reset", name, None, check)


def check_kinds(
    task: Task, n: int, seed: int, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> list[Check]:
    """What of the task gives no tensor, or keeps everything else from being looked at: failures alone.

    Args:
        task: the task, whose functions are called in turn on ``n`` initial states and actions of 0.
        n: their number.
        seed: seed of the states.
        dtype: of states and actions.
        device: of the same.
    """
    found: list[Check] = []

    def call(name: str, function: Callable[..., object], accepted: str, *inputs: object) -> Tensor | None:
        try:
            with torch.no_grad():
                value = function(*inputs)
        except Exception as error:
            if name in ("reset", "observe"):  # of the others, their own checks tell
                message = f"raised {type(error).__name__}: {' '.join(str(error).split())}"
                found.append(Check(name, "tensor", "failed", None, None, message))
            return None
        if isinstance(value, Tensor):
            return value
        found.append(
            Check(name, "tensor", "failed", None, None, f"gave {_kind(value)}; accepted is a tensor {accepted}")
        )
        return None

    start = torch.Generator().manual_seed(seed)
    state = call("reset", task.reset, f"{(n, task.state_dim)} torch.float64", n, start)
    if state is None:
        return found
    if tuple(state.shape) != (n, task.state_dim):
        wrong = f"{tuple(state.shape)} {state.dtype}; accepted is {(n, task.state_dim)} torch.float64"
        return [Check("reset", "shape", "failed", None, None, wrong)]
    state = state.to(device, dtype)
    action = torch.zeros(n, task.action_dim, dtype=dtype, device=device)
    if type(task).step is not Task.step:
        call("step", task.step, f"{(n, task.state_dim)} {dtype}", state.clone(), action.clone())
    obs = call("observe", task.observe, f"{(n, task.obs_dim)} {dtype}", state.clone())
    if obs is not None:
        call("reward", task.reward, f"{(n,)} {dtype}", obs.clone(), action.clone(), obs.clone())
        call("terminated", task.terminated, f"{(n,)} torch.bool", obs.clone())
    return found


def _kind(value: object) -> str:
    """What a value is, in words: a float, a numpy.ndarray."""
    if value is None:
        return "None"
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def check_values(subject: Subject, independence: float) -> Iterator[Check]:
    """What needs no gradient: shape and dtype, finite values, determinism, independent rows, no memory shared.

    Args:
        subject: what to check.
        independence: see :attr:`Tolerances.independence`.
    """
    n = next(iter(subject.inputs.values())).shape[0]

    def same(a: Tensor, b: Tensor) -> bool:  # that both are not a number is a matter of the check for finite values
        return torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)

    def shape() -> Outcome:
        y = subject()
        expected = (n, *subject.shape)
        device = next(iter(subject.inputs.values())).device
        if tuple(y.shape) != expected or y.dtype != subject.dtype or y.device != device:
            return False, None, f"{tuple(y.shape)} {y.dtype} on {y.device}; accepted is {expected} {subject.dtype}"
        if subject.any_batch_axes:
            lifted = subject({k: x[None, :, None] for k, x in subject.inputs.items()})
            axes = f"with leading axes (1, {n}, 1) the output"
            if tuple(lifted.shape) != (1, n, 1, *subject.shape):
                return False, None, f"{axes} is {tuple(lifted.shape)}; accepted is {(1, n, 1, *subject.shape)}"
            # another layout may be computed by another kernel, as another batch size may
            if not closeness(y, lifted.reshape(y.shape), independence, subject.inputs, axes)[0]:
                return False, None, f"{axes} differs from that without"
            for other in (torch.float32, torch.float64):
                got = subject({k: x.to(other) for k, x in subject.inputs.items()}).dtype
                if got != (other if subject.dtype.is_floating_point else subject.dtype):
                    return False, None, f"{other} in gives {got} out; keep the dtype"
        return True, None, f"{expected} {y.dtype}"

    def finite() -> Outcome:
        if not subject.degenerate:
            return all_finite(subject(), subject.inputs)
        y = torch.cat([subject(), subject(subject.degenerate)])
        return all_finite(y, {k: torch.cat([x, subject.degenerate[k]]) for k, x in subject.inputs.items()})

    def deterministic() -> Outcome:
        return closeness(subject(), subject(), 0.0, subject.inputs, "two calls with the same input")

    def independent() -> Outcome:
        rows = sorted({0, n // 3, n // 2, n - 1})
        alone = torch.cat([subject({k: x[i : i + 1] for k, x in subject.inputs.items()}) for i in rows])
        tested = {k: x[rows] for k, x in subject.inputs.items()}
        return closeness(subject()[rows], alone, independence, tested, "a row alone and in the batch")

    def pure() -> Outcome:
        given = {k: x.clone() for k, x in subject.inputs.items()}
        versions = {k: x._version for k, x in given.items()}
        with torch.no_grad():
            y = subject.call(*given.values())
        for k, x in given.items():
            # A clamp that leaves these values as they are will change others.
            if x._version != versions[k] or not torch.equal(x, subject.inputs[k]):
                return False, None, f"its input {k} is changed in place"
            if not subject.may_alias and x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr():
                return False, None, f"its output shares memory with its input {k}"
        before = y.clone()
        subject({k: x.flip(0) for k, x in subject.inputs.items()})
        if not same(y, before):
            return False, None, "a second call overwrites the output of the first"
        return True, None, "inputs unchanged, outputs not overwritten"

    yield run_check(subject.name, "shape", None, shape)
    yield run_check(subject.name, "finite", None, finite)
    yield run_check(subject.name, "deterministic", 0.0, deterministic)
    yield run_check(subject.name, "independent rows", independence, independent)
    yield run_check(subject.name, "pure", None, pure)


def run_check(subject: str, name: str, tolerance: float | None, check: Callable[[], Outcome]) -> Check:
    """A check's outcome as a line; whatever a task under test raises is that check's failure."""
    try:
        good, worst, detail = check()
    except MissingExtra:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        return Check(subject, name, "failed", None, tolerance, f"raised {type(error).__name__}: {message}")
    return Check(subject, name, "passed" if good else "failed", worst, tolerance, detail)


def row_text(inputs: dict[str, Tensor], i: int) -> str:
    return ", ".join(f"{k} [{', '.join(f'{v:.6g}' for v in x[i].tolist())}]" for k, x in inputs.items())


def all_finite(y: Tensor, inputs: dict[str, Tensor]) -> Outcome:
    bad = ~y.reshape(y.shape[0], -1).isfinite().all(1)
    if not bad.any():
        return True, None, f"all {y.shape[0]} finite"
    i = int(bad.nonzero()[0])
    return False, None, f"{int(bad.sum())} of {y.shape[0]} are not finite, e.g. at {row_text(inputs, i) or f'row {i}'}"


def closeness(a: Tensor, b: Tensor, tolerance: float, inputs: dict[str, Tensor], what: str) -> Outcome:
    a, b = a.reshape(a.shape[0], -1).double(), b.reshape(b.shape[0], -1).double()
    # Two that are both not a number are a matter of the check for finite values.
    error = ((a - b).abs() / a.abs().clamp(min=1.0)).masked_fill((a.isnan() & b.isnan()) | (a == b), 0.0)
    error = error.amax(1).nan_to_num(nan=math.inf)
    i = int(error.argmax())
    worst = float(error[i])
    if worst <= tolerance:
        return True, worst, f"{what} agree"
    return False, worst, f"{what} differ, most at {row_text(inputs, i)}"


def jacobian_of(subject: Subject, wrt: str, inputs: dict[str, Tensor]) -> Float[Tensor, "N Y X"]:
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


def finite_differences(subject: Subject, wrt: str, steps: tuple[float, ...] = STEP_SIZES) -> Differences:
    """Central differences in float64 at the step size on the plateau, their own error, and which rows are clean.

    A row is clean when at some step h the forward, the backward and the central difference of h / 2 all lie within
    ``KINK`` of the central difference of h, relative to its largest entry and up to rounding. Of these h, each row
    takes the one whose halved step changes it least. As the truncation error falls with the square of h, it is 4/3 of
    that change.
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
    uncertain = torch.zeros_like(best)
    least = torch.full_like(x[:, 0], math.inf)
    clean = torch.zeros_like(least, dtype=torch.bool)
    for h in steps:
        central, apart = differences(h)
        halved = (differences(h / 2)[0] - central).abs()
        floor = ROUNDING / h * here.abs()[..., None]
        scale = central.abs().amax((1, 2))
        scale = torch.where(scale > 1e-8, scale, 1.0)
        agrees = (torch.maximum(apart, halved) - floor).amax((1, 2)) <= KINK * scale
        change = halved.amax((1, 2))
        better = torch.where(agrees == clean, change / scale < least, agrees)
        best = torch.where(better[:, None, None], central, best)
        uncertain = torch.where(better[:, None, None], floor + 4.0 / 3.0 * halved, uncertain)
        least = torch.where(better, change / scale, least)
        clean = clean | agrees
    return best, uncertain, clean
