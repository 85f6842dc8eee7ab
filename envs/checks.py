"""A check of a task, what it accepts, and the report of all checks."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Literal

import torch

from mage_diffsim.envs.coverage import Coverage
from mage_diffsim.envs.differences import value_error
from mage_diffsim.envs.mujoco.task import MujocoTask
from mage_diffsim.envs.task import Task
from mage_diffsim.errors import MissingExtra
from mage_diffsim.shapes import Tensor

Outcome = tuple[bool, float | None, str]
"""Of one check: whether it passed, its worst value, one sentence."""


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
class Tolerances:
    """Largest relative errors that the checks accept."""

    gradient: float
    """max|J - J_fd| / max|J_fd| beyond the error of the finite difference itself: of the worst clean state in float64,
    of the median one in float32."""
    agreement: float
    """Difference of two backends' next states, relative to max(1, |next state|)."""
    independence: float
    """Difference of a row alone and within a batch, relative to max(1, |value|)."""

    @staticmethod
    def of(task: Task, dtype: torch.dtype) -> Tolerances:
        """The defaults for a dtype. MuJoCo's contacts are stiff and amplify float32's rounding."""
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
    """Where the checks looked; None if they had no state."""
    solver: str = "converged"
    """The physics' solver, see :attr:`.Physics.solvers`."""

    @property
    def passed(self) -> bool:
        """Whether no check failed (skipped ones do not count)."""
        return all(c.status != "failed" for c in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(c for c in self.checks if c.status == "failed")

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """One table row per check: check, status, worst, tolerance, detail."""

        def number(x: float | None) -> str:
            return "" if x is None else f"{x:.3g}"

        return [
            (f"{c.subject}: {c.name}", c.status, number(c.worst), number(c.tolerance), c.detail) for c in self.checks
        ]

    def to_json(self) -> str:
        """The report as JSON. A number that is not finite becomes a string."""

        def plain(x: object) -> object:
            return str(x) if isinstance(x, float) and not math.isfinite(x) else x

        checks = [{k: plain(v) for k, v in dataclasses.asdict(c).items()} for c in self.checks]
        coverage = None if self.coverage is None else dataclasses.asdict(self.coverage)
        head = {"task": self.task, "dtype": self.dtype, "device": self.device, "solver": self.solver}
        head |= {"passed": self.passed}
        return json.dumps(head | {"checks": checks, "coverage": coverage})


def run_check(subject: str, name: str, tolerance: float | None, check: Callable[[], Outcome]) -> Check:
    """Runs a check and gives its line of the report. A check fails where the task raises."""
    try:
        good, worst, detail = check()
    except MissingExtra:
        raise
    except Exception as error:
        return Check(subject, name, "failed", None, tolerance, f"raised {error_text(error)}")
    return Check(subject, name, "passed" if good else "failed", worst, tolerance, detail)


def error_text(error: Exception) -> str:
    """The type and the message of an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def row_text(inputs: dict[str, Tensor], i: int) -> str:
    """Row ``i`` of every input."""
    return ", ".join(f"{k} [{', '.join(f'{v:.6g}' for v in x[i].tolist())}]" for k, x in inputs.items())


def all_finite(y: Tensor, inputs: dict[str, Tensor]) -> Outcome:
    """Whether every row of ``y`` is finite."""
    bad = ~y.reshape(y.shape[0], -1).isfinite().all(1)
    if not bad.any():
        return True, None, f"all {y.shape[0]} finite"
    i = int(bad.nonzero()[0])
    return False, None, f"{int(bad.sum())} of {y.shape[0]} are not finite, e.g. at {row_text(inputs, i) or f'row {i}'}"


def closeness(
    value: Tensor,
    truth: Tensor,
    tolerance: float,
    inputs: dict[str, Tensor],
    what: str,
    inexactness: Tensor | None = None,
) -> Outcome:
    """Whether the rows of two tensors agree, see :func:`.value_error`. Two NaN agree: another check finds them."""
    value, truth = (y.reshape(len(y), -1).double() for y in (value, truth))
    same = (value == truth) | (value.isnan() & truth.isnan())
    unknown = 0.0 if inexactness is None else inexactness.reshape(len(truth), -1).to(truth)
    error = value_error(value.masked_fill(same, 0.0), truth.masked_fill(same, 0.0), unknown)
    i = int(error.argmax())
    worst = float(error[i])
    if worst <= tolerance:
        return True, worst, f"{what} agree"
    return False, worst, f"{what} differ, most at {row_text(inputs, i)}"
