"""Stage 4, constraints: contacts as expressions, in MuJoCo's terms (efc_J, efc_aref, efc_D).

A row with acceleration J a pushes with the force -D (J a - aref) where that is positive. The rows of a contact's edges
are made of those along normal and tangents by its cone (:mod:`.cones`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.collisions import Found, collide
from mage_diffsim.envs.warp.compiler.cones import Pyramid
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial, at_point
from mage_diffsim.envs.warp.compiler.graph import absolute, add, is_zero, less, mul, sub, where
from mage_diffsim.envs.warp.compiler.intake import Pair
from mage_diffsim.envs.warp.compiler.rows import pushing

SINGLE = 1e-6
"""Takes the place of mjMINVAL in float32: a shorter vector, made of unit vectors or relative to the geoms' size, is a
rounding error and has no direction."""


@dataclasses.dataclass(frozen=True)
class Contact:
    """One possible contact of two geoms; ``present`` says whether it is one."""

    pair: Pair
    present: Any
    """Condition: closer than the margin."""
    weight: Any
    """D of each edge; 0 where the contact is not present."""
    push: Any
    """k d(r) r, the part of -aref of every row that does not come from velocity."""
    points: tuple[al.Vector, al.Vector]
    """The point of contact relative to the origin of either body's tree."""
    normal: al.Vector
    """From the first geom to the second."""
    tangents: tuple[al.Vector, ...]
    """Tangents times the friction, without those along which nothing can move."""
    spins: tuple[al.Vector, ...]
    """Axes of torsional and rolling friction times the friction, without those about which nothing can turn."""
    rows: tuple[list[Any], ...]
    """J along normal and tangents and about the spins, [nv] each."""
    absent: Any = False
    """Condition: the geoms have no such contact where they are, however close."""
    copies: int = 1
    """How many contacts it stands for (:mod:`.repeat`)."""
    numbers: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Variables in which the copies differ, and their values in each."""

    @property
    def cone(self) -> Pyramid:
        """The cone of its forces."""
        return Pyramid(self.pair.dim, len(self.tangents) + len(self.spins))

    def along(self, motions: Sequence[Spatial]) -> list[Any]:
        """The motion of the second body relative to the first: along normal and tangents, about the spins."""
        first, second = (motions[b] for b in self.pair.bodies)
        motion = al.minus(at_point(second, self.points[1]), at_point(first, self.points[0]))
        turn = al.minus(second[0], first[0])
        linear = [al.dot(way, motion) for way in (self.normal, *self.tangents)]
        return linear + [al.dot(axis, turn) for axis in self.spins]

    def offsets(self, velocities: Sequence[Spatial]) -> list[Any]:
        """-aref of the rows."""
        damping = self.pair.impedance.damping
        normal, *across = (mul(damping, speed) for speed in self.along(velocities))
        return [add(normal, self.push), *across]

    @property
    def record(self) -> list[Any]:
        """What the cone's code needs to know, in the order of its ``numbers``."""
        return [self.weight]

    def forces(self, accelerations: Sequence[Spatial], velocities: Sequence[Spatial]) -> list[Any]:
        """What the contact pushes with along normal and tangents (times the friction), given the bodies' motions."""
        values = [add(x, y) for x, y in zip(self.along(accelerations), self.offsets(velocities), strict=True)]
        return self.cone.forces(values, self.weight)


def contacts(kinematics: Kinematics, exact: bool = True) -> list[Contact]:
    """All possible contacts of the model's pairs, in MuJoCo's order within a pair; ``exact`` means float64."""
    pairs, noise = kinematics.model.pairs, SMALLEST if exact else SINGLE
    return [c for pair in pairs for c in contacts_of(kinematics, pair, noise)]


def contacts_of(kinematics: Kinematics, pair: Pair, noise: float) -> list[Contact]:
    """All possible contacts of a pair; a vector of unit vectors shorter than ``noise`` has no direction."""
    every = (_contact(kinematics, pair, noise, found) for found in collide(kinematics, pair, noise))
    return [c for c in every if c.present is not False]


def _contact(kinematics: Kinematics, pair: Pair, noise: float, found: Found) -> Contact:
    origin, distance, point, normal, hint, absent = found
    first, second = pair.bodies
    there = al.plus(kinematics.origin(origin), point)
    points = tuple(
        point if kinematics.tree[b] == kinematics.tree[origin] else al.minus(there, kinematics.origin(b))
        for b in pair.bodies
    )
    inverse_weight = pair.inverse_weight
    if pair.friction:
        mu, ratio = pair.friction[0], max(SMALLEST, float(kinematics.model.model.opt.impratio))
        inverse_weight *= (1.0 + mu * mu) * 2.0 * mu * mu / ratio
    weight, push = pushing(pair.impedance, sub(distance, pair.margin), inverse_weight)

    def row(way: al.Vector, turning: bool = False) -> list[Any]:
        values: list[Any] = [0.0] * kinematics.model.model.nv
        for body, at, sign in ((second, points[1], 1.0), (first, points[0], -1.0)):
            for d in kinematics.chain(body):
                motion = kinematics.axes[d][0] if turning else at_point(kinematics.axes[d], at)
                values[d] = add(values[d], mul(sign, al.dot(way, motion)))
        return values

    tangents = _tangents(normal, hint, noise) if pair.friction else ()
    ways = [(t, False) for t in tangents] + [(axis, True) for axis in (normal, *tangents)]
    scaled = [(al.times(way, mu), turning) for (way, turning), mu in zip(ways, pair.friction, strict=False)]
    with_rows = [(way, turning, row(way, turning)) for way, turning in scaled]
    moving = [(way, turning, r) for way, turning, r in with_rows if not all(is_zero(x) for x in r)]
    return Contact(
        pair=pair,
        present=less(distance, pair.margin),
        weight=weight,
        push=push,
        points=points,  # type: ignore[arg-type]
        normal=normal,
        tangents=tuple(way for way, turning, _ in moving if not turning),
        spins=tuple(way for way, turning, _ in moving if turning),
        rows=(row(normal), *(r for *_, r in moving)),
        absent=absent,
    )


def _tangents(normal: al.Vector, hint: al.Vector | None, noise: float) -> tuple[al.Vector, al.Vector]:
    """Tangents of MuJoCo's contact frame: the hint (or y, or z) made orthogonal to the normal, and one across both."""
    if hint is None:
        beside = less(absolute(normal[1]), 0.5)
        hint = [0.0, where(beside, 1.0, 0.0), where(beside, 0.0, 1.0)]
    # The pyramid is the same for a tangent and its opposite.
    first = al.line_direction(al.minus(hint, al.times(normal, al.dot(normal, hint))), al.IDENTITY[0], noise)
    return first, al.cross(normal, first)
