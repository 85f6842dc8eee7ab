"""Stage 3, coordinates: scalar functions of the positions along which springs, actuators, limits and equalities act.

A coordinate is a joint's position or a tendon's length. A unit force along it makes the generalised forces ``row``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial
from mage_diffsim.envs.warp.compiler.graph import add, mul


@dataclasses.dataclass(frozen=True)
class Coordinate:
    """A scalar function of the positions."""

    length: Any
    """Its value [m or rad]."""
    row: list[Any]
    """Its derivative, nv: the rate of the length is row . v."""
    loads: Mapping[int, Spatial] = dataclasses.field(default_factory=dict)
    """What a unit force along the coordinate does to each body: (torque about the origin, force). Empty where length
    and row are functions of q alone."""

    @property
    def bodies(self) -> tuple[int, ...]:
        """The moving bodies on whose frames length and row depend; () for a function of q alone."""
        return tuple(sorted(b for b in self.loads if b))

    def rate(self, motions: Sequence[Spatial], x: Sequence[Any]) -> Any:
        """row . x, where ``motions`` are the bodies' spatial motions that belong to x (nv)."""
        total: Any = 0.0
        if not self.loads:
            for share, y in zip(self.row, x, strict=True):
                total = add(total, mul(share, y))
        for body in self.bodies:
            for way, load in zip(motions[body], self.loads[body], strict=True):
                total = add(total, al.dot(way, load))
        return total


class Coordinates:
    """The coordinates of a model at positions q; each is made when first asked for."""

    def __init__(self, kinematics: Kinematics, q: Sequence[Any]) -> None:
        self.kinematics, self.model = kinematics, kinematics.model.model
        self._q = q
        self.joint = functools.cache(self._joint)
        self.tendon = functools.cache(self._tendon)

    def _joint(self, joint: int) -> Coordinate:
        """The position of a hinge or slide joint."""
        m = self.model
        return Coordinate(self._q[int(m.jnt_qposadr[joint])], self._unit(int(m.jnt_dofadr[joint]), 1.0))

    def _tendon(self, tendon: int) -> Coordinate:
        """The length of a fixed tendon: the sum of its joints' positions times its coefficients."""
        m, length, row = self.model, 0.0, self._unit(0, 0.0)
        first = int(m.tendon_adr[tendon])
        for w in range(first, first + int(m.tendon_num[tendon])):
            joint, share = self.joint(int(m.wrap_objid[w])), float(m.wrap_prm[w])
            length = add(length, mul(share, joint.length))
            row = [add(x, mul(share, y)) for x, y in zip(row, joint.row, strict=True)]
        return Coordinate(length, row)

    def _unit(self, dof: int, x: float) -> list[Any]:
        return [x if d == dof else 0.0 for d in range(self.model.nv)]
