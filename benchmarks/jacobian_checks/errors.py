"""Errors of a Jacobian against the truth, and their summary over groups of points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from mage_diffsim.envs.differences import jacobian_error, quantile
from mage_diffsim.shapes import Bool, Float, Tensor

NEGLIGIBLE = 1e-7
"""An error that does not matter: a tenth of what float64 derivatives are held to."""


class Errors(NamedTuple):
    """Error of one block of a Jacobian, per point."""

    error: Float[Tensor, " N"]
    """See :func:`.jacobian_error`."""
    cosine: Float[Tensor, " N"]
    """Cosine of the flattened blocks; NaN where either is zero or not finite."""
    nonfinite: Bool[Tensor, " N"]
    """J has an entry that is not finite."""


def compare(jacobian: Float[Tensor, "N Y K"], truth: Float[Tensor, "N Y K"]) -> Errors:
    """Compares a Jacobian of any float dtype with the truth."""
    jacobian = jacobian.to(truth)
    a, b = jacobian.flatten(1), truth.flatten(1)
    cosine = (a * b).sum(1) / (torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1))
    return Errors(jacobian_error(jacobian, truth), cosine, ~jacobian.isfinite().all(2).all(1))


def summary_rows(
    errors: Mapping[str, Errors],
    clean: Mapping[str, Bool[Tensor, " N"]],
    groups: Mapping[str, Bool[Tensor, " N"]],
    value_error: Float[Tensor, " N"],
) -> list[dict[str, Any]]:
    """One row per block, group of points and kind (clean or unclean). Empty rows are left out but for group ``all``.

    Args:
        errors: errors by block.
        clean: clean points by block.
        groups: members of each group.
        value_error: error of the next state; its median and maximum are over the whole group.
    """
    rows = []
    for block, e in errors.items():
        for group, members in groups.items():
            values = {f"value_error_{k}": quantile(value_error[members], q) for k, q in (("median", 0.5), ("max", 1.0))}
            for kind in ("clean", "unclean"):
                mask = members & (clean[block] if kind == "clean" else ~clean[block])
                if group != "all" and not mask.any():
                    continue
                error, cosine = e.error[mask], e.cosine[mask]
                row: dict[str, Any] = {"block": block, "states": group, "kind": kind, "n": int(mask.sum())}
                names = {"median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
                row |= {f"error_{name}": quantile(error, q) for name, q in names.items()}
                row |= {f"cosine_{name}": quantile(cosine, q) for name, q in {"median": 0.5, "p10": 0.1}.items()}
                row |= {"cosine_min": quantile(cosine, 0.0), "nonfinite": int(e.nonfinite[mask].sum())}
                rows.append(row | values)
    return rows


def number(value: float | None, form: str = ".1e") -> str:
    """A number for tables; ``-`` where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:{form}}"
