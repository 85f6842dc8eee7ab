"""Derivatives by finite differences, for an operation that has no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch

from mage_diffsim.bridges.op import Op
from mage_diffsim.errors import InputError
from mage_diffsim.shapes import Float, Tensor


@final
class FiniteDifference(Op):
    """An operation on rows, ``function([N, K1], [N, K2], ...) -> [N, D]``, differentiated by finite differences.

    Row n of the output may depend on row n of the inputs only. A backward pass evaluates the function once, on
    2 K N rows, where K counts the columns of the inputs that need a gradient. One-sided inputs need half of their rows,
    and N more for the inputs themselves.

    Args:
        function: what is differentiated, on plain tensors.
        step: absolute step in the unit of the input, for all inputs or one for each. None takes the cube root of the
            dtype's machine epsilon, which balances truncation against rounding for quantities of order one.
        one_sided: numbers of the inputs that take forward differences instead of central ones.
        name: what error messages call the operation.

    Raises:
        InputError: when called with inputs that are not 2-D with the same number of rows.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        *,
        step: float | tuple[float, ...] | None = None,
        one_sided: tuple[int, ...] = (),
        name: str,
    ) -> None:
        self.name = name
        self._function = function
        self._step = step
        self._one_sided = frozenset(one_sided)

    def forward(self, *inputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        check_rows(self, inputs)
        return self._function(*inputs)

    def vjp(
        self, inputs: tuple[Float[Tensor, "..."], ...], cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        step = self._step or torch.finfo(cotangent.dtype).eps ** (1.0 / 3.0)
        steps = step if isinstance(step, tuple) else (step,) * len(inputs)
        # Every column of the needed inputs is evaluated at its upper and at its lower point. One lower point serves
        # all one-sided columns: the inputs themselves, row 0.
        columns = [(i, k) for i, needed in enumerate(needs) if needed for k in range(inputs[i].shape[1])]
        shared = any(i in self._one_sided for i, _ in columns)
        central = [c for c in columns if c[0] not in self._one_sided]
        upper = {c: shared + row for row, c in enumerate(columns)}
        lower = {c: shared + len(columns) + row for row, c in enumerate(central)}
        moved = [x.expand(shared + len(columns) + len(central), *x.shape).clone() for x in inputs]
        for (i, k), row in upper.items():
            moved[i][row, :, k] += steps[i]
        for (i, k), row in lower.items():
            moved[i][row, :, k] -= steps[i]
        values = self._function(*(x.flatten(0, 1) for x in moved)).unflatten(0, (moved[0].shape[0], -1))
        gradients = [torch.empty_like(x) if needed else None for x, needed in zip(inputs, needs, strict=True)]
        for i, k in columns:
            up, down = upper[i, k], lower.get((i, k), 0)
            # The step that rounding left, not the one asked for.
            taken = moved[i][up, :, k] - moved[i][down, :, k]
            gradient = gradients[i]
            assert gradient is not None
            gradient[:, k] = ((values[up] - values[down]) * cotangent).sum(-1) / taken
        return tuple(gradients)


def check_rows(op: Op, inputs: tuple[Tensor, ...]) -> None:
    """Raise unless every input is 2-D and all have the same number of rows."""
    if any(x.ndim != 2 or x.shape[0] != inputs[0].shape[0] for x in inputs):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise InputError(f"{op.name}: inputs have shapes {shapes}; accepted is (N, K) with the same N for all")
