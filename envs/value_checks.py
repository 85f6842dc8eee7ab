"""Checks of values: kinds, shapes, finite values, determinism, independent rows, inputs and outputs left alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import torch

from mage_diffsim.envs.checks import Check, Outcome, all_finite, closeness, error_text, run_check
from mage_diffsim.envs.differences import Function, TrueJacobian, jacobians_of
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import kind_of
from mage_diffsim.shapes import Tensor


@dataclasses.dataclass(frozen=True)
class Subject:
    """A batched function under test, with the sampled and the degenerate inputs it is tested on."""

    name: str
    call: Callable[..., Tensor]
    call64: Callable[..., Tensor] | None
    """The same function in float64, for the finite differences; None where it has no derivative."""
    inputs: dict[str, Tensor]
    degenerate: dict[str, Tensor]
    shape: tuple[int, ...]
    """Shape of one row of the output."""
    dtype: torch.dtype
    any_batch_axes: bool
    """Whether it takes any number of leading axes and either float type, as the task's functions do."""
    differences: dict[str, TrueJacobian] = dataclasses.field(default_factory=dict)
    """True Jacobians by input, once they are computed. Subjects with the same ``call64`` share them."""
    accuracy: float = 0.0
    """Relative error of its derivative by design."""
    rounding: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Absolute rounding error of its derivative by an input, where the derivative is a difference itself."""
    may_alias: bool = False
    """Whether its output may be (a view of) an input."""

    def __call__(self, inputs: dict[str, Tensor] | None = None) -> Tensor:
        # Clones keep a function that writes into its input, or reuses its output, from spoiling other checks.
        with torch.no_grad():
            return self.call(*(x.clone() for x in (inputs or self.inputs).values())).clone()

    def by(self, wrt: str, *, exact: bool = False) -> Function:
        """The function of one input alone, [N, X] to [N, Y]; ``exact`` calls ``call64`` on float64 inputs instead."""
        call = self.call64 if exact else self.call
        assert call is not None
        held = {k: x.double() if exact else x for k, x in self.inputs.items()}
        return lambda x: _of_copies(call, *(held | {wrt: x}).values())

    def jacobians(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """d output / d input [N, Y, X] by every input, by autograd."""
        found = jacobians_of(functools.partial(_of_copies, self.call), tuple(inputs.values()))
        return dict(zip(inputs, found, strict=True))


def _of_copies(call: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The output of a call as [N, Y]. A write in place reaches neither a leaf nor the next call's inputs."""
    y = call(*(x.clone() for x in inputs))
    return y.clone().reshape(len(y), -1)


def check_reset(task: Task, n: int, seed: int) -> Iterator[Check]:
    """Checks initial states: shape, dtype, finite values, and that they depend on the generator alone."""

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
    """Checks that the task's functions give tensors, and ``reset`` states of the right shape.

    Args:
        task: the task; its functions are called on initial states and actions of 0.
        n: number of states.
        seed: seed of the states.
        dtype: dtype of states and actions.
        device: device of states and actions.

    Returns:
        the checks that failed; no other check can run after them.
    """
    found: list[Check] = []

    def call(name: str, function: Callable[..., object], accepted: str, *inputs: object) -> Tensor | None:
        try:
            with torch.no_grad():
                value = function(*inputs)
        except Exception as error:
            if name in ("reset", "observe"):  # the others have checks of their own that fail
                found.append(Check(name, "tensor", "failed", None, None, f"raised {error_text(error)}"))
            return None
        if isinstance(value, Tensor):
            return value
        found.append(
            Check(name, "tensor", "failed", None, None, f"gave {kind_of(value)}; accepted is a tensor {accepted}")
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


def check_values(subject: Subject, independence: float) -> Iterator[Check]:
    """Checks the values of a function.

    Args:
        subject: the function.
        independence: see :attr:`.Tolerances.independence`.
    """
    n = next(iter(subject.inputs.values())).shape[0]

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
            # Another layout may be computed by another kernel, as another batch size may.
            if not closeness(lifted.reshape(y.shape), y, independence, subject.inputs, axes)[0]:
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
        return closeness(alone, subject()[rows], independence, tested, "a row alone and in the batch")

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
        if not torch.allclose(y, before, rtol=0.0, atol=0.0, equal_nan=True):
            return False, None, "a second call overwrites the output of the first"
        return True, None, "inputs unchanged, outputs not overwritten"

    yield run_check(subject.name, "shape", None, shape)
    yield run_check(subject.name, "finite", None, finite)
    yield run_check(subject.name, "deterministic", 0.0, deterministic)
    yield run_check(subject.name, "independent rows", independence, independent)
    yield run_check(subject.name, "pure", None, pure)
