"""Loads across bodies: what acts between bodies in a pass, as the derivative sweeps read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.coordinates import Coordinate
from mage_diffsim.envs.warp.compiler.dynamics import Spatial
from mage_diffsim.envs.warp.compiler.graph import add, is_zero, mul


@dataclasses.dataclass(frozen=True)
class Load:
    """A contact, or a force along a coordinate between bodies."""

    bodies: tuple[int, ...]
    """It depends on q and v through the frames of these bodies."""
    power: Any
    """Its generalised force times lam."""
    forces: list[Any]
    """Its generalised force, nv."""
    present: Any = True
    """Condition: whether it acts."""
    copies: int = 1
    """How many loads it stands for (:mod:`.repeat`)."""
    numbers: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Variables in which the copies differ, and their values in each."""
    contact: int | None = None
    """The number of the contact that it is of, if the noslip solver has a record of it."""


def along(
    coordinate: Coordinate,
    force: Any,
    motions: Sequence[Spatial],
    lam: Sequence[Any],
    bodies: tuple[int, ...] | None = None,
) -> Load:
    """The load of a force along a coordinate.

    Args:
        coordinate, force: the coordinate and the force.
        motions: the bodies' spatial motions that belong to lam.
        lam: nv.
        bodies: those on whose frames the force depends, if they are not the coordinate's.
    """
    forces = [mul(share, force) for share in coordinate.row]
    bodies = coordinate.bodies if bodies is None else bodies
    return Load(bodies, mul(force, coordinate.rate(motions, lam)), forces)


def along_chains(
    coordinate: Coordinate,
    factor: Any,
    moving: tuple[Sequence[Spatial], Sequence[Any]],
    test: tuple[Sequence[Spatial], Sequence[Any]],
    near: Sequence[Collection[int]],
) -> Load:
    """The load of the generalised forces factor (row' row) x, without the matrix's entries between chains.

    Args:
        coordinate, factor: the coordinate and the factor.
        moving: the bodies' spatial motions that belong to x, and x, nv.
        test: the same of lam.
        near: for each degree of freedom those with which the matrix has entries (:func:`.dynamics.related`).
    """
    row = coordinate.row
    moved = {d for d, x in enumerate(row) if not is_zero(x)}
    if all(moved <= set(near[d]) for d in moved):
        return along(coordinate, mul(factor, coordinate.rate(*moving)), *test)
    forces, power = [], 0.0
    for i, beside in enumerate(near):
        rate: Any = 0.0
        for j in beside:
            rate = add(rate, mul(row[j], moving[1][j]))
        forces.append(mul(mul(factor, row[i]), rate))
        power = add(power, mul(test[1][i], forces[-1]))
    return Load(coordinate.bodies, power, forces)
