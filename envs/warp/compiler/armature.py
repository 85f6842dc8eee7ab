"""Stage 3, armature of tendons: inertia against the acceleration of their length.

With a tendon's row J and armature k, it adds k J'J to the mass matrix and k J' (dJ/dt v) to the bias. As in MuJoCo, the
mass matrix has entries only between a degree of freedom and itself, its ancestors and its descendants; the bias acts on
all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from mage_diffsim.envs.warp.compiler.coordinates import Coordinate, Coordinates
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial, accelerations, related
from mage_diffsim.envs.warp.compiler.graph import Node, add, is_zero, mul, neg, sub
from mage_diffsim.envs.warp.compiler.intake import Model
from mage_diffsim.envs.warp.compiler.loads import Load, along, along_chains
from mage_diffsim.envs.warp.compiler.tendons import second


@dataclasses.dataclass(frozen=True)
class Armature:
    """The armature of a tendon."""

    tendon: int
    inertia: Any
    """With that of the tendon's actuators [kg]."""
    coordinate: Coordinate
    """The tendon's length."""

    @property
    def moves(self) -> bool:
        """Whether the row depends on q; that of a fixed tendon does not."""
        return bool(self.coordinate.bodies)

    def bias(self, kinematics: Kinematics, v: Sequence[Any]) -> list[Any]:
        """Its share of the generalised bias force, nv."""
        drift: Any = 0.0
        if self.moves:
            drift = second(kinematics, self.tendon, *accelerations(kinematics, v, [0.0] * len(v)))
        return [mul(share, mul(self.inertia, drift)) for share in self.coordinate.row]

    def loads(
        self,
        kinematics: Kinematics,
        dynamic: tuple[Sequence[Spatial], Sequence[Spatial]],
        moving: tuple[Sequence[Spatial], Sequence[Any]],
        test: tuple[Sequence[Spatial], Sequence[Any]],
    ) -> Iterator[Load]:
        """Yields the forces with which it resists, as they depend on the state.

        Args:
            kinematics: where the bodies are.
            dynamic: the bodies' spatial velocities and accelerations.
            moving: the bodies' motions that belong to the accelerations, and the accelerations, nv.
            test: the same of lam.
        """
        if self.moves:
            drift = sub(second(kinematics, self.tendon, *dynamic), self.coordinate.rate(*moving))
            yield along(self.coordinate, mul(neg(self.inertia), drift), *test)
            yield from self.inertial(kinematics, moving, test)

    def inertial(
        self,
        kinematics: Kinematics,
        moving: tuple[Sequence[Spatial], Sequence[Any]],
        test: tuple[Sequence[Spatial], Sequence[Any]],
    ) -> Iterator[Load]:
        """The same without the bias."""
        if self.moves:
            yield along_chains(self.coordinate, neg(self.inertia), moving, test, related(kinematics.model.model))


def armatures(coordinates: Coordinates) -> list[Armature]:
    """The armatures of the model's tendons. MuJoCo has none of tendons that touch geoms."""
    every = enumerate(coordinates.kinematics.model.tendon_armature)
    return [Armature(t, inertia, coordinates.tendon(t)) for t, inertia in every if not is_zero(inertia)]


def resisted(model: Model, tendons: Sequence[Armature], x: Sequence[Any]) -> list[Any]:
    """The forces at joints with which armature that is an input resists accelerations x, [nv]; where it is a number,
    or that of a tendon that moves with the bodies, 0."""
    both = zip(model.armature, x, strict=True)
    found = [mul(inertia, y) if isinstance(inertia, Node) else 0.0 for inertia, y in both]
    for tendon in tendons:
        if not tendon.moves and isinstance(tendon.inertia, Node):
            row = tendon.coordinate.row
            for i, near in enumerate(related(model.model)):
                for j in near:
                    found[i] = add(found[i], mul(mul(tendon.inertia, mul(row[i], row[j])), x[j]))
    return found


def with_armatures(m: Any, mass: Sequence[Sequence[Any]], tendons: Sequence[Armature]) -> list[list[Any]]:
    """The mass matrix of an ``MjModel`` with the armatures of tendons, [nv, nv]."""
    found = [list(row) for row in mass]
    for tendon in tendons:
        row = tendon.coordinate.row
        for i, near in enumerate(related(m)):
            for j in near:
                if j <= i:
                    share = mul(tendon.inertia, mul(row[i], row[j]))
                    found[i][j] = found[j][i] = add(found[i][j], share)
    return found
