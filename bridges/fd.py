"""Derivatives by central differences, for an operation that offers no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch

from mage_diffsim.bridges.errors import InputError
from mage_diffsim.bridges.op import Op
from mage_diffsim.bridges.types import Float, Tensor


@final
class FiniteDifference(Op):
    """An operation on rows, ``function([N, K1], [N, K2], ...) -> [N, D]``, differentiated by central differences.

    Row n of the output may depend on row n of the inputs only. A backward pass evaluates the function once, on
    2 K N rows, K being the columns of the inputs that need a gradient.

    Args:
        function: the operation, on plain tensors.
        step: absolute step, in the unit of the input; None takes the cube root of the dtype's machine epsilon, which
            balances truncation against rounding for quantities of order one.
        name: what error messages call the operation.

    Raises:
        InputError: when called with inputs that are not 2-D with the same number of rows.
    """

    def __init__(self, function: Callable[..., Tensor], *, step: float | None = None, name: str) -> None:
        self.name = name
        self._function = function
        self._step = step

    def forward(self, *inputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        check_rows(self, inputs)
        return self._function(*inputs)

    def vjp(
        self, inputs: tuple[Float[Tensor, "..."], ...], cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        step = self._step or torch.finfo(cotangent.dtype).eps ** (1.0 / 3.0)
        widths = [x.shape[1] if needed else 0 for x, needed in zip(inputs, needs, strict=True)]
        total = sum(widths)
        # Axis 0 holds the 2 * total evaluations: all forward steps, then all backward ones.
        moved = [x.expand(2 * total, *x.shape).clone() for x in inputs]
        first = 0
        for x, width in zip(moved, widths, strict=True):
            for column in range(width):
                x[first + column, :, column] += step
                x[total + first + column, :, column] -= step
            first += width
        values = self._function(*(x.flatten(0, 1) for x in moved)).unflatten(0, (2 * total, -1))
        slopes = ((values[:total] - values[total:]) * cotangent).sum(-1)
        gradients: list[Tensor | None] = []
        first = 0
        for x, width, needed in zip(moved, widths, needs, strict=True):
            if not needed:
                gradients.append(None)
                continue
            index = torch.arange(width, device=x.device)
            # The step that rounding left, not the one asked for.
            taken = x[first + index, :, index] - x[total + first + index, :, index]
            gradients.append((slopes[first : first + width] / taken).T.contiguous())
            first += width
        return tuple(gradients)


def check_rows(op: Op, inputs: tuple[Tensor, ...]) -> None:
    """Raise unless every input is 2-D and all have the same number of rows."""
    if any(x.ndim != 2 or x.shape[0] != inputs[0].shape[0] for x in inputs):
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
        raise InputError(f"{op.name}: inputs have shapes {shapes}; accepted is (N, K) with the same N for all")
