"""True Jacobians by central differences, and the error of other Jacobians and values against the truth.

A *kink* is a point where the one-sided derivatives differ, such as the onset of a contact. A point is *clean* where
some step size shows no kink.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from mage_diffsim.shapes import Bool, Float, Tensor

STEP_SIZES = (1e-4, 1e-5, 1e-6, 1e-7, 3e-8)
"""Steps tried at every point, descending."""
ROUNDING = 16 * torch.finfo(torch.float64).eps
"""Rounding error of a difference, relative to |f| / h: a few ulp in each of two values, at half the step."""
KINK = 1e-3
"""Largest relative distance of one-sided and halved-step differences from the central one at a clean point."""
NO_SCALE = 1e-8
"""Errors are absolute where no entry of the truth is larger than this."""

Function = Callable[[Tensor], Tensor]
"""A function of rows: [N, X] to [N, Y]."""


class TrueJacobian(NamedTuple):
    """Central differences, each point's at its best step size."""

    jacobian: Float[Tensor, "N Y K"]
    uncertain: Float[Tensor, "N Y K"]
    """Error of the difference itself: rounding and truncation."""
    clean: Bool[Tensor, " N"]
    """Whether some step size shows no kink."""


@torch.no_grad()
def true_jacobians(
    function: Function,
    x: Float[Tensor, "N X"],
    blocks: Mapping[str, Sequence[int]],
    steps: Sequence[float] = STEP_SIZES,
) -> dict[str, TrueJacobian]:
    """Differentiates a function by central differences at the best of several step sizes, block by block.

    A step size passes where the forward, the backward and the halved-step difference lie within ``KINK`` of the central
    one, relative to its largest entry and beyond rounding. A kink passes at no step size, strong curvature at a small
    one. A point takes the step size whose halving changes its Jacobian least, rounding included. It chooses among the
    sizes that pass and the next larger ones, which suffer less from rounding, or among all if none passes. The
    truncation error falls with the square of the step, so it is 4/3 of that change.

    Args:
        function: the reference, always called on N rows (some backends compile for each number of rows).
        x: the points, float64, shape [N, X].
        blocks: name to columns of ``x``.
        steps: step sizes, descending.
    """
    columns = [c for block in blocks.values() for c in block]
    here = function(x)
    taken = [central_differences(function, x, here, columns, h) for h in steps]
    central, apart = (torch.stack(parts) for parts in zip(*taken, strict=True))  # [H, N, Y, K]
    halved = torch.stack([central_differences(function, x, here, columns, 0.5 * h)[0] for h in steps]) - central
    rounding = torch.stack([ROUNDING / h * here.abs() for h in steps])[..., None]
    found = {}
    for name, part in zip(blocks, consecutive(blocks.values()), strict=True):
        jacobian, change = central[..., part], halved[..., part].abs()
        scale = scale_of(jacobian)
        passes = (torch.maximum(apart[..., part], change) - rounding).amax((-2, -1)) <= KINK * scale
        usable = passes | torch.cat([passes[1:], passes[-1:]]) | ~passes.any(0)
        size = (torch.maximum(change, rounding).amax((-2, -1)) / scale).nan_to_num(nan=math.inf)
        best = torch.where(usable, size, math.inf).argmin(0), torch.arange(len(x), device=x.device)
        found[name] = TrueJacobian(jacobian[best], (rounding + 4.0 / 3.0 * change)[best], passes.any(0))
    return found


def central_differences(
    function: Function, x: Float[Tensor, "N X"], here: Float[Tensor, "N Y"], columns: Sequence[int], step: float
) -> tuple[Float[Tensor, "N Y K"], Float[Tensor, "N Y K"]]:
    """Central differences by some columns of ``x``, and the larger distance of the two one-sided ones from them.

    Args:
        function: function of rows.
        x: the points, shape [N, X].
        here: the function at ``x``.
        columns: K columns of ``x``.
        step: absolute step.
    """

    def shifted(column: int, by: float) -> tuple[Tensor, Tensor]:
        moved = x.clone()
        moved[:, column] += by
        # In floating point x + h - x is not h.
        return function(moved), (moved[:, column] - x[:, column])[:, None]

    central, apart = [], []
    for column in columns:
        (up, ahead), (down, behind) = shifted(column, step), shifted(column, -step)
        middle = (up - down) / (ahead - behind)
        forward, backward = (up - here) / ahead, (down - here) / behind
        central.append(middle)
        apart.append(torch.maximum((forward - middle).abs(), (backward - middle).abs()))
    return torch.stack(central, -1), torch.stack(apart, -1)


def jacobian_of(function: Function, x: Float[Tensor, "N X"]) -> Float[Tensor, "N Y X"]:
    """d function / d x of every row by autograd, see :func:`jacobians_of`."""
    return jacobians_of(function, (x,))[0]


def jacobians_of(
    function: Callable[..., Tensor], inputs: Sequence[Float[Tensor, "N _"]]
) -> list[Float[Tensor, "N Y _"]]:
    """d function / d input of every row, for every input: one call, and one backward pass per component of the output.

    A Jacobian is zero where the output does not depend on the input.
    """
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.enable_grad():
        outputs = [y.sum() for y in function(*leaves).unbind(1)]
    rows: list[list[Tensor]] = [[] for _ in leaves]
    for y in outputs:
        found = torch.autograd.grad(y, leaves, retain_graph=True, allow_unused=True) if y.requires_grad else ()
        for row, leaf, gradient in itertools.zip_longest(rows, leaves, found):
            row.append(torch.zeros_like(leaf) if gradient is None else gradient)
    return [torch.stack(row, 1) for row in rows]


def consecutive(blocks: Iterable[Sequence[int]]) -> list[slice]:
    """Where each block's columns lie when the blocks are put side by side."""
    ends = list(itertools.accumulate(map(len, blocks), initial=0))
    return list(itertools.starmap(slice, itertools.pairwise(ends)))


def scale_of(jacobian: Float[Tensor, "*N Y K"]) -> Float[Tensor, "*N"]:
    """What errors of each row are relative to: its largest entry, or 1 where that is below ``NO_SCALE``."""
    largest = jacobian.abs().amax((-2, -1))
    return torch.where(largest > NO_SCALE, largest, 1.0)


def jacobian_error(jacobian: Float[Tensor, "N Y K"], truth: Float[Tensor, "N Y K"]) -> Float[Tensor, " N"]:
    """max|J - J_true| / max|J_true| of every row; infinite where J is not finite."""
    error = (jacobian.to(truth) - truth).abs().amax((1, 2)) / scale_of(truth)
    return error.nan_to_num(nan=math.inf, posinf=math.inf)


def value_error(
    value: Float[Tensor, "N Y"], truth: Float[Tensor, "N Y"], inexactness: Float[Tensor, "N Y"] | float = 0.0
) -> Float[Tensor, " N"]:
    """max|y - y_true| / max(1, |y_true|) of every row, beyond the truth's own error; infinite where y is not finite."""
    error = ((value.to(truth) - truth).abs() - inexactness).clamp(min=0.0) / truth.abs().clamp(min=1.0)
    return error.amax(1).nan_to_num(nan=math.inf, posinf=math.inf)


def quantile(x: Float[Tensor, " N"], q: float) -> float:
    """The smallest number of ``x`` that at least a share ``q`` does not exceed, NaN left out; NaN if none is left.

    It does not interpolate, so ``x`` may hold infinities.
    """
    x = x[~x.isnan()].sort().values
    return float(x[max(math.ceil(q * len(x)) - 1, 0)]) if len(x) else math.nan
