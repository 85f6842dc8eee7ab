"""A quick check of a task's functions on a few states, at the start of every training.

It takes a fraction of a second. :func:`.contract.check_task` checks the whole contract on every backend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mage_diffsim.envs.checks import Check, Tolerances, error_text
from mage_diffsim.envs.differences import jacobian_of, true_jacobians
from mage_diffsim.envs.physics import Physics, TorchPhysics
from mage_diffsim.envs.sampling import actions_inside
from mage_diffsim.envs.task import Task
from mage_diffsim.envs.value_checks import Subject, check_kinds, check_reset, check_values
from mage_diffsim.errors import InputError
from mage_diffsim.shapes import Float, Tensor

ROWS = 16
"""Fewest transitions that are checked."""
STEPS = (1e-5, 1e-6)
"""Finite-difference steps tried at every state."""
MISSING = 0.1
"""A derivative is cut where autograd differs by more than this share of the central difference, or is not finite."""
NEGLIGIBLE = 5e-3
"""Derivatives below this share of the largest one of their row are not judged: a difference may be off by as much."""
MOST = 32
"""Most components of an input, and of an output, whose derivatives are checked; they are evenly spaced."""


@dataclasses.dataclass(frozen=True)
class Transitions:
    """A few transitions by random actions from initial states, float64."""

    state: Float[Tensor, "N S"]
    action: Float[Tensor, "N A"]
    obs: Float[Tensor, "N O"]
    next_obs: Float[Tensor, "N O"]


@dataclasses.dataclass(frozen=True)
class Cut:
    """One derivative that the function has and autograd does not give."""

    function: str
    """``observe``, ``reward`` or ``step``."""
    wrt: str
    """The input: ``state``, ``obs``, ``action`` or ``next_obs``."""
    detail: str
    """The fault, as the predicate of a sentence about the function."""


def draw_transitions(task: Task, physics: Physics, environments: int, seed: int = 0) -> Transitions:
    """Draws random transitions, and checks ``reset``, kinds and shapes on the way.

    Episodes that ended, or whose state is not finite, start again. States that are not finite are left out.

    Args:
        task: the task.
        physics: the training environments' physics.
        environments: number of rows of a step; a backend compiles for the training's number of environments anyway.
        seed: seed of states and actions.

    Raises:
        InputError: a function raised, or gave a wrong shape or dtype.
    """
    for check in check_kinds(task, environments, seed, dtype=physics.dtype, device=physics.device):
        _require(task, check)
    for check in check_reset(task, environments, seed):
        _require(task, check)

    def observe(state: Tensor) -> Tensor:
        return _call(task, "observe", task.observe, (len(state), task.obs_dim), state.dtype, state)

    generator = torch.Generator().manual_seed(seed)
    start = task.reset(environments, generator).to(physics.device, physics.dtype)
    states, actions, following = [], [], []
    state = start
    with torch.no_grad():
        for _ in range(-(-ROWS // environments)):
            action = actions_inside(environments, task.action_dim, generator).to(state)
            moved = _call(task, "step", physics.step, tuple(state.shape), state.dtype, state, action)
            ended = _call(task, "terminated", task.terminated, (environments,), torch.bool, observe(moved))
            finite = moved.isfinite().all(1)
            states.append(state[finite])
            actions.append(action[finite])
            following.append(moved[finite])
            state = torch.where((ended | ~finite)[:, None], start, moved)
        state, action, next_state = (torch.cat(x).double() for x in (states, actions, following))
        if not len(state):
            raise _refusal(task, "step", f"gave no finite state in {len(states)} steps from the initial states")
        return Transitions(state, action, observe(state), observe(next_state))


def require_values(task: Task, at: Transitions, physics: Physics) -> None:
    """Refuses functions whose values cannot be trained on.

    Raises:
        InputError: names the function, what it gave and what is accepted.
    """
    for subject in _subjects(task, at, physics):
        for check in check_values(subject, Tolerances.of(task, subject.dtype).independence):
            _require(task, check)


def find_cuts(task: Task, at: Transitions, *, step: bool) -> tuple[Cut, ...]:
    """Finds derivatives that the task's functions have by central differences and autograd does not give.

    Kinks are no finding, and neither is a derivative of 0, such as that of CartPole's reward.

    Args:
        task: the task.
        at: where to look.
        step: whether to check the task's own ``step`` too.
    """
    physics = TorchPhysics(task, dtype=torch.float64, device=at.state.device) if step else None
    return tuple(
        cut
        for subject in _subjects(task, at, physics)
        for wrt in subject.inputs
        if subject.call64 is not None and (cut := _find_cut(subject, wrt)) is not None
    )


def refuse(task: Task, cut: Cut) -> InputError:
    """The error for a gradient that a loss needs and does not get."""
    return _refusal(
        task,
        cut.function,
        f"{cut.detail}, and the critic's loss needs it; accepted are torch functions without detach, no_grad, item or "
        "numpy, whose derivatives are finite",
    )


def _subjects(task: Task, at: Transitions, physics: Physics | None) -> Iterator[Subject]:
    """The task's functions, and its own step if the physics is TorchPhysics."""
    f64, width = torch.float64, task.obs_dim
    # An output may be a view of an input: callers copy what they keep.
    view: dict[str, Any] = {"degenerate": {}, "may_alias": True}
    inputs = {"state": at.state}
    yield Subject("observe", task.observe, task.observe, inputs, shape=(width,), dtype=f64, any_batch_axes=True, **view)
    inputs = {"obs": at.obs, "action": at.action, "next_obs": at.next_obs}
    yield Subject("reward", task.reward, task.reward, inputs, shape=(), dtype=f64, any_batch_axes=True, **view)
    inputs = {"next_obs": at.next_obs}
    yield Subject("terminated", task.terminated, None, inputs, shape=(), dtype=torch.bool, any_batch_axes=True, **view)
    if isinstance(physics, TorchPhysics):
        exact, shape, dtype = TorchPhysics(task, dtype=f64, device=at.state.device), (task.state_dim,), physics.dtype
        inputs = {"state": at.state.to(dtype), "action": at.action.to(dtype)}
        yield Subject("step", physics.step, exact.step, inputs, shape=shape, dtype=dtype, any_batch_axes=False, **view)


def _narrowed(subject: Subject, wrt: str, columns: Tensor, outputs: Tensor) -> Subject:
    """The function of some components of one input, with some of its outputs."""
    whole, position = subject.inputs[wrt], list(subject.inputs).index(wrt)

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*inputs: Tensor) -> Tensor:
            some = inputs[position]
            filled = whole.to(some.dtype).index_copy(1, columns, some)
            y = function(*inputs[:position], filled, *inputs[position + 1 :])
            return y.reshape(len(y), -1)[:, outputs]

        return call

    exact = None if subject.call64 is None else of(subject.call64)
    inputs = subject.inputs | {wrt: whole[:, columns]}
    return dataclasses.replace(
        subject, call=of(subject.call), call64=exact, inputs=inputs, shape=(len(outputs),), differences={}
    )


def _some(width: int, device: torch.device) -> Tensor:
    """The components of a vector, at most MOST of them, evenly spaced."""
    n = min(width, MOST)
    return torch.arange(n, device=device) * width // n


def _find_cut(subject: Subject, wrt: str) -> Cut | None:
    x = subject.inputs[wrt]
    columns, outputs = _some(x.shape[1], x.device), _some(math.prod(subject.shape), x.device)
    name, scalar = subject.name, not subject.shape
    subject = _narrowed(subject, wrt, columns, outputs)
    x = subject.inputs[wrt]
    try:
        jacobian = jacobian_of(subject.by(wrt), x)
    except Exception as error:  # such as numpy() of a tensor that requires grad
        return Cut(name, wrt, f"cannot be differentiated: it raised {error_text(error)}")
    truth = true_jacobians(subject.by(wrt, exact=True), x.double(), {wrt: range(len(columns))}, STEPS)
    expected, uncertain, clean = truth[wrt]
    scale = expected.abs().amax((1, 2), keepdim=True)
    apart = (jacobian - expected).abs()
    judged = clean[:, None, None] & (expected.abs() > NEGLIGIBLE * scale) & (expected.abs() > 2.0 * uncertain)
    lost = judged & ~(apart <= MISSING * expected.abs() + uncertain)  # NaN is lost too
    if not lost.any():
        return None
    worst = torch.where(lost, apart / scale, 0.0).argmax()
    row, output, column = (int(i) for i in torch.unravel_index(worst, lost.shape))
    found, true = float(jacobian[row, output, column]), float(expected[row, output, column])
    what = name if scalar else f"{name}[{int(outputs[output])}]"
    values = f"{found:.3g} by autograd and {true:.3g} by central differences"
    fault = "cuts the gradient" if math.isfinite(found) else "has a gradient that is not finite"
    return Cut(name, wrt, f"{fault}: d {what} / d {wrt}[{int(columns[column])}] is {values}")


def _call(
    task: Task,
    name: str,
    function: Callable[..., Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    *inputs: Tensor,
) -> Tensor:
    """A copy of the function's value.

    Raises:
        InputError: it raised, or gave another shape or dtype.
    """
    try:
        value = function(*(x.clone() for x in inputs))
        gave = f"{tuple(value.shape)} {value.dtype}"
    except Exception as error:
        raise _refusal(task, name, f"raised {error_text(error)}") from error
    if tuple(value.shape) != shape or value.dtype != dtype:
        raise _refusal(task, name, f"gave {gave}; accepted is {shape} {dtype}")
    return value.clone()


def _require(task: Task, check: Check) -> None:
    if check.status == "failed":
        told = check.name == "tensor" or check.detail.startswith("raised ")
        raise _refusal(task, check.subject, check.detail if told else f"fails {check.name!r}: {check.detail}")


def _refusal(task: Task, function: str, what: str) -> InputError:
    name = task.name
    if not type(task).__module__.startswith("mage_diffsim."):  # another process may not know the registration
        with contextlib.suppress(OSError, TypeError):
            name = f"{inspect.getfile(type(task))}:{type(task).__name__}"
    return InputError(f"{function}() of task {task.name} {what}; `mage-diffsim check-task {name}` shows all of it")
