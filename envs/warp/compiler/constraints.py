"""Stage 4, constraints: contacts as expressions, in MuJoCo's terms (efc_J, efc_aref, efc_D).

A row with acceleration J a pushes with the force -D (J a - aref) where that is positive. The rows of a contact's edges
are made of those along normal and tangents by its cone (:mod:`.cones`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mage_diffsim.envs.mujoco.mixing import SMALLEST
from mage_diffsim.envs.mujoco.model import load_mujoco
from mage_diffsim.envs.warp.compiler import algebra as al
from mage_diffsim.envs.warp.compiler.collisions import COLLISIONS
from mage_diffsim.envs.warp.compiler.cones import Cone, Elliptic, Pyramid
from mage_diffsim.envs.warp.compiler.dynamics import Kinematics, Spatial, at_point
from mage_diffsim.envs.warp.compiler.geoms import Found, Geom
from mage_diffsim.envs.warp.compiler.graph import absolute, add, is_zero, less, mul, number, sub, where
from mage_diffsim.envs.warp.compiler.intake import Pair
from mage_diffsim.envs.warp.compiler.rows import pushing
from mage_diffsim.envs.warp.compiler.searches import Search, given, search_of

SINGLE = 1e-6
"""Takes the place of mjMINVAL in float32: a shorter vector, made of unit vectors or relative to the geoms' size, is a
rounding error and has no direction."""


@dataclasses.dataclass(frozen=True)
class Contact:
    """One possible contact of two geoms; ``present`` says whether it is one."""

    pair: Pair
    present: Any
    """Condition: close enough to push."""
    weight: Any
    """D of each edge of a pyramid, otherwise of the normal; 0 where the contact is not present."""
    push: Any
    """k d(r) r, the part of the normal's -aref that does not come from velocity."""
    points: tuple[al.Vector, al.Vector]
    """The point of contact relative to the origin of either body's tree."""
    normal: al.Vector
    """From the first geom to the second."""
    tangents: tuple[al.Vector, ...]
    """Tangents times a scale of the cone's, without those along which nothing can move."""
    spins: tuple[al.Vector, ...]
    """Axes of torsional and rolling friction times a scale, without those about which nothing can turn."""
    rows: tuple[list[Any], ...]
    """J along normal and tangents and about the spins, [nv] each."""
    absent: Any = False
    """Condition: the geoms have no such contact where they are, however close."""
    search: Search | None = None
    """What finds the features of the geoms' contacts, one by one, of which this is one."""
    given: Sequence[Any] = ()
    """What the search is given."""
    listed: Any = False
    """Condition: MuJoCo lists it, if only because it is in the gap."""
    copies: int = 1
    """How many contacts it stands for (:mod:`.repeat`)."""
    numbers: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Variables in which the copies differ, and their values in each."""

    @property
    def cone(self) -> Cone:
        """The cone of its forces."""
        ways = len(self.tangents) + len(self.spins)
        if not self.pair.elliptic:
            return Pyramid(ways, self.pair.dim)
        return Elliptic(ways) if ways else Pyramid(0, 1)

    def record(self, cone: Cone) -> list[Any]:
        """The ``numbers`` by which its own cone knows it, or another with more edges or ways of friction."""
        known = {"weight": mul(self.cone.edges / cone.edges, self.weight), "slope": self.pair.slope}
        return [known[name] for name in cone.numbers]

    def along(self, motions: Sequence[Spatial]) -> list[Any]:
        """The motion of the second body relative to the first: along normal and tangents, about the spins."""
        return self.between(*(motions[b] for b in self.pair.bodies))

    def between(self, first: Spatial, second: Spatial) -> list[Any]:
        """The same, given the motions of the two bodies."""
        motion = al.minus(at_point(second, self.points[1]), at_point(first, self.points[0]))
        turn = al.minus(second[0], first[0])
        linear = [al.dot(way, motion) for way in (self.normal, *self.tangents)]
        return linear + [al.dot(axis, turn) for axis in self.spins]

    def offsets(self, velocities: Sequence[Spatial]) -> list[Any]:
        """-aref of the rows."""
        normal, *across = self.along(velocities)
        damping = self.pair.impedance.damping
        beside = self.pair.friction_damping if self.pair.elliptic else damping
        return [add(mul(damping, normal), self.push), *(mul(beside, speed) for speed in across)]

    def forces(self, accelerations: Sequence[Spatial], velocities: Sequence[Spatial]) -> list[Any]:
        """What the contact pushes with along its rows, given the bodies' motions."""
        return self.cone.forces(self.values(accelerations, velocities), *self.record(self.cone))

    def values(self, accelerations: Sequence[Spatial], velocities: Sequence[Spatial]) -> list[Any]:
        """J a - aref of its rows."""
        return [add(x, y) for x, y in zip(self.along(accelerations), self.offsets(velocities), strict=True)]

    def bounds(self, accelerations: Sequence[Spatial], velocities: Sequence[Spatial]) -> list[Any]:
        """What bounds friction in the noslip solver, given the bodies' motions."""
        return self.cone.bounds(self.values(accelerations, velocities), *self.record(self.cone))


def contacts(kinematics: Kinematics, noise: float = SMALLEST) -> list[Contact]:
    """All possible contacts of the model's pairs; ``noise`` as in :func:`contacts_of`."""
    return [c for pair in kinematics.model.pairs for c in contacts_of(kinematics, pair, noise)]


def contacts_of(kinematics: Kinematics, pair: Pair, noise: float) -> list[Contact]:
    """All possible contacts of a pair, but one that stands for all if they are searched.

    A vector of unit vectors shorter than ``noise`` has no direction.
    """
    return [c for c in listed_contacts(kinematics, pair, noise) if c.present is not False]


def listed_contacts(kinematics: Kinematics, pair: Pair, noise: float) -> list[Contact]:
    """As :func:`contacts_of`, with those that are never closer than the gap, and do not push."""
    first, second = (_geom(kinematics, pair, side) for side in (0, 1))
    search = search_of(pair.kinds, kinematics.model.noslip)
    if search:
        features = kinematics.features(search.features)
        found = search.contact(features, first, second, noise)._replace(absent=less(features[0], 0.5))
        contact = _contact(kinematics, pair, noise, found)
        several = not kinematics.model.model.opt.disableflags & load_mujoco().mjtDisableBit.mjDSBL_MULTICCD
        needed = given(pair.kinds, first, second, pair.reach, several)
        return [dataclasses.replace(contact, search=search, given=needed)]
    every = (_contact(kinematics, pair, noise, found) for found in COLLISIONS[pair.kinds](first, second, noise))
    return [c for c in every if c.listed is not False]


def _geom(kinematics: Kinematics, pair: Pair, side: int) -> Geom:
    """The first or second (0 or 1) geom of a pair, relative to the origin of :attr:`.intake.Pair.origin`."""
    at, frame = kinematics.geom(pair, side)
    centre = kinematics.relative(pair.bodies[side], at, pair.origin)
    geom = pair.geoms[side]
    if pair.kinds[side] == "mesh":
        return Geom(centre, frame, kinematics.model.hulls.size(geom))
    if pair.kinds[side] == "hfield":
        return Geom(centre, frame, kinematics.model.hfields.size(geom))
    return Geom(centre, frame, tuple(number(x) for x in kinematics.model.model.geom_size[geom]))


def _contact(kinematics: Kinematics, pair: Pair, noise: float, found: Found) -> Contact:
    distance, point, normal, hint, absent = found
    distance = where(absent, max(pair.margin, pair.reach) + 1.0, distance)
    first, second = pair.bodies
    there = al.plus(kinematics.origin(pair.origin), point)
    points = tuple(
        point if kinematics.tree[b] == kinematics.tree[pair.origin] else al.minus(there, kinematics.origin(b))
        for b in pair.bodies
    )
    inverse_weight, scale = pair.inverse_weight, 1.0
    if pair.friction and pair.elliptic:
        scale = 1.0 / pair.slope
    elif pair.friction:
        inverse_weight *= (1.0 + pair.friction[0] ** 2) * 2.0 * pair.slope * pair.slope
    weight, push = pushing(pair.impedance, sub(distance, pair.margin), inverse_weight)
    if pair.reach < pair.margin:
        weight = where(less(distance, pair.reach), weight, 0.0)

    def row(way: al.Vector, turning: bool = False) -> list[Any]:
        values: list[Any] = [0.0] * kinematics.model.model.nv
        for body, at, sign in ((second, points[1], 1.0), (first, points[0], -1.0)):
            for d in kinematics.chain(body):
                motion = kinematics.axes[d][0] if turning else at_point(kinematics.axes[d], at)
                values[d] = add(values[d], mul(sign, al.dot(way, motion)))
        return values

    tangents = _tangents(normal, hint, noise) if pair.friction else ()
    ways = [(t, False) for t in tangents] + [(axis, True) for axis in (normal, *tangents)]
    scaled = [(al.times(way, scale * mu), turning) for (way, turning), mu in zip(ways, pair.friction, strict=False)]
    with_rows = [(way, turning, row(way, turning)) for way, turning in scaled]
    # The noslip solver's update of elliptic friction depends on the number of ways.
    every = pair.elliptic and kinematics.model.noslip
    moving = [(way, turning, r) for way, turning, r in with_rows if every or not all(is_zero(x) for x in r)]
    return Contact(
        pair=pair,
        present=less(distance, min(pair.margin, pair.reach)),
        weight=weight,
        push=push,
        points=points,  # type: ignore[arg-type]
        normal=normal,
        tangents=tuple(way for way, turning, _ in moving if not turning),
        spins=tuple(way for way, turning, _ in moving if turning),
        rows=(row(normal), *(r for *_, r in moving)),
        absent=absent,
        listed=less(distance, pair.reach),
    )


def _tangents(normal: al.Vector, hint: al.Vector | None, noise: float) -> tuple[al.Vector, al.Vector]:
    """Tangents of MuJoCo's contact frame: the hint (or y, or z) made orthogonal to the normal, and one across both."""
    if hint is None:
        beside = less(absolute(normal[1]), 0.5)
        hint = [0.0, where(beside, 1.0, 0.0), where(beside, 0.0, 1.0)]
    # Cones are the same for a tangent and its opposite.
    first = al.line_direction(al.minus(hint, al.times(normal, al.dot(normal, hint))), al.IDENTITY[0], noise)
    return first, al.cross(normal, first)
