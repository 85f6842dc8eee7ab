"""Loads across bodies: what acts between bodies in a pass, as the derivative sweeps read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.coordinates import Coordinate
from mage_diffsim.envs.warp.compiler.dynamics import Spatial
from mage_diffsim.envs.warp.compiler.graph import mul


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
