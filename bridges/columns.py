"""Torch gradients from Jacobian columns, such as the d next_state / d action that a simulator supplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from mage_diffsim.bridges.fd import FiniteDifference, check_rows
from mage_diffsim.bridges.op import Op
from mage_diffsim.errors import InputError, unknown_name
from mage_diffsim.shapes import Float, Tensor


@final
class ColumnsOp(Op):
    """An operation on rows whose derivative with respect to its *last* input is given as Jacobian columns.

    Args:
        function: ``function([N, K1], ..., [N, A]) -> [N, S]`` on plain tensors.
        columns: function of the same arguments that returns d output / d last input, shape [N, S, A].
        others: what happens when another input needs a gradient: ``"refuse"`` raises in the backward pass, ``"fd"``
            uses central differences of ``function`` for it.
        name: what error messages call the operation.

    Raises:
        InputError: an unknown ``others``; when called, a shape other than those above, or a gradient that was refused.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        columns: Callable[..., Tensor],
        *,
        others: str = "refuse",
        name: str,
    ) -> None:
        if others not in ("refuse", "fd"):
            raise unknown_name("treatment of the other inputs", others, ("refuse", "fd"))
        self.name = name
        self._function = function
        self._columns = columns
        self._differences = FiniteDifference(function, name=name) if others == "fd" else None

    def forward(self, *inputs: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        check_rows(self, inputs)
        return self._function(*inputs)

    def vjp(
        self, inputs: tuple[Float[Tensor, "..."], ...], cotangent: Float[Tensor, "..."], needs: tuple[bool, ...]
    ) -> tuple[Float[Tensor, "..."] | None, ...]:
        *others, last = needs
        gradients: tuple[Tensor | None, ...] = (None,) * len(others)
        if any(others):
            if self._differences is None:
                raise InputError(
                    f"{self.name}: input {others.index(True)} requires a gradient, but only the derivative with "
                    f"respect to input {len(others)} is supplied; detach it or choose another derivative source"
                )
            gradients = self._differences.vjp(inputs, cotangent, (*others, False))[:-1]
        if not last:
            return *gradients, None
        jacobian = self._columns(*inputs)
        expected = (*cotangent.shape, inputs[-1].shape[1])
        if jacobian.shape != expected:
            raise InputError(f"{self.name}: columns have shape {tuple(jacobian.shape)}; accepted is {expected}")
        return *gradients, pull_back_columns(cotangent, jacobian)


def pull_back_columns(cotangent: Float[Tensor, "N S"], jacobian: Float[Tensor, "N S A"]) -> Float[Tensor, "N A"]:
    """The cotangent times the Jacobian of each row. It is no matrix product for torch, whose precision
    ``--matmul high`` would lower."""
    return (cotangent.unsqueeze(-1) * jacobian).sum(1)
