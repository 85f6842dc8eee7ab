"""Compares a backend with MuJoCo C at given states: values, derivatives, what is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from mage_diffsim.envs.differences import (
    TrueJacobian,
    jacobian_error,
    jacobian_of,
    quantile,
    scale_of,
    value_error,
)
from mage_diffsim.envs.physics import Physics, step_of
from mage_diffsim.model_checks.reference import Points, Reference
from mage_diffsim.shapes import Bool, Float, Tensor

BLOCKS = ("action", "state")
"""What derivatives are taken by."""
DIFFERENCED = 8
"""States at which the derivative of a backend that takes differences itself is measured."""


def compare(
    physics: Physics,
    x: Float[Tensor, "N X"],
    value: Float[Tensor, "N S"],
    inexactness: Float[Tensor, "N S"],
    truths: Mapping[str, TrueJacobian],
    tangents: Float[Tensor, "N X T"],
) -> dict[str, Any]:
    """Compares values and derivatives with those of MuJoCo C.

    Args:
        physics: the physics.
        x: state | action, float64.
        value: C's next states; not finite where C diverges.
        inexactness: see :meth:`.Reference.inexactness`.
        truths: C's derivatives by :data:`BLOCKS`; a block without components is left out.
        tangents: derivative of ``x`` by the displacements of ``truths``.

    Returns:
        by name: ``count`` states, and ``diverged_in_c`` besides, of which ``finite_there`` are numbers here;
        ``value_median`` and ``value_worst``, and the worst ``value_beyond`` the inexactness; per block median and worst
        error at ``clean`` states, the worst ``beyond`` the error of the differences themselves, and number and worst
        error of ``kinks``; rows that are not finite.
    """
    step, x = step_of(physics), x.to(physics.device, physics.dtype)
    with torch.no_grad():
        mine = step(x).cpu().double()
    # Differences step once per column for every row of the Jacobian.
    differenced = physics.derivative.startswith("fd")
    at = torch.arange(0, len(x), math.ceil(len(x) / DIFFERENCED) if differenced else 1)
    jacobian = jacobian_of(step, x[at]).cpu().double()
    fine: Bool[Tensor, " N"] = value.isfinite().all(1)
    finite, smooth = mine.isfinite().all(1), jacobian.isfinite().all(2).all(1)
    found: dict[str, Any] = {"count": int(fine.sum()), "diverged_in_c": int((~fine).sum())}
    found["finite_there"] = int((~fine & finite).sum())
    found |= {"nonfinite_values": int((fine & ~finite).sum()), "nonfinite_gradients": int((fine[at] & ~smooth).sum())}
    found |= spread("value", value_error(mine, value)[fine & finite])
    found["value_beyond"] = quantile(value_error(mine, value, inexactness)[fine & finite], 1.0)
    along, widths = jacobian @ tangents[at], {name: truth.jacobian.shape[2] for name, truth in truths.items()}
    for block, truth in truths.items():
        first = 0 if block == "state" else widths.get("state", 0)
        part, true = along[..., first : first + widths[block]], truth.jacobian[at]
        errors = jacobian_error(part, true)
        beyond = ((part - true).abs() - truth.uncertain[at]).clamp(min=0.0).amax((1, 2)) / scale_of(true)
        clean, kinks = (truth.clean & fine)[at] & smooth, (~truth.clean & fine)[at] & smooth
        found[f"{block}_clean"], found[f"{block}_kinks"] = int((truth.clean & fine)[at].sum()), int(kinks.sum())
        found |= spread(block, errors[clean])
        found |= {f"{block}_beyond": quantile(beyond[clean], 1.0), f"{block}_kink": quantile(errors[kinks], 1.0)}
    return found


def own_solver(reference: Reference, points: Points, value: Float[Tensor, "N S"]) -> dict[str, float]:
    """How far steps with the model's own solver settings are from the converged ones ``value``."""
    own = torch.from_numpy(reference.step(points, reference.own))
    fine = value.isfinite().all(1) & own.isfinite().all(1)
    return spread("solver_gap", value_error(own, value)[fine])


def spread(name: str, errors: Float[Tensor, " N"]) -> dict[str, float]:
    """Median and worst of errors, by name."""
    return {f"{name}_{k}": quantile(errors, q) for k, q in (("median", 0.5), ("worst", 1.0))}
