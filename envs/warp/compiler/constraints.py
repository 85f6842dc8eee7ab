"""Stage 4, constraints: contacts as expressions, in MuJoCo's terms (efc_J, efc_aref, efc_D).

A row with acceleration J a pushes with the force -D (J a - aref) where that is positive. A contact with friction has
four rows, the edges of MuJoCo's pyramid: normal +- friction x tangent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.collisions import Found, collide
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial, at_point
from mage_diffsim.envs.warp.compiler.graph import absolute, add, is_zero, less, mul, sub, where
from mage_diffsim.envs.warp.compiler.intake import Pair
from mage_diffsim.envs.warp.compiler.rows import pushing

SINGLE = 1e-6
"""Takes the place of mjMINVAL in float32: a shorter vector, made of unit vectors or relative to the geoms' size, is a
rounding error and has no direction."""
EDGES = 4
"""Rows of a contact. One without friction has all of them along the normal, each with a quarter of the weight."""


@dataclasses.dataclass(frozen=True)
class Contact:
    """One possible contact of two geoms; ``present`` says whether it is one."""

    pair: Pair
    present: Any
    """Condition: closer than the margin."""
    weight: Any
    """D of each of the :data:`EDGES` rows; 0 where the contact is not present."""
    push: Any
    """k d(r) r, the part of -aref of every row that does not come from velocity."""
    points: tuple[al.Vector, al.Vector]
    """The point of contact relative to the origin of either body's tree."""
    normal: al.Vector
    """From the first geom to the second."""
    tangents: tuple[al.Vector, ...]
    """Tangents times the friction, without those along which nothing can move."""
    normal_row: list[Any]
    tangent_rows: tuple[list[Any], ...]
    copies: int = 1
    """How many contacts it stands for (:mod:`.repeat`)."""
    numbers: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Variables in which the copies differ, and their values in each."""

    def relative(self, motions: Sequence[Spatial]) -> al.Vector:
        """The motion of the second body relative to the first at the contact."""
        first, second = self.pair.bodies
        return al.minus(at_point(motions[second], self.points[1]), at_point(motions[first], self.points[0]))


def contacts(kinematics: Kinematics, exact: bool = True) -> list[Contact]:
    """All possible contacts of the model's pairs, in MuJoCo's order within a pair; ``exact`` means float64."""
    pairs, noise = kinematics.model.pairs, SMALLEST if exact else SINGLE
    every = (_contact(kinematics, pair, noise, found) for pair in pairs for found in collide(kinematics, pair, noise))
    return [c for c in every if c.present is not False]


def _contact(kinematics: Kinematics, pair: Pair, noise: float, found: Found) -> Contact:
    origin, distance, point, normal, hint = found
    first, second = pair.bodies
    there = al.plus(kinematics.origin(origin), point)
    points = tuple(
        point if kinematics.tree[b] == kinematics.tree[origin] else al.minus(there, kinematics.origin(b))
        for b in pair.bodies
    )
    mu = pair.friction
    inverse_weight = pair.inverse_weight
    if mu:
        ratio = float(kinematics.model.model.opt.impratio)
        inverse_weight *= (1.0 + mu * mu) * 2.0 * mu * mu / ratio
    weight, push = pushing(pair.impedance, sub(distance, pair.margin), inverse_weight)

    def row(along: al.Vector) -> list[Any]:
        values: list[Any] = [0.0] * kinematics.model.model.nv
        for body, at, sign in ((second, points[1], 1.0), (first, points[0], -1.0)):
            for d in kinematics.chain(body):
                values[d] = add(values[d], mul(sign, al.dot(along, at_point(kinematics.axes[d], at))))
        return values

    tangents = [al.times(t, mu) for t in _tangents(normal, hint, noise)] if mu else []
    with_rows = [(t, row(t)) for t in tangents]
    moving = [(t, r) for t, r in with_rows if not all(is_zero(x) for x in r)]
    return Contact(
        pair=pair,
        present=less(distance, pair.margin),
        weight=weight if mu else mul(1.0 / EDGES, weight),
        push=push,
        points=points,  # type: ignore[arg-type]
        normal=normal,
        tangents=tuple(t for t, _ in moving),
        normal_row=row(normal),
        tangent_rows=tuple(r for _, r in moving),
    )


def _tangents(normal: al.Vector, hint: al.Vector | None, noise: float) -> tuple[al.Vector, al.Vector]:
    """Tangents of MuJoCo's contact frame: the hint (or y, or z) made orthogonal to the normal, and one across both."""
    if hint is None:
        beside = less(absolute(normal[1]), 0.5)
        hint = [0.0, where(beside, 1.0, 0.0), where(beside, 0.0, 1.0)]
    # The pyramid is the same for a tangent and its opposite.
    first = al.line_direction(al.minus(hint, al.times(normal, al.dot(normal, hint))), al.IDENTITY[0], noise)
    return first, al.cross(normal, first)
